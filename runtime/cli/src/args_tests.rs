//! Tests of the command line.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_go_anywhere() {
    for line in ["sandpiper --json functions list", "sandpiper functions list --json"] {
        assert!(parse(line).unwrap().global.json, "{line}");
    }
    let cli = parse("sandpiper logs digits -f --server http://h --tenant acme --key k").unwrap();
    assert_eq!(cli.global.server.as_deref(), Some("http://h"));
    assert!(matches!(cli.command, Command::Logs { follow: true, .. }));
}

#[test]
fn serve_has_the_documented_defaults() {
    let Command::Serve(serve) = parse("sandpiper serve").unwrap().command else { panic!() };
    assert_eq!(serve.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(serve.log_format, LogForm::Text);
    assert!(!serve.until_stdin_ends && serve.config.is_none());
}

#[test]
fn invoke_reads_like_curl() {
    let line = "sandpiper invoke acme/digits@2 /a?b -X PUT -d @x -H a:b -H c:d -i";
    let Command::Invoke(invoke) = parse(line).unwrap().command else { panic!() };
    assert_eq!(invoke.function.tenant.unwrap().as_str(), "acme");
    assert_eq!(invoke.function.selector, Some(Selector::Version(2)));
    assert_eq!((invoke.path.as_str(), invoke.method.as_deref()), ("/a?b", Some("PUT")));
    assert_eq!(invoke.headers, ["a:b", "c:d"]);
}

#[test]
fn names_are_checked_before_anything_is_sent() {
    for line in [
        "sandpiper new Bad_Name",
        "sandpiper functions show ../x",
        "sandpiper invoke a/b/c",
        "sandpiper invoke digits@0",
        "sandpiper models show .hidden",
        "sandpiper tenant create A",
        "sandpiper key create --scopes admin",
        "sandpiper functions alias digits live 0",
        "sandpiper functions alias digits live 3=a",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn an_alias_points_at_a_version_or_at_weights() {
    assert_eq!("3".parse(), Ok(AliasTarget::Version(3)));
    assert_eq!("3=90,4=10".parse(), Ok(AliasTarget::Weights(vec![(3, 90), (4, 10)])));
}

#[test]
fn grants_are_given_or_withdrawn_and_not_both() {
    let grant = |rest: &str| match parse(&format!("sandpiper models grant digits{rest}")) {
        Ok(Cli { command: Command::Models(Models::Grant { to, none, .. }), .. }) => {
            Some((to, none))
        }
        _ => None,
    };
    assert_eq!(grant(" --to a,b"), Some((Some("a,b".to_owned()), false)));
    assert_eq!(grant(" --none"), Some((None, true)));
    assert_eq!((grant(""), grant(" --to a --none")), (None, None));
}

#[test]
fn scopes_are_a_list() {
    let line = "sandpiper key create --scopes invoke,logs --expires 30d";
    let Command::Key(Key::Create { scopes, .. }) = parse(line).unwrap().command else { panic!() };
    assert_eq!(scopes, [Scope::Invoke, Scope::Logs]);
}
