use std::fs;

use proptest::prelude::*;
use sandpiper_domain::{Band, Budget, FunctionName, RateLimit};

use super::*;

fn tier(name: &str) -> TierName {
    name.parse().unwrap()
}

fn shipped(name: &str) -> Limits {
    Policies::shipped().unwrap().limits(&tier(name)).unwrap()
}

/// The shipped set in a folder, with one file changed.
fn changed(file: &str, change: impl FnOnce(&str) -> String) -> Result<Policies, PolicyError> {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("tiers")).unwrap();
    fs::write(home.path().join(PLATFORM.0), PLATFORM.1).unwrap();
    for (tier, text) in TIERS {
        fs::write(home.path().join(format!("tiers/{tier}.toml")), text).unwrap();
    }
    let path = home.path().join(file);
    let text = fs::read_to_string(&path).unwrap_or_default();
    fs::write(path, change(&text)).unwrap();
    Policies::load(home.path())
}

#[test]
fn the_shipped_numbers_are_the_design_s() {
    let sandbox = |numbers: [u64; 5]| SandboxLimits {
        memory_mib: numbers[0],
        cpu_ms: numbers[1],
        wall_ms: numbers[2],
        request_body_mib: numbers[3],
        tensor_mib: numbers[4],
        log_kib: 64,
    };
    assert_eq!(shipped("free").sandbox, sandbox([64, 50, 5_000, 1, 8]));
    assert_eq!(shipped("standard").sandbox, sandbox([128, 1_000, 30_000, 16, 64]));
    assert_eq!(shipped("dedicated").sandbox, sandbox([512, 10_000, 300_000, 64, 256]));
}

#[test]
fn so_are_those_of_whole_tenants() {
    let free = TenantLimits {
        concurrency: 4,
        sandboxes: 16,
        jobs: 1_000,
        batch_mib: 16,
        budget: Budget::default(),
        queue: 16,
        rate: Some(RateLimit { per_s: 20, burst: 40 }),
        functions: 10,
        models: 5,
        versions: 10,
        component_mib: 16,
        model_mib: 64,
        pinned_mib: 0,
        weight: 1,
        band: Band::Low,
    };
    let standard = TenantLimits {
        concurrency: 32,
        sandboxes: 128,
        jobs: 100_000,
        batch_mib: 256,
        budget: Budget::default(),
        queue: 128,
        rate: Some(RateLimit { per_s: 500, burst: 1_000 }),
        functions: 200,
        models: 100,
        versions: 50,
        component_mib: 64,
        model_mib: 512,
        pinned_mib: 256,
        weight: 4,
        band: Band::Normal,
    };
    let dedicated = TenantLimits {
        concurrency: 512,
        sandboxes: 2_048,
        jobs: 1_000_000,
        batch_mib: 1_024,
        budget: Budget::default(),
        queue: 2_048,
        rate: None,
        functions: 10_000,
        models: 1_000,
        versions: 100,
        component_mib: 128,
        model_mib: 2_048,
        pinned_mib: 2_048,
        weight: 16,
        band: Band::Normal,
    };
    assert_eq!(shipped("free").tenant, free);
    assert_eq!(shipped("standard").tenant, standard);
    assert_eq!(shipped("dedicated").tenant, dedicated);
    assert_eq!(file::parse(PLATFORM.0, PLATFORM.1).unwrap(), shipped("dedicated"));
    // As written, too: a tier above the platform's ceiling would be lowered without a word.
    for (name, text) in TIERS {
        assert_eq!(file::parse(name, text).unwrap(), shipped(name));
    }
}

#[test]
fn the_shipped_set_can_be_loaded_from_its_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    assert_eq!(Policies::load(&folder).unwrap(), Policies::shipped().unwrap());
}

