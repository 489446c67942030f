//! From what was typed to a command: what clap alone would read otherwise than a person means it.

use std::ffi::{OsStr, OsString};

use clap::Parser;

use super::args::{Cli, Command};
use super::exit::{CliError, Exit};

/// Flags of every command that are followed by a value.
const WITH_VALUE: [&str; 8] = ["-c", "--config", "--host", "-o", "--output", "--ca", "--cert", "--key"];

/// Reads a command line.
///
/// - All that follows `psql` is psql's: `-c` and `--host` mean there what they mean to psql.
/// - `help VERB` is `VERB --help`.
/// - `hosts`, the members of `RHONE_HOST`, are asked where no `--host` is typed; a certificate is issued for no
///   host but those that are typed.
///
/// # Errors
/// A usage error, or help or the version to be printed.
pub(super) fn read(
    words: impl IntoIterator<Item = OsString>,
    hosts: Option<&str>,
) -> Result<Cli, clap::Error> {
    let mut cli = Cli::try_parse_from(meant(words.into_iter().collect()))?;
    if cli.global.hosts.is_empty() && !matches!(cli.command, Command::Certs { .. }) {
        let hosts = hosts.unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty());
        cli.global.hosts = hosts.map(str::to_owned).collect();
    }
    Ok(cli)
}

/// Tells a usage error as all others are told: `error: …`, then `hint: …`.
pub(super) fn usage(error: &clap::Error) -> CliError {
    const MORE: &str = "For more information, try '";
    let said = error.render().to_string();
    let (mut lines, mut hints) = (Vec::new(), Vec::new());
    let mut help = "--help".to_owned();
    for line in said.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        if let Some(tip) = line.trim_start().strip_prefix("tip: ") {
            hints.push(format!("hint: {tip}"));
        } else if !line.starts_with(MORE) {
            if let Some(usage) = line.strip_prefix("Usage: ") {
                // The words of the command, up to the first that stands for something.
                let words = usage.split(' ').take_while(|word| !word.starts_with(['[', '<', '-']));
                help = format!("{} --help", words.collect::<Vec<_>>().join(" "));
            }
            lines.push(line.to_owned());
        }
    }
    if hints.is_empty() {
        hints.push(format!("hint: `{help}` says what may be typed"));
    }
    lines.append(&mut hints);
    CliError { complete: true, ..CliError::new(Exit::Usage, lines.join("\n")) }
}

/// Puts a command line into clap's terms.
fn meant(mut words: Vec<OsString>) -> Vec<OsString> {
    let Some(at) = verb(&words) else { return words };
    let after = words.get(at + 1..).unwrap_or_default();
    if words.get(at).is_some_and(|word| word == "help") {
        // Only names: `help --json status` has clap complain as ever.
        if after.iter().all(|word| !word.as_encoded_bytes().starts_with(b"-")) {
            let _help = words.remove(at);
            words.push("--help".into());
        }
    } else if words.get(at).is_some_and(|word| word == "psql")
        && after.first().is_some_and(|first| first != "--")
        && after != ["--help"]
    {
        words.insert(at + 1, "--".into());
    }
    words
}

