//! A command that goes on when the one that began it has ended: `--no-wait` of what is a sequence of steps.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::args::Global;
use super::client;
use super::exit::CliError;

/// Starts this program anew with that verb, in a process group of its own: it outlives the terminal. Returns the
/// file that it writes to, readable by nobody else.
///
/// # Errors
/// The file or the process could not be made.
pub(super) fn start(global: &Global, verb: &[&str]) -> Result<PathBuf, CliError> {
    let name = format!("rhone-{}-{}.log", verb.first().unwrap_or(&"verb"), client::idempotency_key()?);
    let log = std::env::temp_dir().join(name);
    let failed = |what: &str, error: std::io::Error| CliError::failed(format!("{what}: {error}"));
    let open = || -> std::io::Result<(File, File)> {
        let file = File::options().append(true).create_new(true).mode(0o600).open(&log)?;
        Ok((file.try_clone()?, file))
    };
    let (out, err) = open().map_err(|error| failed(&format!("make {}", log.display()), error))?;
    let program = std::env::current_exe().map_err(|error| failed("find this program", error))?;
    Command::new(program)
        .args(arguments(global, verb))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .spawn()
        .map_err(|error| failed("go on in the background", error))?;
    Ok(log)
}

/// The command line of a verb that asks whom this one asks, with the same certificate.
fn arguments(global: &Global, verb: &[&str]) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let files = [
        ("-c", &global.config),
        ("--ca", &global.tls.ca),
        ("--cert", &global.tls.cert),
        ("--key", &global.tls.key),
    ];
    for (flag, file) in files {
        words.extend(file.iter().flat_map(|file| [flag.into(), file.as_os_str().to_owned()]));
    }
    words.extend(global.hosts.iter().flat_map(|host| [OsString::from("--host"), host.into()]));
    words.extend(verb.iter().map(OsString::from));
    words
}

#[cfg(test)]
mod tests {
    use super::super::words;
    use super::*;

    #[test]
    fn it_asks_whom_this_one_asks() {
        let line = "rhone -c /r.toml --host a,b:7401 --ca /ca --cert /c --key /k --json restart --no-wait";
        let typed = words::read(line.split(' ').map(OsString::from), None).expect("a command line");
        let again = arguments(&typed.global, &["restart", "--rolling"]);
        let shown: Vec<&str> = again.iter().filter_map(|word| word.to_str()).collect();
        let expected = "-c /r.toml --ca /ca --cert /c --key /k --host a --host b:7401 restart --rolling";
        assert_eq!(shown.join(" "), expected);
        let read = words::read(std::iter::once("rhone".into()).chain(again), Some("other"));
        assert_eq!(read.expect("a command line").global.hosts, ["a", "b:7401"]);
    }
}
