//! Logs: to stderr, as text or JSON, set up once.
//!
//! The filter is `RHONE_LOG` in `tracing`'s syntax (`info`, `rhone=debug,openraft=warn`).
//! Release builds hold nothing below DEBUG.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line a record, for people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// What is logged when `RHONE_LOG` is absent: our own story, and only trouble of others.
const DEFAULT_FILTER: &str = "info,openraft=off,sled=warn,h2=warn,hyper=warn,tonic=warn,tokio_postgres=warn";

/// Sets up logging to stderr. A second call changes nothing.
///
/// # Errors
///
/// Says what is wrong with `filter`; nothing is set up then.
pub fn init(format: LogFormat, filter: Option<&str>) -> anyhow::Result<()> {
    let text = filter.filter(|f| !f.trim().is_empty()).unwrap_or(DEFAULT_FILTER);
    let filter = EnvFilter::try_new(text)
        .map_err(|error| anyhow::anyhow!("RHONE_LOG={text} is not a log filter: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // An error here means that a subscriber is already at work, as in tests.
    let _already = match format {
        LogFormat::Text => builder.with_ansi(colours).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
