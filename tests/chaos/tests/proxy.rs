//! The rw, ro and any ports on real Postgres, under psql, pgbench, psycopg2 and sessions of our own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind::ConnectionReset;
use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::lock::take_turn;
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::ports::{
    ANY, Attempt, IdleSession, RO, RW, Reconnecting, ask_through, begin_to_ask, metric, run_client,
    run_psycopg2, until, with_ports,
};
use rhone_chaos::scenario::{hold, report};
use rhone_chaos::stats::{Sample, seconds};

const SERVER: &str = "SELECT host(inet_server_addr())";

fn first(rows: &[Vec<Option<String>>]) -> Option<&str> {
    rows.first()?.first()?.as_deref()
}

/// A certificate for Postgres, in a folder that its user can read.
fn certificate() -> Result<(std::path::PathBuf, String)> {
    let folder = std::env::temp_dir().join(format!("rhone-cert-{}", std::process::id()));
    std::fs::create_dir_all(&folder).context("make a folder")?;
    let (key, cert) = (folder.join("server.key"), folder.join("server.crt"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=chaos",
        "-keyout",
    ]);
    rhone_chaos::process::run_ok(openssl.arg(&key).arg("-out").arg(&cert))?;
    if rustix::process::geteuid().is_root() {
        let mut chown = std::process::Command::new("chown");
        rhone_chaos::process::run_ok(chown.args(["-R", "postgres:"]).arg(&folder))?;
    }
    let lines = format!(
        "ssl = \"on\"\nssl_cert_file = \"{}\"\nssl_key_file = \"{}\"\n",
        cert.display(),
        key.display()
    );
    Ok((folder, lines))
}

/// What works while nothing is wrong, in one cluster.
#[test]
fn the_ports_lead_to_the_right_servers() -> Result<()> {
    let _turn = take_turn()?;
    let (folder, tls) = certificate()?;
    let spec = with_ports(3, "max-connections = 40\nmax-waiting = 20\n");
    let spec = Spec { postgres: tls, ..spec };
    let cluster = Cluster::start(&spec)?;
    let result = rw_ro_any(&cluster)
        .and_then(|()| tls_passes(&cluster))
        .and_then(|()| new_certificate(&cluster, &folder))
        .and_then(|()| cancels(&cluster))
        .and_then(|()| limits(&cluster))
        .with_context(|| cluster.dump());
    drop(std::fs::remove_dir_all(folder));
    result
}

fn rw_ro_any(cluster: &Cluster) -> Result<()> {
    let primary = cluster.wait_whole()?;
    let address = |index: usize| cluster.node(index).map(|node| node.address().to_string());
    for index in 0..3 {
        let rows = ask_through(cluster, index, RW, SERVER)?;
        ensure!(first(&rows) == Some(&address(primary)?), "rw of {index} led to {rows:?}");
    }
    // All at once through one member: three on each standby, none on the primary. The lag is known a report later.
    until("both standbys are within the lag limit", || {
        let statement = "SELECT host(inet_server_addr()) FROM pg_sleep(2)";
        let asked: Vec<_> =
            (0..6).map(|_| begin_to_ask(cluster, primary, RO, statement)).collect::<Result<_>>()?;
        let mut servers: BTreeMap<String, usize> = BTreeMap::new();
        for thread in asked {
            // A standby that has just begun may not have replayed the making of the database.
            let Ok(rows) = thread.join().map_err(|_| anyhow!("a client panicked"))? else { return Ok(false) };
            *servers.entry(first(&rows).context("a server")?.to_owned()).or_default() += 1;
        }
        report(&format!("ro: {servers:?}, the primary is {}", address(primary)?));
        Ok(servers.len() == 2
            && servers.values().all(|n| *n == 3)
            && !servers.contains_key(&address(primary)?))
    })?;
    let rows = ask_through(cluster, primary, ANY, SERVER)?;
    ensure!(first(&rows) == Some(&address(primary)?), "any prefers the own server: {rows:?}");
    let rows = ask_through(cluster, primary, RO, "SELECT pg_is_in_recovery()")?;
    ensure!(first(&rows) == Some("t"), "ro led to a primary");
    Ok(())
}

