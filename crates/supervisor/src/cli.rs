//! The command line: reads arguments, asks a member over gRPC, prints the answer.
//!
//! Data goes to stdout, talk to stderr, both through [`terminal::Terminal`]. It has no private
//! way into a member: all it does is in `proto/rhone/v1/admin.proto`.

pub mod args;
pub mod certs;
mod check;
mod client;
mod detached;
mod doctor;
mod events;
mod exit;
mod explain;
mod history;
mod hold;
mod import;
mod inject;
mod man;
mod member;
mod newcomer;
mod operate;
mod psql;
mod recover;
mod reinit;
mod replay;
mod report;
mod restart;
mod schedule;
mod serve;
mod settings;
mod status;
mod table;
pub mod terminal;
mod watch;
mod words;

use std::pin::Pin;
use std::process::ExitCode;

use clap::CommandFactory;

use self::args::{Cli, Command};
pub use self::exit::{CliError, Exit};
pub(crate) use self::status::{fetch as fetch_status, render as render_status};
use self::terminal::Terminal;

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    crate::footprint::begin();
    let mut terminal = Terminal::of_process();
    let hosts = std::env::var("RHONE_HOST").ok();
    let cli = match words::read(std::env::args_os(), hosts.as_deref()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data, a usage error is talk; clap knows which is which.
            if error.use_stderr() {
                return finish(&mut terminal, Err(words::usage(&error))).into();
            }
            let _written = error.print();
            return Exit::Done.into();
        }
    };
    if let Command::Run { log_format } = &cli.command
        && crate::init::is_needed()
    {
        return crate::init::main(*log_format);
    }
    crate::runtime::ticker::begin();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            // On the heap, and behind a pointer: the runtime would have it twice in the program.
            let work: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(execute(cli, &mut terminal));
            let outcome = runtime.block_on(work);
            // A disk that hangs holds up nothing.
            runtime.shutdown_background();
            match crate::run::start_over() {
                Some(error) => Err(error.into()),
                None => outcome,
            }
        }
        Err(error) => Err(CliError::failed(format!("start the runtime: {error}"))),
    };
    finish(&mut terminal, outcome).into()
}

/// Prints an error, if there is one, and gives the exit status.
pub fn finish(terminal: &mut Terminal, outcome: Result<(), CliError>) -> Exit {
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            terminal.error(&error);
            error.exit
        }
    }
}

