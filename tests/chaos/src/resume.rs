//! A long run that may be broken off: what it has behind it is kept in a file, and the next one goes on from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What a run has behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Behind {
    /// The scenario.
    pub scenario: String,
    /// Seconds of rounds.
    pub seconds: f64,
    /// Rounds.
    pub rounds: u32,
    /// What was violated.
    pub violations: Vec<String>,
}

/// The file, and what stood in it when this run began.
#[derive(Clone, Debug)]
pub struct Resume {
    path: PathBuf,
    before: Behind,
}

impl Resume {
    /// Reads the file; where there is none the run begins anew.
    ///
    /// # Errors
    /// It is another scenario's, or the run in it found something.
    pub fn open(path: &Path, scenario: &str) -> Result<Self> {
        let before = match fs::read_to_string(path) {
            Ok(text) => {
                serde_json::from_str::<Behind>(&text).with_context(|| format!("read {}", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Behind { scenario: scenario.to_owned(), ..Behind::default() }
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let at = path.display();
        ensure!(
            before.scenario == scenario,
            "{at} is of scenario {}: remove it to begin anew",
            before.scenario
        );
        ensure!(
            before.violations.is_empty(),
            "the run in {at} found a violation ({}): remove it to begin anew",
            before.violations.join("; ")
        );
        Ok(Self { path: path.to_owned(), before })
    }

    /// How long the runs before this one went.
    pub fn before(&self) -> Duration {
        Duration::try_from_secs_f64(self.before.seconds).unwrap_or_default()
    }

    /// Keeps what this run has come to.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, gone: Duration, rounds: usize, violations: &[String]) -> Result<()> {
        let behind = Behind {
            scenario: self.before.scenario.clone(),
            seconds: self.before.seconds + gone.as_secs_f64(),
            rounds: self.before.rounds.saturating_add(u32::try_from(rounds).unwrap_or(u32::MAX)),
            violations: violations.to_vec(),
        };
        let text = serde_json::to_string(&behind).context("print JSON")?;
        let next = self.path.with_extension("next");
        fs::write(&next, text).with_context(|| format!("write {}", next.display()))?;
        fs::rename(&next, &self.path).with_context(|| format!("write {}", self.path.display()))
    }

    /// Removes the file: the run is complete.
    pub fn finish(&self) {
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_broken_off_goes_on_and_one_that_found_something_does_not() {
        let folder = std::env::temp_dir().join(format!("{}-resume", crate::cleanup::new_id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("calm.json");
        let first = Resume::open(&path, "calm").expect("none yet");
        assert_eq!(first.before(), Duration::ZERO);
        first.keep(Duration::from_secs(600), 9, &[]).expect("kept");
        let second = Resume::open(&path, "calm").expect("ten minutes");
        assert_eq!(second.before(), Duration::from_secs(600));
        let other = Resume::open(&path, "all").expect_err("another scenario's").to_string();
        assert!(other.contains("is of scenario calm"), "{other}");
        second.keep(Duration::from_secs(1), 1, &["it moved".to_owned()]).expect("kept");
        let found = Resume::open(&path, "calm").expect_err("a violation").to_string();
        assert!(found.contains("found a violation (it moved)"), "{found}");
        second.finish();
        assert_eq!(Resume::open(&path, "calm").expect("anew").before(), Duration::ZERO);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
