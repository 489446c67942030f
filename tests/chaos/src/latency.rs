//! Latency on a link, by a program that holds its frames back: there is no netem in every kernel.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::binary;
use crate::process::{self, Owned, Signal};

const PROGRAM: &str = include_str!("latency.py");

/// Why there can be no latency here, `None` when there can.
pub fn impossible() -> Option<&'static str> {
    binary::program("python3").is_none().then_some("no python3 here: frames cannot be delayed")
}

/// Frames that wait between two interfaces, until it is stopped. It ends with this process, too.
#[derive(Debug)]
pub struct Latency {
    process: Owned,
}

impl Latency {
    /// Passes frames between `one` and `other` in a network namespace, each `delay` later give or take `jitter`.
    pub fn start(
        namespace: &Path,
        one: &str,
        other: &str,
        delay: Duration,
        jitter: Duration,
    ) -> Result<Self> {
        let python = binary::program("python3").context("find python3")?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", namespace.display()))
            .arg(python)
            .args(["-c", PROGRAM, one, other])
            .args([delay.as_millis().to_string(), jitter.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Owned::spawn(&mut command)?;
        let mut line = String::new();
        BufReader::new(process.stdout().context("its output")?).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the program that delays frames did not begin: {line:?}");
        Ok(Self { process })
    }

    /// Stops it; frames that wait are lost.
    pub fn stop(mut self) {
        process::signal(self.process.pid(), Signal::KILL);
        self.process.wait(Duration::from_secs(10));
    }
}
