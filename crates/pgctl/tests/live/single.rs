//! What one server is enough for.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rhone_pgctl::apply::{write_access, write_settings};
use rhone_pgctl::connection::Session;
use rhone_pgctl::control::{DbState, state_now};
use rhone_pgctl::error::PgError;
use rhone_pgctl::hba::{AccessRules, Gate};
use rhone_pgctl::initdb::{InitOptions, initdb};
use rhone_pgctl::marker::{checkpoint, write_marker};
use rhone_pgctl::probe::{primary_flush_lsn, probe};
use rhone_pgctl::process::{kill_everything, stray_processes};
use rhone_pgctl::replication::{ReplicationAddress, ReplicationTarget, identify_system};
use rhone_pgctl::roles::{Login, ensure_database, ensure_roles};
use rhone_pgctl::server::{ServerState, observe};
use rhone_pgctl::slots::{apply_slots, plan_slots, slot_name};
use rhone_pgctl::walwatch::WalWatch;

use crate::harness::{LIMIT, Rig, address, until};

fn login(name: &str) -> Login {
    Login { name: name.into(), password: format!("{name}'s \\ password") }
}

#[tokio::test]
async fn a_new_server_is_made_observed_and_stopped() {
    let Some(rig) = Rig::new().await else { return };
    let mut server = rig.server("a");
    let mut connection = server.connection();
    let state = observe(&server.data, &server.install, &server.user, &mut connection, LIMIT).await;
    assert_eq!(state.unwrap(), ServerState::Missing);
    server.init(1).await;
    let again = initdb(&server.install, &server.data, &server.user, &InitOptions::default(), LIMIT).await;
    assert!(matches!(again, Err(PgError::DataDirUnusable { .. })), "never over anything: {again:?}");
    server.start().await;
    let state = observe(&server.data, &server.install, &server.user, &mut connection, LIMIT).await.unwrap();
    let facts = *state.primary().unwrap();
    assert_eq!(facts.flushed.timeline.get(), 1);
    assert_eq!(state_now(&server.data), Some(DbState::InProduction));
    assert_eq!(state.probe().unwrap().system_id, server.identify().await.system_id);
    assert!(primary_flush_lsn(&mut connection, LIMIT).await.unwrap().flushed >= facts.flushed.lsn);
    let session = server.session().await;
    let marker = write_marker(&session, "7", LIMIT).await.unwrap();
    checkpoint(&session, LIMIT).await.unwrap();
    assert!(primary_flush_lsn(&mut connection, LIMIT).await.unwrap().flushed > marker);
    // At rest it is known without asking, for a while; what is flushed next is seen all the same.
    let mut watch = WalWatch::new(&server.data);
    for _ in 0..5 {
        let known = watch.flushed(&mut connection, LIMIT).await.unwrap();
        assert!(known > marker);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let marker = write_marker(&session, "8", LIMIT).await.unwrap();
    assert!(watch.flushed(&mut connection, LIMIT).await.unwrap() >= marker);
    let slots = BTreeSet::from([slot_name("pg-2")]);
    let found = probe(&mut connection, LIMIT).await.unwrap();
    apply_slots(&session, &plan_slots(&found.slots, &slots), LIMIT).await.unwrap();
    let found = probe(&mut connection, LIMIT).await.unwrap();
    assert!(found.slots[0].restart.is_some() && found.slots[0].name == slot_name("pg-2"));
    apply_slots(&session, &plan_slots(&found.slots, &BTreeSet::new()), LIMIT).await.unwrap();
    assert!(probe(&mut connection, LIMIT).await.unwrap().slots.is_empty());
    server.stop().await;
    let state = observe(&server.data, &server.install, &server.user, &mut connection, LIMIT).await.unwrap();
    assert!(matches!(state, ServerState::Stopped { crashed: false, .. }), "{state:?}");
    assert_eq!(state_now(&server.data), Some(DbState::ShutDown));
    assert_eq!(state_now(&server.data.join("none")), None);
}

#[tokio::test]
async fn roles_are_made_once_and_log_in_with_scram() {
    let Some(rig) = Rig::new().await else { return };
    let server = rig.primary("a").await;
    let session = server.session().await;
    let (replicator, rewinder) = (login("rhone_replicator"), login("rhone_rewind"));
    assert!(ensure_roles(&session, &replicator, &rewinder, LIMIT).await.unwrap());
    assert!(ensure_database(&session, "my \"app\"", &login("app"), LIMIT).await.unwrap());
    let mut connection = server.connection();
    let before = probe(&mut connection, LIMIT).await.unwrap();
    assert!(!ensure_roles(&session, &replicator, &rewinder, LIMIT).await.unwrap());
    assert!(!ensure_database(&session, "my \"app\"", &login("app"), LIMIT).await.unwrap());
    // An owner without a password of the configuration's keeps the one that somebody gave it.
    let owner = Login { password: String::new(), ..login("by hand") };
    assert!(ensure_database(&session, "other", &owner, LIMIT).await.unwrap());
    session.simple("set a password", "ALTER ROLE \"by hand\" PASSWORD 'mine'", LIMIT).await.unwrap();
    assert!(!ensure_database(&session, "other", &owner, LIMIT).await.unwrap());
    let sql = "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = 'by hand'";
    let row = session.query_one("read the password", sql, &[], LIMIT).await.unwrap();
    assert!(row.get::<_, bool>(0), "the owner's password is gone");
    let other = Login { password: "new".into(), ..replicator.clone() };
    assert!(ensure_roles(&session, &other, &rewinder, LIMIT).await.unwrap());
    assert_eq!(before.version / 10_000, server.install.major());
    let mut target = ReplicationTarget {
        address: ReplicationAddress::Tcp(address().to_string(), server.target.port),
        user: other.name.clone(),
        password: Some(other.password.clone()),
    };
    assert_eq!(identify_system(&target, LIMIT).await.unwrap().system_id, before.system_id);
    target.password = Some("wrong".into());
    let refused = identify_system(&target, LIMIT).await.unwrap_err();
    assert!(refused.to_string().contains("password authentication failed"), "{refused}");
    assert!(!fs::read_to_string(&server.log).unwrap().contains("'s \\ password"));
}

#[tokio::test]
async fn a_closed_gate_lets_only_rhone_in() {
    let Some(rig) = Rig::new().await else { return };
    let server = rig.primary("a").await;
    let old = "local all guest trust\n";
    fs::write(server.data.join("pg_hba.conf"), old).unwrap();
    server.sql("CREATE ROLE guest LOGIN").await;
    let mut guest = server.target.clone();
    guest.user = "guest".into();
    for gate in [Gate::Open, Gate::Closed, Gate::Open] {
        assert!(write_access(&server.data, &server.rules(), gate, &server.user).unwrap());
        server.postmaster().reload_and_settle(&server.target, LIMIT).await.unwrap();
        let entered = Session::open(&guest, LIMIT).await;
        assert_eq!(entered.is_ok(), gate == Gate::Open, "{gate:?} {entered:?}");
    }
    assert!(fs::read_to_string(server.data.join("pg_hba.conf")).unwrap().ends_with(old));
    assert!(!write_access(&server.data, &server.rules(), Gate::Open, &server.user).unwrap());

    // Maps of the user's: what passes the check is what the server takes.
    let lines = [
        "office ann \"Ann Lee\" # ours",
        r"krb /^(.*)@example\.com$ \1",
        r#"krb "/^([a-z0-9_.]+)@(A|B)\.example$" \1"#,
        r"krb /\d+\w*\s?a+?b??[^A-Z@].$ guest",
    ];
    for line in lines {
        assert_eq!(rhone_pgctl::ident_line::trouble(line), None, "{line}");
    }
    let given = AccessRules { ident_lines: Some(lines.map(str::to_owned).into()), ..server.rules() };
    assert!(write_access(&server.data, &given, Gate::Open, &server.user).unwrap());
    server.postmaster().reload_and_settle(&server.target, LIMIT).await.unwrap();
    // The view, and the number of the line in one of its columns, are of PostgreSQL 15 and later.
    if server.install.major() >= 15 {
        let taken =
            "SELECT count(*) FILTER (WHERE error IS NULL) || ' ' || count(error) FROM pg_ident_file_mappings";
        let own = given.os_users.iter().collect::<BTreeSet<_>>().len();
        assert_eq!(server.sql(taken).await, format!("{} 0", own + lines.len()));
    }
}

#[tokio::test]
async fn nasty_values_arrive_as_they_are() {
    let Some(rig) = Rig::new().await else { return };
    let mut server = rig.primary("a").await;
    let nasty = "%m 'x' \"y\" \\ $z # ü";
    server.settings.parameters.insert("log_line_prefix".into(), nasty.into());
    let names = rhone_pgctl::settings::synchronous_standby_names(1, ["a\"b", "c'd", "Ü x"]);
    server.settings.synchronous_standby_names.clone_from(&names);
    let mut conninfo = server.conninfo("it's \\ me");
    conninfo.passfile = Some("/tmp/a b'c".into());
    server.settings.primary_conninfo = Some(conninfo.clone());
    assert!(write_settings(&server.data, &server.settings, &server.user).unwrap());
    assert!(!write_settings(&server.data, &server.settings, &server.user).unwrap());
    server.postmaster().reload_and_settle(&server.target, LIMIT).await.unwrap();
    assert_eq!(server.sql("SHOW log_line_prefix").await, nasty);
    assert_eq!(server.sql("SHOW synchronous_standby_names").await, names);
    assert_eq!(server.sql("SHOW primary_conninfo").await, conninfo.to_string());
}

#[tokio::test]
async fn killing_everything_leaves_no_busy_backend() {
    let Some(rig) = Rig::new().await else { return };
    let mut server = rig.primary("a").await;
    server.sql("CREATE TABLE t (n bigint)").await;
    server
        .sql("CREATE PROCEDURE busy() LANGUAGE plpgsql AS $$ BEGIN LOOP INSERT INTO public.t VALUES (1); COMMIT; END LOOP; END $$")
        .await;
    let target = server.target.clone();
    let busy = tokio::spawn(async move {
        let session = Session::open(&target, LIMIT).await.unwrap();
        session.simple("busy", "CALL public.busy()", LIMIT).await.map(drop)
    });
    until("commits", async || server.sql("SELECT count(*) > 100 FROM public.t").await == "t").await;
    let killed = kill_everything(&server.data, LIMIT).await.unwrap();
    assert!(killed >= 5, "{killed}");
    assert!(stray_processes(&server.data).is_empty());
    assert!(busy.await.unwrap().is_err());
    server.crash().await; // nothing is left to be killed, but the postmaster to be waited for
    server.start().await;
    assert_eq!(server.sql("SELECT count(*) > 100 FROM public.t").await, "t");
}

#[tokio::test]
async fn a_stopped_postmaster_times_out_and_is_killed() {
    let Some(rig) = Rig::new().await else { return };
    let mut server = rig.primary("a").await;
    let postmaster = server.postmaster();
    postmaster.signal(rustix::process::Signal::STOP).unwrap();
    let short = Duration::from_millis(300);
    let hung = Session::open(&server.target, short).await.unwrap_err();
    assert!(matches!(hung, PgError::TimedOut { .. }), "{hung}");
    let mut connection = server.connection();
    let state = observe(&server.data, &server.install, &server.user, &mut connection, short).await.unwrap();
    assert!(matches!(state, ServerState::NotAnswering { .. }), "{state:?}");
    server.crash().await;
    postmaster.ended(LIMIT).await.unwrap();
}
