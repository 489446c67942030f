//! `rhone run`: the way into the runtime.

use super::args::Global;
use super::check;
use super::exit::{CliError, Exit};
use crate::runtime::generation::Superseded;
use crate::telemetry::{self, LogFormat};

/// Checks the configuration, sets up logs, and runs the supervisor until it is told to stop.
pub(super) async fn run(global: &Global, format: LogFormat) -> Result<(), CliError> {
    let config = check::checked(global)?;
    let filter = std::env::var("RHONE_LOG").ok();
    telemetry::init(format, filter.as_deref())
        .map_err(|error| CliError::new(Exit::Usage, format!("{error:#}")))?;
    check::warn(&crate::config::environment(), |warning| tracing::warn!("{warning}"));
    for warning in crate::config::advice(&config) {
        tracing::warn!(hint = warning.hint.unwrap_or_default(), "{}", warning.message);
    }
    crate::run::run(config).await.map_err(|error| {
        // systemd starts again what ends otherwise.
        let needs_a_person = error.downcast_ref::<Superseded>().is_some();
        if needs_a_person { CliError::new(Exit::Usage, format!("{error:#}")) } else { error.into() }
    })
}
