use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use expect_test::expect;
use rhone_consensus::command::MemberKind;

use super::{Config, Environment, SyncMode, Timing, Tls};

const SOUND: &str = r#"cluster = "main"
[node]
name = "pg-1"
peers = ["127.0.0.1:7400"]
[postgres]
data-dir = "/data"
"#;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    Config::parse(Path::new("rhone.toml"), text, &environment(env)).map_err(|errors| errors.to_string())
}

#[track_caller]
fn check(text: &str, expected: expect_test::Expect) {
    expected.assert_eq(&load(text, &[]).expect_err("a configuration that is refused"));
}

/// A sound configuration with one line put into a table.
#[track_caller]
fn with(table: &str, line: &str, expected: expect_test::Expect) {
    let mark = format!("[{table}]\n");
    let text = if SOUND.contains(&mark) {
        SOUND.replace(&mark, &format!("{mark}{line}\n"))
    } else {
        format!("{SOUND}{mark}{line}\n")
    };
    check(&text, expected);
}

#[test]
fn a_short_file_is_enough_on_loopback() {
    let config = load(SOUND, &[]).expect("sound");
    assert_eq!(config.node.advertise.to_string(), "127.0.0.1:7400");
    let postgres = config.postgres.as_ref().expect("a data member");
    assert_eq!(postgres.advertise.to_string(), "127.0.0.1:5432");
    assert_eq!(config.node.http.port, 8008);
    assert_eq!(config.bootstrap.timing, Timing::default());
    assert_eq!(config.tls, Tls::LoopbackOnly);
    assert_eq!(postgres.priority, 50);
}

