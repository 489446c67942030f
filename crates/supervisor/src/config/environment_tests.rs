//! One file for all members: what differs comes from the environment.

use std::collections::BTreeMap;
use std::path::Path;

use rhone_consensus::command::MemberKind;

use super::{Config, advice};

const SOUND: &str = "cluster = \"main\"\n[node]\nname = \"pg-1\"\npeers = [\"127.0.0.1:7400\"]\n[postgres]\ndata-dir = \"/data\"\n";

fn load(env: &[(&str, &str)]) -> Result<Config, String> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::parse(Path::new("rhone.toml"), SOUND, &env).map_err(|errors| errors.to_string())
}

#[track_caller]
fn lines(value: &str, expected: &[&str]) {
    let config = load(&[("RHONE_BOOTSTRAP_PG_HBA", value)]).expect("sound");
    assert_eq!(config.bootstrap.pg_hba, expected, "{value}");
}

#[test]
fn a_line_of_pg_hba_may_hold_commas_in_a_variable() {
    lines("host all app,other 10.0.0.0/24 scram-sha-256", &["host all app,other 10.0.0.0/24 scram-sha-256"]);
    let two = ["host a,b all 10.0.0.0/24 scram-sha-256", "host all all ::1/128 reject"];
    lines("\nhost a,b all 10.0.0.0/24 scram-sha-256\n  host all all ::1/128 reject\n", &two);
    lines("[\"host a,b all 10.0.0.0/24 scram-sha-256\", 'host all all ::1/128 reject']", &two);
    lines("[]", &[]);
    let error = load(&[("RHONE_BOOTSTRAP_PG_HBA", "[\"host all all all reject\"")]).expect_err("not closed");
    assert!(error.starts_with("error: $RHONE_BOOTSTRAP_PG_HBA: `bootstrap.pg-hba`: "), "{error}");
    assert!(error.contains("hint: [\"…\", \"…\"] as in the file, or one on each line"), "{error}");
    let error =
        load(&[("RHONE_BOOTSTRAP_PG_HBA", "[\"host all all all reject\", 1]")]).expect_err("a number");
    assert!(error.contains("has each of them in quotes"), "{error}");
}

#[test]
fn addresses_are_parted_at_commas_or_lines_or_are_a_list() {
    let expected = ["[fd00::11]:7400", "127.0.0.1:7400"];
    for value in [
        "[fd00::11]:7400, 127.0.0.1:7400",
        "[fd00::11]:7400\n127.0.0.1:7400\n",
        "[ \"[fd00::11]:7400\", \"127.0.0.1:7400\" ]",
    ] {
        let config = load(&[("RHONE_NODE_PEERS", value), ("RHONE_TLS_INSECURE", "true")]).expect("sound");
        let peers: Vec<String> = config.node.peers.iter().map(ToString::to_string).collect();
        assert_eq!(peers, expected, "{value}");
    }
}

#[test]
fn a_programs_argument_may_hold_commas() {
    for value in ["[\"/bin/hook\", \"a,b\"]", "/bin/hook\na,b"] {
        let config = load(&[("RHONE_HOOKS_ON_START", value)]).expect("sound");
        let hook = config.hooks.on_start.expect("a hook");
        assert_eq!((hook.program.to_str(), hook.arguments), (Some("/bin/hook"), vec!["a,b".to_owned()]));
    }
}

#[test]
fn one_file_serves_a_witness_too() {
    let config = load(&[("RHONE_NODE_KIND", "witness"), ("RHONE_NODE_NAME", "wit-1")]).expect("sound");
    assert_eq!((config.kind(), &config.postgres), (MemberKind::Witness, &None));
    let said: Vec<String> = advice(&config).into_iter().map(|problem| problem.message).collect();
    assert_eq!(
        said,
        ["`postgres.data-dir` counts for nothing here: RHONE_NODE_KIND makes this member a witness"]
    );
    assert_eq!(load(&[("RHONE_NODE_KIND", "data")]).expect("sound").spare, None);
}

#[test]
fn a_tag_by_variable_is_the_tag_that_it_names() {
    let tags = |env: &[(&str, &str)]| load(env).expect("sound").node.tags;
    let set = tags(&[
        ("RHONE_NODE_PEERS", "127.0.0.1:7400,127.0.0.1:7401"),
        ("RHONE_NODE_TAGS_NO_FAILOVER", "true"),
        ("RHONE_NODE_TAGS_NO_SYNC", "true"),
        ("RHONE_NODE_TAGS_NOLOADBALANCE", "true"),
        ("RHONE_NODE_TAGS_CLONE_FROM", "true"),
        ("RHONE_NODE_TAGS_REPLICATE_FROM", "pg-2"),
        ("RHONE_NODE_TAGS_DELAY", "1min"),
        ("RHONE_NODE_TAGS_DISK_TYPE", "nvme"),
    ]);
    assert!(set.no_failover && set.no_sync && set.no_load_balance && set.clone_from, "{set:?}");
    assert_eq!((set.replicate_from.as_deref(), set.delay_ms), (Some("pg-2"), 60_000));
    assert_eq!(set.labels.get("no-failover").map(String::as_str), Some("true"));
    assert_eq!(set.labels.get("disk_type").map(String::as_str), Some("nvme"));

    let error = load(&[("RHONE_NODE_TAGS_NO_FAILOVER", "maybe")]).expect_err("no flag");
    assert!(error.contains("$RHONE_NODE_TAGS_NO_FAILOVER"), "{error}");

    let file = SOUND.replace("[postgres]", "[node.tags]\nnofailover = true\n[postgres]");
    let env = [("RHONE_NODE_TAGS_NO_FAILOVER".to_owned(), "false".to_owned())].into_iter().collect();
    let config = Config::parse(Path::new("rhone.toml"), &file, &env).expect("sound");
    assert!(!config.node.tags.no_failover, "the variable comes before the file, however that spells it");
}

#[test]
fn an_extensions_parameter_needs_no_quotes() {
    let parameters = |line: &str| {
        let file = format!("{SOUND}[bootstrap.postgres]\n{line}\n");
        let config = Config::parse(Path::new("rhone.toml"), &file, &BTreeMap::new()).expect("sound");
        config.bootstrap.postgres
    };
    let quoted = parameters("\"pg_stat_statements.max\" = 5000");
    assert_eq!(parameters("pg_stat_statements.max = 5000"), quoted);
    assert_eq!(quoted.len(), 1, "{quoted:?}");
}
