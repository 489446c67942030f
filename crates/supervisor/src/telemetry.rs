//! Logs: to stderr, as text or JSON, set up once.
//!
//! The filter is `RHONE_LOG`: levels, and levels of targets (`info`, `rhone=debug,openraft=warn`).
//! Release builds hold nothing below DEBUG.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

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
    let filter: Targets =
        text.parse().map_err(|error| anyhow::anyhow!("RHONE_LOG={text} is not a log filter: {error}"))?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(colours).with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // An error here means that a subscriber is already at work, as in tests.
    let _already = registry().with(filter).with(layer).try_init();
    Ok(())
}
