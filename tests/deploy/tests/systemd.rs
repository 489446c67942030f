//! The units as systemd reads them, and what the program tells a service manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_deploy::{LIMIT, Signal, begins, binary, folder, repository, succeeds, tool};

/// The programs that units name are installed on a machine of their own, not here.
fn with_programs_of_here(unit: &str) -> String {
    let line = |line: &str| match line.strip_prefix("ExecStart=") {
        Some(_) => "ExecStart=/bin/true".to_owned(),
        None => line.to_owned(),
    };
    unit.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn systemd_understands_every_line_of_the_units() -> Result<()> {
    let Some(analyze) = tool("systemd-analyze", "the units") else { return Ok(()) };
    let folder = folder()?;
    for name in ["rhone.service", "rhone-pgbouncer.service"] {
        let text = std::fs::read_to_string(repository().join("deploy/systemd").join(name))?;
        std::fs::write(folder.path().join(name), with_programs_of_here(&text))?;
    }
    let verify = |name: &str| {
        let mut command = Command::new(&analyze);
        succeeds(command.args(["verify", "--man=no"]).arg(folder.path().join(name)))
    };
    for name in ["rhone.service", "rhone-pgbouncer.service"] {
        let output = verify(name)?;
        ensure!(output.stderr.trim().is_empty(), "{name}: {}", output.stderr);
    }
    // It does look: a key that does not exist is noticed.
    std::fs::write(folder.path().join("wrong.service"), "[Service]\nExecStart=/bin/true\nWatchdogSecs=3\n")?;
    let output = verify("wrong.service")?;
    ensure!(output.stderr.contains("WatchdogSecs"), "an unknown key passes: {output:?}");
    Ok(())
}

/// A member that needs nobody and no Postgres to open its doors.
fn witness(folder: &Path) -> String {
    format!(
        "cluster = \"main\"\n[node]\nname = \"wit-1\"\nkind = \"witness\"\nstate-dir = \"{}/state\"\n\
         listen = \"127.83.12.1:7400\"\nhttp = \"127.83.12.1:8008\"\n\
         peers = [\"127.83.12.1:7400\", \"127.83.12.2:7400\", \"127.83.12.3:7400\"]\n",
        folder.display()
    )
}

#[test]
fn a_service_manager_hears_that_it_is_ready_that_it_lives_and_that_it_stops() -> Result<()> {
    let folder = folder()?;
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).context("bind the manager's socket")?;
    socket.set_read_timeout(Some(LIMIT))?;
    let config = folder.path().join("rhone.toml");
    std::fs::write(&config, witness(folder.path()))?;
    let log = std::fs::File::create(folder.path().join("log"))?;
    let mut rhone = begins(
        Command::new(binary::rhone()?)
            .args(["run", "-c"])
            .arg(&config)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "800000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log),
    )?;
    let heard = conversation(&socket, rhone.pid());
    let status = rhone.wait(LIMIT);
    if status.is_none() {
        rhone_chaos::process::signal(rhone.pid(), Signal::KILL);
        rhone.wait(Duration::from_secs(10));
    }
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    heard.context(log.clone())?;
    ensure!(status.and_then(|status| status.code()) == Some(0), "it ended with {status:?}:\n{log}");
    Ok(())
}

/// READY, then signs of life, then SIGTERM and STOPPING; asks it to stop in any case.
fn conversation(socket: &UnixDatagram, pid: u32) -> Result<()> {
    let receive = || -> Result<String> {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).context("wait for a message")?;
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    };
    let begin = (|| {
        let first = receive()?;
        ensure!(first.starts_with("READY=1\n"), "the first message is {first:?}");
        for _ in 0..3 {
            let sign = receive()?;
            ensure!(sign == "WATCHDOG=1", "not a sign of life: {sign:?}");
        }
        Ok(())
    })();
    rhone_chaos::process::signal(pid, Signal::TERM);
    begin?;
    loop {
        let message = receive()?;
        if message.starts_with("STOPPING=1\n") {
            return Ok(());
        }
        ensure!(message == "WATCHDOG=1", "after SIGTERM: {message:?}");
    }
}

#[test]
fn what_the_units_promise_is_what_the_documents_say() -> Result<()> {
    let unit = std::fs::read_to_string(repository().join("deploy/systemd/rhone.service"))?;
    // A crash, an upgrade and the watchdog end the supervisor alone: never Postgres with it (decision 0031).
    for line in
        ["Type=notify", "NotifyAccess=main", "KillMode=process", "Restart=always", "WatchdogSignal=SIGKILL"]
    {
        ensure!(unit.lines().any(|found| found == line), "{line} is not in the unit");
    }
    Ok(())
}
