//! The demo's tools against a real Postgres server; runs when `RHONE_PG_BIN` is set.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::folder::{self, Owner};
use super::ports;
use super::processes::Finder;
use super::writer::Writer;

/// A Postgres program, as the user that may run it.
fn program(bin: &Path, name: &str, owner: Option<Owner>) -> Command {
    let mut command = Command::new(bin.join(name));
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(owner) = owner {
        owner.apply(&mut command);
    }
    command
}

#[tokio::test]
async fn the_writer_counts_and_nothing_is_left_behind() {
    let Some(bin) = std::env::var_os("RHONE_PG_BIN").map(PathBuf::from) else {
        eprintln!("skipped: RHONE_PG_BIN is not set");
        return;
    };
    let bin = bin.canonicalize().expect("RHONE_PG_BIN exists");
    let owner = folder::postgres_owner().expect("a user for Postgres");
    let root = folder::create().expect("a folder");
    let data = root.join("data");
    folder::make(&data, 0o700, owner).expect("a data directory");
    let made = program(&bin, "initdb", owner).args(["-U", "demo", "-A", "trust", "-D"]).arg(&data).status();
    assert!(made.expect("initdb runs").success());
    let port = *ports::free(1).expect("a port").first().expect("one port");
    let mut server = program(&bin, "postgres", owner);
    server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k", "", "-h", "127.0.0.1"]);
    let mut server = server.spawn().expect("postgres starts");
    let mut writer = Err(super::CliError::failed("not tried"));
    for _ in 0..100 {
        if program(&bin, "createdb", owner)
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "demo", "demo"])
            .status()
            .is_ok_and(|status| status.success())
        {
            writer = Writer::start(vec![port]).await;
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let writer = writer.expect("the writer connects");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (acknowledged, lost) = writer.finish().await.expect("the rows are read back");
    assert!(acknowledged > 20, "{acknowledged} rows in a second");
    assert_eq!(lost, 0);
    let finder = Finder { own: std::env::current_exe().expect("this test"), bin_dir: bin };
    let mut segments = BTreeSet::new();
    assert!(finder.end(&root, &mut segments).await, "all processes end");
    server.wait().expect("it ended");
    super::processes::remove_segments(&segments);
    assert!(!segments.is_empty(), "a server has shared memory");
    assert!(segments.iter().all(|segment| !segment.exists()));
    std::fs::remove_dir_all(&root).expect("the folder is removed");
}