/// Finds the command among the words: the first that is neither a flag nor a flag's value.
fn verb(words: &[OsString]) -> Option<usize> {
    let mut at = 1;
    while let Some(word) = words.get(at) {
        if WITH_VALUE.iter().any(|flag| OsStr::new(flag) == word) {
            at += 2;
        } else if word.as_encoded_bytes().starts_with(b"-") {
            at += 1;
        } else {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn typed(line: &str, hosts: Option<&str>) -> Result<Cli, clap::Error> {
        read(line.split(' ').map(OsString::from), hosts)
    }

    #[track_caller]
    fn psql(line: &str, config: Option<&str>, arguments: &str) {
        let cli = typed(line, None).expect("a good command line");
        assert_eq!(cli.global.config.as_deref().and_then(|path| path.to_str()), config, "{line}");
        let Command::Psql { arguments: found } = cli.command else { panic!("{line} is another command") };
        let found: Vec<_> = found.iter().map(|word| word.to_str().expect("UTF-8")).collect();
        assert_eq!(found.join(" "), arguments, "{line}");
    }

    #[test]
    fn what_follows_psql_is_psqls() {
        psql("rhone psql", None, "");
        psql("rhone psql -c SELECT", None, "-c SELECT");
        psql("rhone psql -- -c SELECT", None, "-c SELECT");
        psql(
            "rhone -c r.toml --host=a psql -d app --host b -c SELECT",
            Some("r.toml"),
            "-d app --host b -c SELECT",
        );
        psql("rhone -c psql psql app", Some("psql"), "app");
        let help = typed("rhone psql --help", None).expect_err("help");
        assert!(
            help.kind() == ErrorKind::DisplayHelp && help.to_string().contains("Usage: rhone psql"),
            "{help}"
        );
    }

    #[test]
    fn help_is_a_command_too() {
        for (line, usage) in [
            ("rhone help", "Usage: rhone [OPTIONS] <COMMAND>"),
            ("rhone help switchover", "Usage: rhone switchover"),
            ("rhone -o json help settings set", "Usage: rhone settings set"),
            ("rhone help list", "Usage: rhone status"),
        ] {
            let help = typed(line, None).expect_err("help");
            assert_eq!(help.kind(), ErrorKind::DisplayHelp, "{line}: {help}");
            assert!(help.to_string().contains(usage), "{line}: {help}");
        }
        let unknown = typed("rhone help swithcover", None).expect_err("an error");
        assert!(unknown.kind() == ErrorKind::InvalidSubcommand && unknown.use_stderr(), "{unknown}");
        assert_eq!(
            typed("rhone help --json", None).expect_err("an error").kind(),
            ErrorKind::InvalidSubcommand
        );
    }

    #[track_caller]
    fn refused(line: &str, expected: &str) {
        let error = usage(&typed(line, None).expect_err("a usage error"));
        assert_eq!((error.exit, error.message.as_str()), (Exit::Usage, expected), "{line}");
    }

    #[test]
    fn a_usage_error_is_told_as_every_other_is() {
        refused(
            "rhone switchovr",
            "error: unrecognized subcommand 'switchovr'\nUsage: rhone [OPTIONS] <COMMAND>\n\
             hint: a similar subcommand exists: 'switchover'",
        );
        refused(
            "rhone status --hots",
            "error: unexpected argument '--hots' found\nUsage: rhone status --host <HOST>\n\
             hint: a similar argument exists: '--host'",
        );
        refused(
            "rhone fence",
            "error: the following required arguments were not provided:\n  <NAME>\n\
             Usage: rhone fence <NAME>\nhint: `rhone fence --help` says what may be typed",
        );
        refused(
            "rhone restart --rolling pg-1",
            "error: the argument '--rolling' cannot be used with '[NAME]'\nUsage: rhone restart --rolling [NAME]\n\
             hint: `rhone restart --help` says what may be typed",
        );
    }

    #[test]
    fn hands_that_know_patronictl_find_their_way_in_help() {
        let help = typed("rhone --help", None).expect_err("help").to_string();
        for word in ["list", "topology", "show-config", "edit-config"] {
            assert!(help.contains(word), "{word} is not in {help}");
        }
    }

    #[test]
    fn the_members_of_the_environment_are_asked_and_get_no_certificate() {
        let hosts =
            |line: &str| typed(line, Some("pg-1, pg-2:7401,")).expect("a command").global.hosts.join(" ");
        assert_eq!(hosts("rhone status"), "pg-1 pg-2:7401");
        assert_eq!(hosts("rhone status --host pg-3"), "pg-3");
        assert_eq!(hosts("rhone certs issue pg-9"), "");
        assert_eq!(hosts("rhone certs issue pg-9 --host 10.0.0.9"), "10.0.0.9");
    }
}