#[test]
fn a_witness_has_no_postgres() {
    let witness =
        "cluster = \"main\"\n[node]\nname = \"w\"\nkind = \"witness\"\npeers = [\"127.0.0.1:7400\"]\n";
    let config = load(witness, &[]).expect("sound");
    assert_eq!(config.kind(), MemberKind::Witness);
    assert_eq!(config.postgres, None);
    check(
        &format!("{witness}[postgres]\ndata-dir = \"/data\"\n"),
        expect![[r#"
            error: rhone.toml:7: `postgres.data-dir` means nothing here: a witness never runs Postgres
            hint: remove [postgres], or write kind = "data" in [node]; where one file serves all members, leave `kind` to RHONE_NODE_KIND"#]],
    );
}

#[test]
fn tags_are_read_in_either_spelling() {
    let sound = SOUND.replace("peers = [", "peers = [\"127.0.0.1:7401\", ");
    let config = load(
        &format!(
            "{sound}[node.tags]\nnofailover = true\nno-sync = true\ndelay = \"1h\"\nreplicate-from = \"pg-2\"\nzone = 3\n"
        ),
        &[],
    )
    .expect("sound");
    let tags = &config.node.tags;
    assert!(tags.no_failover && tags.no_sync && !tags.clone_from);
    assert_eq!((tags.delay_ms, tags.replicate_from.as_deref()), (3_600_000, Some("pg-2")));
    assert_eq!(tags.labels.get("zone").map(String::as_str), Some("3"));
    check(
        &format!("{sound}[node.tags]\nno-failover = \"maybe\"\ndelay = \"soon\"\nreplicatefrom = \"pg-1\"\n"),
        expect![[r#"
            error: rhone.toml:8: `node.tags.no-failover`: "maybe" is neither true nor false
            error: rhone.toml:9: `node.tags.delay`: a duration has a unit: 500ms, 1.5s, 2min, 1h
            error: rhone.toml:10: `node.tags.replicatefrom`: a member cannot follow itself"#]],
    );
    with(
        "node.tags",
        "no-failover = true",
        expect![[r#"
            error: rhone.toml:4: this member would be alone, and could not be primary
            hint: name the other founding members too, or remove priority = 0 and the tags no-failover and delay"#]],
    );
}

#[test]
fn the_example_is_sound() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/rhone.example.toml"));
    let config = Config::load(path, &BTreeMap::new()).expect("the example");
    assert_eq!(config.cluster, "main");
    assert_eq!(config.node.peers.len(), 3);
    assert_eq!(config.tls, Tls::Insecure);
    assert_eq!(config.bootstrap.postgres.get("shared_buffers").map(String::as_str), Some("128MB"));
    assert_eq!(config.node.tags.labels.get("zone").map(String::as_str), Some("shelf-a"));
}

#[test]
fn decisions_are_recorded_beside_the_store_unless_it_is_said_otherwise() {
    let recorder = |line: &str| {
        let text = SOUND.replace("[node]\n", &format!("[node]\nstate-dir = \"/state\"\n{line}\n"));
        load(&text, &[]).map(|config| config.node.recorder)
    };
    assert_eq!(recorder(""), Ok(Some("/state/decisions.jsonl".into())));
    assert_eq!(recorder("recorder = \"off\""), Ok(None));
    assert_eq!(recorder("recorder = \"/run/rhone/d\""), Ok(Some("/run/rhone/d".into())));
    with(
        "node",
        "recorder = \"on\"",
        expect![[r#"error: rhone.toml:3: `node.recorder`: "on" is neither "off" nor an absolute path"#]],
    );
}

#[test]
fn what_would_keep_the_first_primary_from_starting_is_refused() {
    with(
        "bootstrap",
        "pg-hba = [\"host all all 10.0.0.0/24 md5\", \"host all all 10.0.0.1 trust\"]",
        expect![[r#"
            error: rhone.toml:8: the line `host all all 10.0.0.1 trust` needs a prefix length, as in 10.0.0.1/32
            hint: as in pg_hba.conf: "host all all 10.0.0.0/24 scram-sha-256""#]],
    );
    with(
        "bootstrap.postgres",
        "Primary_ConnInfo = \"host=x\"",
        expect![[r#"
            error: rhone.toml:8: Rhone sets `Primary_ConnInfo` itself
            hint: remove it; [postgres] says where this member listens"#]],
    );
}

#[test]
fn the_environment_overrides_each_key() {
    let env = [
        ("RHONE_NODE_NAME", "pg-7"),
        ("RHONE_NODE_PEERS", "127.0.0.1:7400, 127.0.0.2:7400"),
        ("RHONE_POSTGRES_PRIORITY", "0"),
        ("RHONE_TLS_INSECURE", "true"),
        ("RHONE_NODE_LISTEN", ""),
        ("RHONE_BOOTSTRAP_TIMING", "calm"),
        ("RHONE_BOOTSTRAP_POSTGRES_WORK_MEM", "4MB"),
        ("RHONE_PORT", "tcp://10.0.0.1:1"),
    ];
    let config = load(SOUND, &env).expect("sound");
    assert_eq!(config.node.name, "pg-7");
    assert_eq!(config.node.peers.len(), 2);
    assert_eq!(config.postgres.as_ref().map(|postgres| postgres.priority), Some(0));
    assert_eq!(config.tls, Tls::Insecure);
    assert_eq!(config.bootstrap.timing.lease_ms, 12_000);
    assert_eq!(config.bootstrap.postgres.get("work_mem").map(String::as_str), Some("4MB"));
    let error = load(SOUND, &[("RHONE_NODE_LISTEN", "nowhere")]).expect_err("refused");
    expect![[r#"error: $RHONE_NODE_LISTEN: `node.listen`: "nowhere" has no port; write host:port"#]]
        .assert_eq(&error);
}

#[test]
fn one_file_with_many_faults_names_them_all() {
    check(
        "clutser = \"main\"\nname = \"x\"\n[node]\nnaem = \"pg-1\"\npeers = []\n[postgre]\ndata-dir = \"data\"\n",
        expect![[r#"
            error: rhone.toml:1: unknown key `clutser`
            hint: did you mean `cluster`?
            error: rhone.toml:2: unknown key `name`
            hint: `name` belongs in [node]
            error: rhone.toml:4: unknown key `naem` in [node]
            hint: did you mean `name`?
            error: rhone.toml:5: `node.peers` is empty
            hint: name every founding member, this one too
            error: rhone.toml:6: unknown key `postgre`
            hint: did you mean `postgres`?
            error: rhone.toml: `cluster` is missing
            hint: write cluster = "main", or set RHONE_CLUSTER
            error: rhone.toml: `node.name` is missing
            hint: write name = "pg-1" in [node], or set RHONE_NODE_NAME
            error: rhone.toml: `postgres.data-dir` is missing
            hint: write data-dir = "/var/lib/postgresql/15/main" in [postgres], or set RHONE_POSTGRES_DATA_DIR"#]],
    );
}

#[test]
fn each_bad_value_has_one_clear_message() {
    with(
        "node",
        "http = \"0.0.0.0\"",
        expect![[r#"error: rhone.toml:3: `node.http`: "0.0.0.0" has no port; write host:port"#]],
    );
    with(
        "node",
        "http = 8008",
        expect![[r#"error: rhone.toml:3: `node.http`: "8008" has no port; write host:port"#]],
    );
    with(
        "node",
        "state-dir = \"rhone\"",
        expect![[r#"error: rhone.toml:3: `node.state-dir`: "rhone" is not an absolute path"#]],
    );
    with(
        "node",
        "http = \"127.0.0.1:7400\"",
        expect![[r#"
            error: rhone.toml:3: `node.http` and `node.listen` both listen on port 7400
            hint: give one of them another port"#]],
    );
    with(
        "postgres",
        "priority = 1001",
        expect!["error: rhone.toml:6: `postgres.priority` is 1001; it must be 0 to 1000"],
    );
    with(
        "postgres",
        "priority = \"high\"",
        expect!["error: rhone.toml:6: `postgres.priority` must be an integer, not a string"],
    );
    with(
        "postgres",
        "dead-man = \"iptables\"",
        expect![[r#"error: rhone.toml:6: `postgres.dead-man`: "iptables" is neither "off" nor "nftables""#]],
    );
    with(
        "postgres",
        "data_dir = \"/x\"",
        expect![[r#"
        error: rhone.toml:6: unknown key `data_dir` in [postgres]
        hint: did you mean `data-dir`?"#]],
    );
    with(
        "bootstrap",
        "postgres.primary_conninfo = \"host=x\"",
        expect![[r#"
        error: rhone.toml:8: Rhone sets `primary_conninfo` itself
        hint: remove it; [postgres] says where this member listens"#]],
    );
    with(
        "bootstrap",
        "postgres.fsync = \"off\"",
        expect![[r#"
        error: rhone.toml:8: `fsync = off` would lose acknowledged commits
        hint: remove it; Rhone counts on what Postgres says it has flushed"#]],
    );
    with(
        "bootstrap",
        "pg-hba = \"host all all all trust\"",
        expect![[r#"error: rhone.toml:8: `bootstrap.pg-hba` must be a list: ["…", "…"], not a string"#]],
    );
}

#[test]
fn a_size_without_a_unit_is_refused_with_what_it_would_be() {
    with(
        "bootstrap",
        "max-lag-on-failover = \"1 apple\"",
        expect!["error: rhone.toml:8: `bootstrap.max-lag-on-failover`: a size has a unit: 512kB, 10MB, 1GB"],
    );
    for bare in ["1048576", "\"1048576\""] {
        with(
            "bootstrap",
            &format!("max-lag-on-failover = {bare}"),
            expect![[r#"
                error: rhone.toml:8: `bootstrap.max-lag-on-failover`: a size has a unit: 512kB, 10MB, 1GB
                hint: that many bytes are "1MB", with the quotes"#]],
        );
    }
    with(
        "proxy",
        "ro-max-lag = 16777216",
        expect![[r#"
            error: rhone.toml:8: `proxy.ro-max-lag`: a size has a unit: 512kB, 10MB, 1GB
            hint: that many bytes are "16MB", with the quotes"#]],
    );
}

#[test]
fn timings_that_contradict_each_other_show_the_inequality() {
    with(
        "bootstrap",
        "timing = \"defualt\"",
        expect![[
            r#"error: rhone.toml:8: `bootstrap.timing`: "defualt" is none of default, fast, calm; did you mean "default"?"#
        ]],
    );
    with(
        "bootstrap.timing",
        "lease = 2000",
        expect![
            "error: rhone.toml:8: `bootstrap.timing.lease`: a duration has a unit: 500ms, 1.5s, 2min, 1h"
        ],
    );
    with(
        "bootstrap.timing",
        "lease = \"400ms\"",
        expect![[r#"
        error: rhone.toml:8: the timings contradict each other: suspicion <= lease fails: suspicion is 500ms, lease is 400ms
        hint: `timing = "default"`, "fast" and "calm" are sets that fit together
        error: rhone.toml:8: the timings contradict each other: guard < lease * (1 - drift) - 3 * renewal fails: guard is 150ms, the right side 96ms; a healthy primary must never come near its guard
        hint: `timing = "default"`, "fast" and "calm" are sets that fit together"#]],
    );
}

#[test]
fn how_commits_wait_is_as_set_or_left_to_the_founding_members() {
    let sync = |lines: &str| {
        let peers = "peers = [\"127.0.0.1:7400\", \"127.0.0.2:7400\", \"127.0.0.3:7400\"]";
        let text = SOUND.replace("peers = [\"127.0.0.1:7400\"]", peers);
        let config = load(&format!("{text}[bootstrap]\n{lines}\n"), &[]).expect("sound");
        (config.bootstrap.sync, config.bootstrap.sync_required)
    };
    assert_eq!(sync(""), (None, None));
    assert_eq!(sync("sync = \"off\""), (Some(SyncMode::Off), None));
    assert_eq!(sync("sync = \"strict\"\nsync-required = 2"), (Some(SyncMode::Strict), Some(2)));
    assert_eq!(sync("sync = \"quorum\""), (Some(SyncMode::Quorum), None));
    with(
        "bootstrap",
        "sync = \"quorm\"",
        expect![[
            r#"error: rhone.toml:8: `bootstrap.sync`: "quorm" is none of off, quorum, strict; did you mean "quorum"?"#
        ]],
    );
    with(
        "bootstrap",
        "sync-required = 1",
        expect![[r#"
        error: rhone.toml:8: sync-required = 1 asks for more standbys than 1 members can have
        hint: leave it out: half the data members, rounded down, lets any one of them fail"#]],
    );
    let off = SOUND.replace("7400\"]", "7400\", \"127.0.0.2:7400\"]");
    check(
        &format!("{off}[bootstrap]\nsync = \"off\"\nsync-required = 1\n"),
        expect![[r#"
        error: rhone.toml:9: `bootstrap.sync-required` means nothing with sync = "off"
        hint: remove it, or write sync = "quorum""#]],
    );
    with(
        "bootstrap.postgres",
        "synchronous_commit = \"local\"",
        expect![[r#"
        error: rhone.toml:8: `synchronous_commit = local` would acknowledge commits that no standby has flushed
        hint: remove it, or write sync = "off"; a session that may lose its commits can set it for itself"#]],
    );
    let off =
        format!("{SOUND}[bootstrap]\nsync = \"off\"\n[bootstrap.postgres]\nsynchronous_commit = \"off\"\n");
    assert!(load(&off, &[]).is_ok(), "it is asked for");
}

#[test]
fn keys_that_belong_together_are_asked_for() {
    with(
        "tls",
        "cert = \"/etc/rhone/pg-1.crt\"",
        expect![[r#"
            error: rhone.toml: `tls.ca` is missing
            hint: write ca = "/etc/rhone/ca.crt" in [tls], or set RHONE_TLS_CA
            error: rhone.toml: `tls.key` is missing
            hint: write key = "/etc/rhone/pg-1.key" in [tls], or set RHONE_TLS_KEY"#]],
    );
}

#[test]
fn the_ports_for_clients_are_checked() {
    with(
        "proxy",
        "rw = \"0.0.0.0:5432\"\nwait = \"10\"\nmax-connection = 5",
        expect![[r#"
            error: rhone.toml:8: `proxy.rw` and `postgres.listen` both listen on port 5432
            hint: give one of them another port
            error: rhone.toml:9: `proxy.wait`: a duration has a unit: 500ms, 1.5s, 2min, 1h
            error: rhone.toml:10: unknown key `max-connection` in [proxy]
            hint: did you mean `max-connections`?"#]],
    );
    with(
        "pgbouncer",
        "pool-mode = \"transactions\"",
        expect![[r#"
        error: rhone.toml:8: `pgbouncer.pool-mode`: "transactions" is none of session, transaction, statement; did you mean "transaction"?
        error: rhone.toml: `pgbouncer.users-file` is missing
        hint: write users-file = "/etc/pgbouncer/userlist.txt" in [pgbouncer], or set RHONE_PGBOUNCER_USERS_FILE"#]],
    );
    let text = format!("{SOUND}\n[proxy]\nrw = \"0.0.0.0:5000\"\nidle-timeout = \"0\"\n");
    let config = load(&text, &[]).expect("sound");
    assert_eq!(config.proxy.rw.map(|address| address.port), Some(5000));
    assert_eq!((config.proxy.ro, config.proxy.idle_timeout), (None, None));
    assert_eq!(config.pooler, None);
    let text = format!("{SOUND}\n[pgbouncer]\nusers-file = \"/etc/pgbouncer/userlist.txt\"\n");
    let pooler = load(&text, &[]).expect("sound").pooler.expect("a pooler");
    assert_eq!((pooler.listen.port, pooler.mode.word()), (6432, "transaction"));
}

#[test]
fn nothing_leaves_loopback_without_a_word_about_tls() {
    with(
        "node",
        "listen = \"0.0.0.0:7400\"\nadvertise = \"10.0.0.11:7400\"",
        expect![[r#"
            error: rhone.toml:3: `node.listen` goes beyond loopback without TLS
            hint: `rhone certs init` and `rhone certs issue` make what [tls] needs (ca, cert, key); only on a network that you trust, write `insecure = true` there instead"#]],
    );
    with(
        "tls",
        "insecure = true\nca = \"/c\"\ncert = \"/c\"\nkey = \"/c\"",
        expect![[r#"
            error: rhone.toml:9: `tls.ca` and `tls.insecure = true` contradict each other
            hint: remove `insecure`, or the files of [tls]"#]],
    );
    let tls = "[tls]\nca = \"/ca\"\ncert = \"/cert\"\nkey = \"/key\"\n[node]\nlisten = \"0.0.0.0:7400\"\nadvertise = \"db:7400\"";
    let config = load(&SOUND.replace("[node]", tls), &[]).expect("sound");
    assert!(matches!(config.tls, Tls::Mutual(_)), "{:?}", config.tls);
    let text = SOUND.replace(
        "[node]",
        "[tls]\ninsecure = true\n[node]\nlisten = \"0.0.0.0:7400\"\nadvertise = \"db:7400\"",
    );
    assert_eq!(load(&text, &[]).map(|c| c.node.advertise.to_string()), Ok("db:7400".to_owned()));
    with(
        "node",
        "listen = \"[::]:7400\"",
        expect![[r#"
        error: rhone.toml: `node.advertise` is missing
        hint: write advertise = "10.0.0.11:7400" in [node], or set RHONE_NODE_ADVERTISE"#]],
    );
}

#[test]
fn garbage_is_refused_with_its_line() {
    let error = load("cluster = \"main\"\n[node\n", &[]).expect_err("refused");
    assert!(error.starts_with("error: rhone.toml:2: "), "{error}");
    let missing = Config::load(Path::new("/nonexistent/rhone.toml"), &BTreeMap::new()).expect_err("refused");
    assert!(missing.to_string().starts_with("error: /nonexistent/rhone.toml: cannot be read: "), "{missing}");
    assert_eq!(super::units::parse_duration("1s"), Ok(Duration::from_secs(1)));
}
