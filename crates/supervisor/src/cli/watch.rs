//! What a `--watch` says while no member answers: the error once, since when, and when it is over.

use std::time::Duration;

use super::exit::CliError;
use super::terminal::Terminal;
use crate::civil::WallTime;
use crate::runtime::clock::{BootTime, Clock, wall_time};

/// A time without answers.
#[derive(Debug, Default)]
pub(super) struct Outage(Option<(BootTime, WallTime)>);

/// What is to be told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It begins.
    Begins,
    /// It goes on, for that long.
    Lasts(Duration),
}

impl Outage {
    /// Tells that a look failed. On a terminal the screen shows it with how long it lasts; elsewhere it is a line, once.
    pub(super) fn failed(&mut self, error: &CliError, terminal: &mut Terminal) {
        let (told, since) = self.note(Clock.now(), WallTime::from_ms(wall_time()));
        if terminal.interactive() {
            let lasts = if let Told::Lasts(time) = told { time } else { Duration::ZERO };
            terminal.data("\x1b[H\x1b[J");
            terminal.error(error);
            terminal.talk(&format!("for {} s, since {} UTC", lasts.as_secs(), since.short()));
        } else if told == Told::Begins {
            terminal.error(error);
            terminal.talk(&format!("since {} UTC; asks on, and says when it is answered", since.short()));
        }
    }

    /// Tells that a look was answered, where the one before was not.
    pub(super) fn answered(&mut self, terminal: &mut Terminal) {
        if let Some(lasted) = self.over(Clock.now()).filter(|_| !terminal.interactive()) {
            terminal.talk(&format!("answered again after {} s", lasted.as_secs()));
        }
    }

    fn note(&mut self, now: BootTime, at: WallTime) -> (Told, WallTime) {
        if let Some((begun, since)) = self.0 {
            return (Told::Lasts(now.saturating_since(begun)), since);
        }
        self.0 = Some((now, at));
        (Told::Begins, at)
    }

    fn over(&mut self, now: BootTime) -> Option<Duration> {
        self.0.take().map(|(begun, _)| now.saturating_since(begun))
    }
}

#[cfg(test)]
mod tests {
    use super::super::exit::Exit;
    use super::*;

    #[test]
    fn an_outage_begins_once_lasts_and_is_over_once() {
        let (at, mut outage) =
            (|seconds: u64| BootTime::from_nanos(seconds * 1_000_000_000), Outage::default());
        let (first, later) = (WallTime::from_ms(1000), WallTime::from_ms(9000));
        assert_eq!(outage.over(at(1)), None);
        assert_eq!(outage.note(at(2), first), (Told::Begins, first));
        assert_eq!(outage.note(at(5), later), (Told::Lasts(Duration::from_secs(3)), first));
        assert_eq!(outage.over(at(6)), Some(Duration::from_secs(4)));
        assert_eq!(outage.over(at(7)), None);
        assert_eq!(outage.note(at(8), later), (Told::Begins, later));
    }

    #[test]
    fn what_is_no_terminal_gets_each_outage_as_one_error_and_one_end() {
        let (mut terminal, out, err) = Terminal::captured();
        let mut outage = Outage::default();
        let error = CliError::new(Exit::NoQuorum, "no member answers").hint("start one");
        for _ in 0..3 {
            outage.failed(&error, &mut terminal);
        }
        outage.answered(&mut terminal);
        outage.answered(&mut terminal);
        let (out, err) = (out.text(), err.text());
        let lines: Vec<&str> = err.lines().collect();
        let [error, hint, since, again] = lines[..] else { panic!("{err}") };
        assert_eq!((error, hint, out.as_str()), ("error: no member answers", "hint: start one", ""));
        assert!(since.ends_with(" UTC; asks on, and says when it is answered"), "{since}");
        assert!(again.starts_with("answered again after "), "{again}");
    }
}