#[test]
fn one_mistake_refuses_the_whole_set_and_is_named() {
    for (file, from, to, reason) in [
        ("platform.toml", "schema = 1", "schema = 2", "schema is 2"),
        ("platform.toml", "schema = 1", "", "missing field `schema`"),
        ("tiers/free.toml", "cpu_ms = 50", "cpu_ms = 0", "`sandbox.cpu_ms` must be between"),
        ("tiers/free.toml", "cpu_ms = 50", "cpu_ms = -1", "invalid value"),
        ("tiers/free.toml", "cpu_ms = 50", "cpu_ms = 9_999_999_999", "`sandbox.cpu_ms`"),
        ("tiers/free.toml", "queue = 16", "queue = 0", "`traffic.queue`"),
        ("tiers/free.toml", "per_s = 20", "per_s = 0", "`traffic.rate.per_s`"),
        ("tiers/free.toml", "burst = 40", "brust = 40", "brust"),
        ("tiers/free.toml", "rate = { per_s = 20, burst = 40 }", "", "missing field `rate`"),
        ("tiers/free.toml", "rate = { per_s = 20, burst = 40 }", "rate = 20", "a rate is"),
        ("tiers/free.toml", "cpu_ms = 50", "cpu = 50", "unknown field `cpu`"),
        ("tiers/free.toml", "weight = 1", "weight = 0", "`scheduler.weight`"),
        ("tiers/free.toml", "\"low\"", "\"lowest\"", "unknown variant"),
        ("tiers/standard.toml", "pinned_mib = 256", "", "missing field `pinned_mib`"),
        ("tiers/free.toml", "pinned_mib = 0", "pinned_mib = -1", "invalid value"),
        (
            "tiers/free.toml",
            "pinned_mib = 0",
            "pinned_mib = 9_999_999_999",
            "`catalog.pinned_mib` must be between 0",
        ),
        ("tiers/free.toml", "sandboxes = 16", "sandboxes = 0", "`traffic.sandboxes`"),
        ("tiers/free.toml", "waiting = 1_000", "waiting = 0", "`jobs.waiting`"),
        ("tiers/free.toml", "batch_mib = 16", "batch_mib = 0", "`jobs.batch_mib`"),
        ("tiers/free.toml", "[jobs]", "[budget]\nrequests = 0\n[jobs]", "`budget.requests`"),
        ("tiers/free.toml", "[jobs]", "[budget]\ncpu = 1\n[jobs]", "unknown field `cpu`"),
        ("tiers/free.toml", "[catalog]", "[catalogue]", "unknown field `catalogue`"),
    ] {
        let error = changed(file, |text| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(reason), "{error}");
    }
}

#[test]
fn strange_files_are_refused() {
    assert!(changed("tiers/free.toml.bak", |_| String::new()).is_err());
    assert!(changed("tiers/Free.toml", |_| TIERS[0].1.to_owned()).is_err());
    assert!(changed("tiers/free.toml", |text| format!("{text}\n#{}", "x".repeat(70_000))).is_err());
    assert!(changed("tiers/.free.toml.swp", |_| "\u{1}".to_owned()).is_ok());
    assert!(Policies::load(Path::new("/nonexistent")).is_err());
}

#[test]
fn a_tier_of_one_s_own_is_a_file_of_its_name() {
    let policies = changed("tiers/gold.toml", |_| TIERS[1].1.to_owned()).unwrap();
    assert_eq!(policies.limits(&tier("gold")).unwrap(), shipped("standard"));
    assert_eq!(policies.tiers().count(), 4);
}

#[test]
fn an_unknown_tier_is_answered_with_those_there_are() {
    let error = Policies::shipped().unwrap().limits(&tier("gold")).unwrap_err();
    let text = "there is no tier `gold`; the tiers are dedicated, free, standard";
    assert_eq!(error.to_string(), text);
}