/// TLS passes unread: the client's handshake is with Postgres.
fn tls_passes(cluster: &Cluster) -> Result<()> {
    let address = cluster.node(1)?.address().to_string();
    for (mode, expected) in [("require", "t"), ("prefer", "t"), ("disable", "f")] {
        let conninfo = format!("host={address} port={RW} user=chaos dbname=chaos sslmode={mode}");
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let output = run_client(cluster, "psql", &["-XAtc", sql, &conninfo], Duration::from_secs(60))?;
        ensure!(output.code == Some(0) && output.stdout.trim() == expected, "sslmode={mode}: {output:?}");
    }
    Ok(())
}

/// Postgres's own certificate is replaced and taken at a reload; a session goes on.
fn new_certificate(cluster: &Cluster, folder: &std::path::Path) -> Result<()> {
    let address = cluster.node(1)?.address().to_string();
    let root = folder.join("server.crt");
    // Only the server that shows this very certificate is believed.
    let verified = || {
        let root = root.display();
        let conninfo =
            format!("host={address} port={RW} user=chaos dbname=chaos sslmode=verify-ca sslrootcert={root}");
        run_client(cluster, "psql", &["-XAtc", "SELECT 1", &conninfo], Duration::from_secs(60))
    };
    let before = verified()?;
    ensure!(before.code == Some(0), "{before:?}");
    let session = begin_to_ask(cluster, 1, RW, "SELECT pg_sleep(3), 'went on'")?;
    drop(certificate()?);
    cluster.operate(1, &["reload"])?;
    until("the new certificate is shown", || Ok(verified()?.code == Some(0)))?;
    let rows = session.join().map_err(|_| anyhow!("a client panicked"))??;
    ensure!(
        rows.first().and_then(|row| row.get(1).cloned().flatten()).as_deref() == Some("went on"),
        "{rows:?}"
    );
    Ok(())
}

const CANCEL: &str = r#"
import psycopg2, sys, threading, time
conn = psycopg2.connect(host=sys.argv[1], port=sys.argv[2], user="chaos", dbname="chaos", sslmode=sys.argv[3])
conn.autocommit = True
cur = conn.cursor()
threading.Timer(1.0, conn.cancel).start()
start = time.monotonic()
try:
    cur.execute("SELECT pg_sleep(60)")
    print("slept")
except psycopg2.errors.QueryCanceled:
    print("cancelled")
cur.execute("SELECT 1")
print("usable")
"#;

fn cancels(cluster: &Cluster) -> Result<()> {
    for (port, mode) in [(RW, "disable"), (RW, "require"), (RO, "disable"), (ANY, "require"), (RO, "require")]
    {
        // Through another session's weight the request itself would be led elsewhere.
        let busy = begin_to_ask(cluster, 0, port, "SELECT pg_sleep(3)")?;
        let address = cluster.node(0)?.address().to_string();
        let Some(output) = run_psycopg2(cluster, CANCEL, &[&address, &port.to_string(), mode])? else {
            report("SKIPPED: cancel requests by psycopg2 (apt-get install python3-psycopg2)");
            return Ok(());
        };
        ensure!(output.stdout == "cancelled\nusable\n", "cancel through {port}, sslmode={mode}: {output:?}");
        busy.join().map_err(|_| anyhow!("a client panicked"))??;
    }
    Ok(())
}