/// Carries out one command.
///
/// # Errors
///
/// What is to be told to the caller, with the exit status.
pub async fn execute(cli: Cli, terminal: &mut Terminal) -> Result<(), CliError> {
    let Cli { global, command } = cli;
    match command {
        Command::Run { log_format } => serve::run(&global, log_format).await,
        Command::Demo(options) => crate::demo::demo(options, global.json(), terminal).await,
        Command::Check => check::check(&global, terminal),
        Command::Status { watch } => status::run(&global, watch, terminal).await,
        Command::Explain => explain::run(&global, terminal).await,
        Command::Replay { files } => replay::run(&global, &files, terminal),
        Command::History { limit } => history::run(&global, limit, terminal).await,
        Command::Switchover { cancel: true, .. } => schedule::cancel(&global, terminal).await,
        Command::Switchover { to, at: Some(at), .. } => schedule::at(&global, to, &at, terminal).await,
        Command::Switchover { to, no_wait, .. } => operate::switchover(&global, to, no_wait, terminal).await,
        Command::Failover { to, accept_data_loss, no_wait } => {
            let flags = operate::FailoverFlags { to, accept_data_loss, no_wait };
            operate::failover(&global, flags, terminal).await
        }
        Command::Events { follow } => events::run(&global, follow, terminal).await,
        Command::Pause { no_wait } => hold::pause(&global, hold::Automatic::Off, no_wait, terminal).await,
        Command::Resume { no_wait } => hold::pause(&global, hold::Automatic::On, no_wait, terminal).await,
        Command::Fence { name, yes, no_wait } => {
            hold::fence(&global, hold::Whose { name, no_wait }, yes, terminal).await
        }
        Command::Unfence { name, no_wait } => {
            hold::unfence(&global, hold::Whose { name, no_wait }, terminal).await
        }
        Command::Settings { verb } => settings::run(&global, verb, terminal).await,
        Command::ShowConfig => settings::show_config(&global, terminal).await,
        Command::EditConfig { no_wait } => settings::edit(&global, no_wait, terminal).await,
        Command::Reload { name, no_wait } => restart::reload(&global, name, no_wait, terminal).await,
        Command::Restart { name: Some(name), at: Some(at), .. } => {
            schedule::restart_at(&global, &name, &at, terminal).await
        }
        Command::Restart { name: Some(name), cancel: true, .. } => {
            schedule::cancel_restart(&global, &name, terminal).await
        }
        Command::Restart { name, rolling: _, if_pending, no_wait, at: _, cancel: _ } => {
            restart::restart(&global, restart::Flags { name, if_pending, no_wait }, terminal).await
        }
        Command::Reinit { name, cancel: true, .. } => reinit::cancel(&global, &name, terminal).await,
        Command::Reinit { name, cancel: false, yes, no_wait } => {
            reinit::reinit(&global, hold::Whose { name, no_wait }, yes, terminal).await
        }
        Command::Member { verb } => member::run(&global, verb, terminal).await,
        Command::Import { file, peers, insecure } => {
            import::run(&global, &file, &crate::import::Choices { peers, insecure }, terminal)
        }
        Command::Recover { force_new_cluster: _, yes } => recover::run(&global, yes, terminal).await,
        Command::Doctor => doctor::run(&global, terminal).await,
        Command::Report { dir } => report::run(&global, &dir, terminal).await,
        Command::Completions { shell } => {
            completions(shell, terminal);
            Ok(())
        }
        Command::Man { folder } => man::run(folder.as_deref(), terminal),
        Command::Inject { file } => inject::run(&file, terminal),
        Command::Certs { verb } => certs::run(&global, verb.unwrap_or_default(), terminal),
        Command::Backup { words: _ } => Err(CliError::new(Exit::Usage, "`rhone backup` is not in this version: it comes later")
            .hint("pgBackRest, WAL-G or pg_basebackup work beside rhone: `rhone settings set postgres.archive_command=…`")),
        Command::Dsn { role } => psql::dsn(&global, role, terminal).await,
        Command::Psql { arguments } => psql::psql(&global, &arguments).await,
    }
}

fn completions(shell: clap_complete::Shell, terminal: &mut Terminal) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rhone", &mut script);
    terminal.data(&String::from_utf8_lossy(&script));
}

/// What `-o json` prints of a change whose new state the text shows: the change, then the cluster after it.
#[derive(serde::Serialize)]
struct Changed<'a, T> {
    #[serde(flatten)]
    change: &'a T,
    /// As `status -o json` prints it; none: nothing was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a crate::status::ClusterStatus>,
}

/// Prints a change as JSON on one line, with the cluster after it where that is known.
fn print_changed<T: serde::Serialize>(
    terminal: &mut Terminal,
    change: &T,
    cluster: Option<&crate::status::ClusterStatus>,
) -> Result<(), CliError> {
    print_json(terminal, &Changed { change, cluster })
}

/// Prints data as JSON on one line.
fn print_json<T: serde::Serialize>(terminal: &mut Terminal, data: &T) -> Result<(), CliError> {
    let text =
        serde_json::to_string(data).map_err(|error| CliError::failed(format!("print as JSON: {error}")))?;
    terminal.data(&format!("{text}\n"));
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::needless_raw_string_hashes,
    clippy::needless_pass_by_value,
    reason = "expect-test writes them so"
)]
#[path = "cli/tests.rs"]
mod tests;