#[test]
fn no_tier_is_above_the_platform() {
    let policies = changed("platform.toml", |text| {
        text.replace("cpu_ms = 10_000", "cpu_ms = 20")
            .replace("rate = \"none\"", "rate = { per_s = 30, burst = 30 }")
            .replace("band = \"normal\"", "band = \"low\"")
            .replace("pinned_mib = 2_048", "pinned_mib = 7")
    })
    .unwrap();
    let free = policies.limits(&tier("free")).unwrap();
    let dedicated = policies.limits(&tier("dedicated")).unwrap();
    assert_eq!((free.sandbox.cpu_ms, dedicated.sandbox.cpu_ms), (20, 20));
    assert_eq!(free.tenant.rate, Some(RateLimit { per_s: 20, burst: 30 }));
    assert_eq!(dedicated.tenant.rate, Some(RateLimit { per_s: 30, burst: 30 }));
    assert_eq!(dedicated.tenant.band, Band::Low);
    assert_eq!((free.tenant.pinned_mib, dedicated.tenant.pinned_mib), (0, 7));
}

#[test]
fn what_a_tier_leaves_out_has_a_default_and_a_budget_is_the_lower_one() {
    let bare = |text: &str| {
        let (head, tail) = text.split_once("[jobs]").unwrap();
        let tail = tail.split_once("[scheduler]").unwrap().1;
        format!("{head}[scheduler]{tail}").replace("sandboxes = 16", "")
    };
    let policies = changed("tiers/free.toml", bare).unwrap();
    let free = policies.limits(&tier("free")).unwrap().tenant;
    assert_eq!((free.sandboxes, free.jobs, free.batch_mib), (16, 10_000, 256));
    assert_eq!(free.budget, Budget::default());

    let policies = changed("platform.toml", |text| {
        text.replace("[jobs]", "[budget]\nrequests = 7\ncpu_s = 9\n\n[jobs]")
    });
    let budget = policies.unwrap().limits(&tier("free")).unwrap().tenant.budget;
    assert_eq!(budget, Budget { requests: Some(7), cpu_s: Some(9), ..Budget::default() });
}

#[test]
fn a_grant_carries_what_the_manifest_says() {
    let text = "name = \"f\"\n[models]\ndigits = \"3\"\n[env]\nA = \"b\"\n[limits]\ncpu_ms = 7";
    let manifest = Manifest::parse(text).unwrap();
    let tenant: TenantName = "acme".parse().unwrap();
    let policies = Policies::shipped().unwrap();
    let grant = policies.grant(&tier("free"), &manifest, &tenant).unwrap();
    assert_eq!(grant.sandbox, SandboxLimits { cpu_ms: 7, ..shipped("free").sandbox });
    assert_eq!(grant.tenant, shipped("free").tenant);
    assert_eq!(grant.models.tenant, tenant);
    assert_eq!(grant.models.bindings, manifest.models);
    assert_eq!(*grant.env, manifest.env);
}

proptest! {
    #[test]
    fn a_function_can_only_lower_its_limits(asked in proptest::array::uniform5(proptest::option::of(1u64..))) {
        let name: FunctionName = "f".parse().unwrap();
        let mut manifest = Manifest::of(name);
        manifest.limits.memory_mib = asked[0];
        manifest.limits.cpu_ms = asked[1];
        manifest.limits.wall_ms = asked[2];
        manifest.limits.tensor_mib = asked[3];
        manifest.limits.request_body_mib = asked[4];
        let tenant: TenantName = "acme".parse().unwrap();
        let policies = Policies::shipped().unwrap();
        let grant = policies.grant(&tier("standard"), &manifest, &tenant).unwrap().sandbox;
        let tier = shipped("standard").sandbox;
        prop_assert_eq!(grant.min(tier), grant);
        prop_assert_eq!(grant.memory_mib, asked[0].unwrap_or(u64::MAX).min(tier.memory_mib));
        prop_assert_eq!(grant.request_body_mib, asked[4].unwrap_or(u64::MAX).min(tier.request_body_mib));
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in ".*") {
        let _ = file::parse("x", &text);
        let _ = text.parse::<TierName>();
    }
}