fn limits(cluster: &Cluster) -> Result<()> {
    // Those that say nothing hold places, and no server; after ten seconds they are ended. A session that is just
    // ending holds a place as well while they come, and frees it: one more comes for each client that is let in.
    let address = cluster.node(0)?.address();
    let mute = |count: usize| {
        let open = move || TcpStream::connect_timeout(&(address, RW).into(), LIMIT);
        let opening = move || Ok((0..count).map(|_| open()).collect::<std::io::Result<Vec<_>>>()?);
        cluster
            .network()
            .thread(Place::Client, opening)
            .join()
            .map_err(|_| anyhow!("a mute client panicked"))?
    };
    let held = RefCell::new(mute(40)?);
    until("the places are taken", || {
        let refused = ask_through(cluster, 0, RW, SERVER).err().map(|error| format!("{error:#}"));
        let Some(refused) = refused else {
            held.borrow_mut().extend(mute(1)?);
            return Ok(false);
        };
        ensure!(refused.contains("too many connections already"), "{refused}");
        Ok(true)
    })?;
    let held = held.into_inner();
    report(&format!("{} mute clients hold all 40 places", held.len()));
    for mut stream in held {
        stream.set_read_timeout(Some(LIMIT))?;
        let end = stream.read(&mut [0]);
        let ended = end.as_ref().map_or_else(|error| error.kind() == ConnectionReset, |count| *count == 0);
        ensure!(ended, "a mute client was told {end:?}");
    }
    until("the places are free again", || Ok(ask_through(cluster, 0, RW, SERVER).is_ok()))?;
    until("/metrics counts the mute ones", || {
        Ok(metric(cluster, 0, "rhone_proxy_ended_total", "reason=\"mute\"")? >= 35.0)
    })
}

fn judge(what: &str, attempts: &[Attempt], since: Moment) -> Result<()> {
    let refused: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.refused.is_some()).collect();
    let mut sample = Sample::default();
    for attempt in attempts.iter().filter(|attempt| attempt.at > since) {
        sample.push(attempt.connecting);
    }
    let cut = attempts.iter().filter(|attempt| attempt.refused.is_none() && !attempt.written).count();
    report(&format!(
        "{what}: {} connections, {} refused, {cut} cut; connecting p50 {} p99 {} worst {} s",
        attempts.len(),
        refused.len(),
        seconds(sample.percentile(50)),
        seconds(sample.percentile(99)),
        seconds(sample.worst()),
    ));
    ensure!(refused.is_empty(), "{what}: refused {:?}", refused.first());
    ensure!(
        attempts.iter().any(|attempt| attempt.at > since && attempt.written),
        "{what}: nothing was written"
    );
    Ok(())
}

/// Who connects while the primary changes waits and gets in, through every member that lives.
#[test]
fn connecting_during_a_change_of_primary_waits_and_succeeds() -> Result<()> {
    let _turn = take_turn()?;
    // As long as a change of primary may take on a loaded machine.
    let mut cluster = Cluster::start(&with_ports(3, "wait = \"60s\"\n"))?;
    let result = change_primaries(&mut cluster);
    result.with_context(|| cluster.dump())
}

