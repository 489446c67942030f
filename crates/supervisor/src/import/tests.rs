use std::path::Path;

use expect_test::{expect, expect_file};

use super::*;
use crate::config::{Config, Environment};

const DEBIAN: &str = include_str!("debian.yml");
const SPILO: &str = include_str!("spilo.yml");

#[track_caller]
fn sound(text: &str, choices: &Choices) -> (Config, Translation) {
    let translation = translate(text, choices).expect("translated");
    let config = Config::parse(Path::new("rhone.toml"), &translation.config, &Environment::default());
    (config.unwrap_or_else(|errors| panic!("{errors}\n{}", translation.config)), translation)
}

fn trusted() -> Choices {
    let peers = ["10.0.0.11", "10.0.0.12", "10.0.0.13:7400"].map(str::to_owned).to_vec();
    Choices { peers, insecure: true }
}

#[test]
fn debians_template_becomes_a_sound_file() {
    let (config, translation) = sound(DEBIAN, &trusted());
    assert_eq!((config.cluster.as_str(), config.node.name.as_str()), ("15-main", "db-1"));
    assert_eq!(config.node.peers.len(), 3);
    expect![[r##"
        # Translated from a configuration of Patroni's; `rhone check -c FILE` says whether it is sound.
        cluster = "15-main"

        [node]
        name = "db-1"
        state-dir = "/var/lib/rhone"
        listen = "0.0.0.0:7400"
        advertise = "10.0.0.11:7400"
        http = "10.0.0.11:8008"
        peers = ["10.0.0.11:7400", "10.0.0.12:7400", "10.0.0.13:7400"]

        [postgres]
        bin-dir = "/usr/lib/postgresql/15/bin"
        data-dir = "/var/lib/postgresql/15/main"
        listen = "0.0.0.0:5432"
        advertise = "10.0.0.11:5432"
        socket-dir = "/var/run/postgresql/"
        superuser = "postgres"

        [tls]
        insecure = true

        [bootstrap]
        sync = "off"
        max-lag-on-failover = "1MB"
        pg-hba = [
          "local   all             all                                     peer",
          "host    all             all             127.0.0.1/32            md5",
          "host    all             all             10.0.0.0/24             scram-sha-256",
        ]

        [bootstrap.postgres]
        jit = "off"
        log_directory = "/var/log/postgresql"
        logging_collector = "on"
        max_connections = "200"
        max_replication_slots = "5"
        max_wal_senders = "5"
        wal_level = "replica"
    "##]]
    .assert_eq(&translation.config);
}

#[test]
fn a_zalando_like_file_becomes_a_sound_file() {
    let (config, translation) = sound(SPILO, &Choices::default());
    assert_eq!(config.postgres.as_ref().map(|postgres| postgres.priority), Some(80));
    expect![[r##"
        # Translated from a configuration of Patroni's; `rhone check -c FILE` says whether it is sound.
        cluster = "acid-minimal"

        [node]
        name = "acid-minimal-0"
        state-dir = "/var/lib/rhone"
        listen = "0.0.0.0:7400"
        advertise = "10.2.3.4:7400"
        http = "0.0.0.0:8008"
        peers = ["10.2.3.4:7400", "change-me-2:7400", "change-me-3:7400"]

        [node.tags]
        zone = "eu-central-1a"

        [postgres]
        bin-dir = "/usr/lib/postgresql/15/bin"
        data-dir = "/home/postgres/pgdata/pgroot/data"
        listen = "0.0.0.0:5432"
        advertise = "10.2.3.4:5432"
        socket-dir = "/var/run/postgresql"
        superuser = "postgres"
        priority = 80

        [hooks]
        on-role-change = ["/scripts/callback.py"]
        on-start = ["/scripts/callback.py"]
        on-stop = ["/scripts/callback.py"]

        [tls]
        ca = "/etc/rhone/ca.crt"
        cert = "/etc/rhone/acid-minimal-0.crt"
        key = "/etc/rhone/acid-minimal-0.key"

        [bootstrap]
        sync = "strict"
        sync-required = 1
        max-lag-on-failover = "32MB"
        pg-hba = [
          "local   all             all                                   trust",
          "hostssl all             +zalandos    127.0.0.1/32       pam",
          "host    all             all                127.0.0.1/32       md5",
          "hostnossl all           all                all                reject",
          "hostssl all             all                all                md5",
        ]

        [bootstrap.postgres]
        archive_command = "envdir \"/run/etc/wal-e.d/env\" wal-g wal-push \"%p\""
        archive_mode = "on"
        archive_timeout = "1800s"
        autovacuum_analyze_scale_factor = "0.02"
        autovacuum_max_workers = "5"
        checkpoint_completion_target = "0.9"
        log_autovacuum_min_duration = "0"
        max_connections = "120"
        max_replication_slots = "10"
        shared_preload_libraries = "bg_mon,pg_stat_statements,pgextwlist"
        ssl = "on"
        ssl_cert_file = "/run/certs/server.crt"
        tcp_keepalives_idle = "900"
        wal_level = "replica"
    "##]]
    .assert_eq(&translation.config);
}

#[test]
fn each_key_is_told_with_what_becomes_of_it() {
    let (_, translation) = sound(SPILO, &Choices::default());
    let line = |note: &Note| format!("{:?} {}: {}\n", note.verdict, note.key, note.what);
    let told: String = translation.notes.iter().map(line).collect();
    expect_file!["spilo.notes"].assert_eq(&told);
    // Every leaf of the file is named, by itself or by its table.
    let document = YamlLoader::load_from_str(SPILO).expect("YAML");
    for (key, _) in leaves(&document[0]) {
        assert!(translation.notes.iter().any(|note| note.key == key), "{key} is not told");
    }
}

#[test]
fn no_secret_gets_through() {
    for (text, choices) in [(DEBIAN, trusted()), (SPILO, Choices::default())] {
        let (_, translation) = sound(text, &choices);
        let told = serde_json::to_string(&translation).expect("JSON");
        for secret in ["rep-pass", "s3cret", "rest-pass", "user-pass", "standby-pass", "password: zalando"] {
            assert!(!told.contains(secret), "{secret}: {told}");
        }
    }
}

#[test]
fn a_file_that_nobody_completed_founds_nothing() {
    let (config, translation) = sound(DEBIAN, &Choices { insecure: true, ..Choices::default() });
    let peers: Vec<String> = config.node.peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["10.0.0.11:7400", "change-me-2:7400", "change-me-3:7400"]);
    assert!(translation.notes.iter().any(|note| note.what.contains("write all founding members")));
}

#[test]
fn what_is_no_configuration_is_refused() {
    let check = |text: &str, expected: &str| {
        let why = translate(text, &Choices::default()).expect_err("refused");
        assert!(why.contains(expected), "{why}");
    };
    check("a: [", "it is no YAML");
    check("- a\n- b\n", "it is no table of keys");
    check("", "0 YAML documents");
    check("a: 1\n---\nb: 2\n", "2 YAML documents");
    check("name: x\n", "it has no `scope`");
    check("scope: s\nname: x\n", "it has no `postgresql.data_dir`");
    check(&"#".repeat(SIZE_LIMIT + 1), "more than");
}

#[test]
fn what_would_break_a_toml_file_does_not() {
    let text = "scope: 's\"q'\nname: n\ntags: {\"a b\": \"x\\ny\", nofailover: yes, failover_priority: 70}\n\
                postgresql: {data_dir: /d, connect_address: 'h:5432', listen: nonsense, parameters: {log_line_prefix: '%m \\ \"'}}\n";
    let (config, translation) = sound(text, &Choices { insecure: true, ..Choices::default() });
    assert_eq!(config.cluster, "s-q");
    assert_eq!(config.node.tags.labels.get("a b").map(String::as_str), Some("x\ny"));
    assert!(config.node.tags.no_failover);
    // Somebody who is never primary keeps that, whatever its priority was.
    assert_eq!(config.postgres.map(|postgres| postgres.priority), Some(50));
    assert!(
        translation
            .notes
            .iter()
            .any(|note| note.key == "postgresql.listen" && note.verdict == Verdict::Decide)
    );
}
