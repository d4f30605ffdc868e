//! The catalog through its public door, over a real folder.

use std::{fs, path::Path};

use sandpiper_domain::{
    AliasName, FunctionName, Manifest, ModelName, ModelSignature, Scope, ScopeSet, Selector,
    TenantName,
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::TierName;

mod deployments;
mod durability;
mod identity;
mod sharing;
mod traffic;

const OPERATOR: &str = "the operator's key, long enough for this";

/// A catalog in a folder of its own.
struct House {
    home: TempDir,
    catalog: Option<Catalog>,
}

impl std::ops::Deref for House {
    type Target = Catalog;
    fn deref(&self) -> &Catalog {
        self.catalog.as_ref().unwrap()
    }
}

impl House {
    /// With the tenant `acme`.
    fn new(tier: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let catalog = Some(open(home.path()).unwrap());
        let house = House { home, catalog };
        house.create_tenant(&acme(), &self::tier(tier), now()).unwrap();
        house
    }

    fn reopen(&mut self) {
        self.catalog = None;
        self.catalog = Some(open(self.home.path()).unwrap());
    }

    /// What a restart would find if the process were killed now: the files as they are, with nothing closed.
    fn killed_now(&self) -> House {
        let home = tempfile::tempdir().unwrap();
        copy(self.home.path(), home.path());
        let catalog = Some(open(home.path()).unwrap());
        House { home, catalog }
    }

    fn deploy(&self, name: &str, bytes: &[u8]) -> PutOutcome<FunctionVersion> {
        self.put_function(&acme(), &self.new_function(name, bytes), true, now()).unwrap()
    }

    fn new_function(&self, name: &str, bytes: &[u8]) -> NewFunction {
        let source = self.put_blob(bytes).unwrap();
        NewFunction {
            component: source.clone(),
            source,
            manifest: Manifest::of(function(name)),
            imports: vec!["wasi:nn/graph".to_owned()],
        }
    }

    fn upload(&self, tenant: &TenantName, name: &str, bytes: &[u8]) -> PutOutcome<ModelVersion> {
        self.put_model(tenant, &model(name), &self.new_model(bytes), true, now()).unwrap()
    }

    fn new_model(&self, bytes: &[u8]) -> NewModel {
        NewModel {
            blob: self.put_blob(bytes).unwrap(),
            signature: ModelSignature { inputs: Vec::new(), outputs: Vec::new() },
            options: Default::default(),
            samples: None,
            measurement: serde_json::Value::Null,
        }
    }

    fn live(&self, name: &str) -> Option<u32> {
        let snapshot = self.snapshot();
        let found = snapshot.find_function(acme().as_str(), name, &Selector::default(), |_| 0);
        found.map(|found| found.version.version)
    }

    fn blob_count(&self) -> usize {
        fs::read_dir(self.home.path().join("blobs")).unwrap().count()
    }
}

fn open(path: &Path) -> Result<Catalog, OpenError> {
    let operator = OPERATOR.parse().unwrap();
    Catalog::open(DataFolder::open(path)?, Policies::shipped().unwrap(), &operator)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
}

fn acme() -> TenantName {
    tenant("acme")
}

fn tenant(name: &str) -> TenantName {
    name.parse().unwrap()
}

fn tier(name: &str) -> TierName {
    name.parse().unwrap()
}

fn function(name: &str) -> FunctionName {
    name.parse().unwrap()
}

fn model(name: &str) -> ModelName {
    name.parse().unwrap()
}

fn alias(name: &str) -> AliasName {
    name.parse().unwrap()
}

fn scopes(scopes: &[Scope]) -> ScopeSet {
    scopes.iter().copied().collect()
}