fn change_primaries(cluster: &mut Cluster) -> Result<()> {
    let mut number = 1000;
    for round in 0..2 {
        let primary = cluster.wait_whole()?;
        let clients = (0..3)
            .map(|index| Reconnecting::start(cluster, index, RW, number + index as u32))
            .collect::<Result<Vec<_>>>()?;
        number += 3;
        hold(Duration::from_secs(1));
        let at = Moment::now();
        cluster.switchover((primary + 1) % 3)?;
        hold(Duration::from_secs(2));
        for client in clients {
            judge(&format!("switchover {round}"), &client.stop()?, at)?;
        }
    }
    let kinds = match cluster.network().means() {
        Means::Loopback => vec![PowerLoss::Resets],
        Means::Filter | Means::Port => vec![PowerLoss::Resets, PowerLoss::BlackHole],
    };
    for kind in kinds {
        let primary = cluster.wait_whole()?;
        let others: Vec<usize> = (0..3).filter(|index| *index != primary).collect();
        let clients = others
            .iter()
            .map(|index| Reconnecting::start(cluster, *index, RW, number + *index as u32))
            .collect::<Result<Vec<_>>>()?;
        number += 3;
        let idle = others
            .iter()
            .flat_map(|index| [(*index, RW), (*index, ANY)])
            .map(|(index, port)| IdleSession::open(cluster, index, port))
            .collect::<Result<Vec<_>>>()?;
        let pgbench_at = cluster.node(others[0])?.address().to_string();
        hold(Duration::from_secs(1));
        let at = Moment::now();
        cluster.power_loss(primary, kind)?;
        // A real client that begins in the middle of it.
        let arguments = ["-h", &pgbench_at, "-p", "5000", "-U", "chaos", "-d", "chaos", "-c", "4"];
        let script = cluster.folder().join("row.sql");
        std::fs::write(&script, "SELECT count(*) FROM writes;\n")?;
        let script = script.to_string_lossy().into_owned();
        let more = ["-n", "-t", "20", "-f", &script];
        let output = run_client(cluster, "pgbench", &[&arguments[..], &more].concat(), LIMIT)?;
        ensure!(output.code == Some(0), "pgbench that began during the failover: {output:?}");
        for (session, port) in idle.into_iter().zip([RW, ANY, RW, ANY]) {
            // Those through `any` are on the member's own server, which goes on.
            if port == RW {
                report(&format!("an idle session of the lost primary ended: {}", session.end()?));
            } else {
                ensure!(session.is_open(), "a session on a standby was ended");
            }
        }
        let mut cut = 0.0;
        for index in &others {
            cut += metric(cluster, *index, "rhone_proxy_cut_total", "port=\"rw\"")?;
        }
        ensure!(kind == PowerLoss::Resets || cut >= 2.0, "nothing was cut in the black hole");
        hold(Duration::from_secs(1));
        for client in clients {
            judge(&format!("power loss, {kind:?}"), &client.stop()?, at)?;
        }
        cluster.network().heal()?;
        cluster.start_node(primary)?;
    }
    cluster.wait_whole().map(drop)
}

/// Without word from a majority nothing is led to a primary; reads go on; and while the epoch lasts nothing is cut.
#[test]
fn a_member_that_is_cut_off_leads_nobody_to_a_primary() -> Result<()> {
    let _turn = take_turn()?;
    let cluster = Cluster::start(&with_ports(3, "wait = \"3s\"\n"))?;
    if cluster.network().means() != Means::Filter {
        report("SKIPPED: needs one-way cuts (nft)");
        return Ok(());
    }
    let result = cut_off(&cluster);
    result.with_context(|| cluster.dump())
}

fn cut_off(cluster: &Cluster) -> Result<()> {
    let primary = cluster.wait_whole()?;
    let lonely = (0..3).find(|index| *index != primary).context("a standby")?;
    let others: Vec<usize> = (0..3).filter(|index| *index != lonely).collect();
    let kept = IdleSession::open(cluster, primary, RW)?;
    for other in &others {
        cluster.network().cut_between(Place::Node(lonely), Place::Node(*other))?;
    }
    until("the member that is cut off refuses writes", || {
        let answer = ask_through(cluster, lonely, RW, SERVER).err().map(|error| format!("{error:#}"));
        Ok(answer.is_some_and(|answer| {
            report(&format!("rw of a member that is cut off: {answer}"));
            answer.contains("no server took this connection")
        }))
    })?;
    let address = cluster.node(lonely)?.address().to_string();
    for port in [RO, ANY] {
        until("reads go on at its own server", || {
            let rows = ask_through(cluster, lonely, port, SERVER)?;
            Ok(first(&rows) == Some(&address))
        })?;
    }
    ensure!(first(&ask_through(cluster, primary, RW, "SELECT 1")?) == Some("1"));
    cluster.network().heal()?;
    cluster.wait_whole()?;
    // All are cut from each other for longer than the lease: the primary is frozen, and its sessions are kept.
    let before = cluster.epoch()?;
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        cluster.network().cut_between(Place::Node(one), Place::Node(other))?;
    }
    hold(Duration::from_millis(3500));
    ensure!(kept.is_open(), "a session was cut while the epoch lasted");
    cluster.network().heal()?;
    until("the primary writes again", || Ok(ask_through(cluster, primary, RW, "SELECT 1").is_ok()))?;
    if cluster.epoch()? == before {
        ensure!(kept.is_open(), "a session was cut while the epoch lasted");
    } else {
        report("the epoch changed during the blip: what it cut is not judged");
    }
    Ok(())
}
