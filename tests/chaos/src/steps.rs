//! Where the time of a failover goes, by what the members' logs say and the first client notices.

use std::time::Duration;

use serde::Serialize;

use crate::stats::{Sample, table};

/// What a log says when a step is over, in the order of the steps.
const ENDS: [(&str, &str); 5] = [
    ("Raft has a leader", "raft leadership changed leading=true"),
    ("an epoch is opened", "outcome=Prepared("),
    ("it is granted", "outcome=Done decision=grant epoch"),
    ("promoted", "done effect=\"promote\""),
    ("open to clients", "done effect=\"open_gate\""),
];

/// The last step is a client's.
const LAST: &str = "first acknowledgement";

/// A member may say a moment later that a step is over than a client makes use of it.
const LATE: Duration = Duration::from_secs(2);

/// How long each step took, in order; the sum is the time from the fault to the first acknowledgement.
type Lengths = [Duration; ENDS.len() + 1];

/// One step of a fault's failovers.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The fault.
    pub fault: &'static str,
    /// What ends the step.
    pub until: &'static str,
    /// In how many failovers.
    pub n: usize,
    /// Seconds: median, and longest.
    pub seconds: [f64; 2],
    /// Its median in percent of the sum of all steps' medians.
    pub percent: f64,
}

/// Reads a log line's time, since the Unix epoch: `2026-11-22T03:28:52.284290Z  INFO …`.
pub(crate) fn time_of(line: &str) -> Option<Duration> {
    let (date, rest) = line.split_once('T')?;
    let (time, _) = rest.split_once('Z')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    // Years begin in March: February's length is the last thing that differs.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = (year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day)
        .checked_sub(719_469)?;
    let mut time = time.split(':');
    let (hour, minute) = (time.next()?.parse::<u64>().ok()?, time.next()?.parse::<u64>().ok()?);
    let second = time.next()?.parse::<f64>().ok().filter(|second| (0.0..61.0).contains(second))?;
    Some(Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60) + Duration::from_secs_f64(second))
}

/// Finds the steps between `fault` and `acknowledged`, both since the Unix epoch, in the logs of all members.
///
/// A step that nothing says the end of took no time; without an opened epoch there was no failover, and no steps.
pub fn steps<'a>(
    logs: impl IntoIterator<Item = &'a str>,
    fault: Duration,
    acknowledged: Duration,
) -> Option<Lengths> {
    let mut lines: Vec<(Duration, &str)> = logs
        .into_iter()
        .flat_map(str::lines)
        .filter_map(|line| Some((time_of(line)?, line)))
        .filter(|(at, _)| (fault..=acknowledged + LATE).contains(at))
        .collect();
    lines.sort_by_key(|(at, _)| *at);
    let first = |text: &str| lines.iter().find(|(_, line)| line.contains(text)).map(|(at, _)| *at);
    let opened = first(ENDS[1].1).filter(|at| *at <= acknowledged)?;
    let mut lengths = Lengths::default();
    let mut before = fault;
    for (length, (step, text)) in lengths.iter_mut().zip(ENDS) {
        let end = if step == ENDS[0].0 {
            let led = lines.iter().rfind(|(at, line)| *at <= opened && line.contains(text));
            led.map(|(at, _)| *at)
        } else {
            first(text)
        };
        let end = end.unwrap_or(before).clamp(before, acknowledged.max(before));
        *length = end.saturating_sub(before);
        before = end;
    }
    if let Some(last) = lengths.last_mut() {
        *last = acknowledged.saturating_sub(before);
    }
    Some(lengths)
}

/// Sums up what [`steps`] found in each of a fault's failovers.
pub fn sum_up(fault: &'static str, found: &[Lengths]) -> Vec<Step> {
    let names = ENDS.iter().map(|(name, _)| *name).chain([LAST]);
    let samples = names.enumerate().map(|(index, until)| {
        let mut sample = Sample::default();
        found.iter().filter_map(|lengths| lengths.get(index)).for_each(|length| sample.push(*length));
        (until, sample)
    });
    let samples: Vec<_> = samples.filter(|(_, sample)| sample.count() > 0).collect();
    let median = |sample: &Sample| sample.percentile(50).unwrap_or_default().as_secs_f64();
    let sum: f64 = samples.iter().map(|(_, sample)| median(sample)).sum();
    let step = |(until, sample): &(&'static str, Sample)| Step {
        fault,
        until,
        n: sample.count(),
        seconds: [median(sample), sample.worst().unwrap_or_default().as_secs_f64()],
        percent: median(sample) / sum.max(f64::MIN_POSITIVE) * 100.0,
    };
    samples.iter().map(step).collect()
}

/// The steps as a person reads them.
pub fn text(steps: &[Step]) -> String {
    let head = ["FAULT", "UNTIL", "N", "MEDIAN", "WORST", "SHARE"].map(str::to_owned).to_vec();
    let rows = steps.iter().map(|step| {
        let [median, worst] = step.seconds;
        vec![
            step.fault.to_owned(),
            step.until.to_owned(),
            step.n.to_string(),
            format!("{median:.3}"),
            format!("{worst:.3}"),
            format!("{:.0} %", step.percent),
        ]
    });
    let rows: Vec<_> = [head].into_iter().chain(rows).collect();
    format!(
        "\nwhere the seconds between a fault and the next acknowledgement go, by the members' logs\n{}",
        table(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-22T03:28:52.000000Z  INFO raft leadership changed leading=true term=1
2026-11-22T03:29:05.400000Z  INFO raft leadership changed leading=true term=2
2026-11-22T03:29:05.500000Z  INFO decided index=11 outcome=Prepared(Epoch(11)) decision=open an epoch: silence
2026-11-22T03:29:05.550000Z  INFO decided index=12 outcome=Done decision=grant epoch 11 to 5fd431815c637b04
no line of ours
2026-11-22T03:29:05.800000Z  INFO done effect=\"promote\" epoch=11
2026-11-22T03:29:09.000000Z  INFO raft leadership changed leading=true term=3
";
    const OTHER: &str = "2026-11-22T03:29:05.900000Z  INFO done effect=\"open_gate\" epoch=11\n";

    fn at(second: f64) -> Duration {
        time_of("2026-11-22T03:29:00.000000Z").unwrap() + Duration::from_secs_f64(second)
    }

    #[test]
    fn lines_say_their_time() {
        assert_eq!(time_of("1970-01-01T00:00:01.500000Z x"), Some(Duration::from_millis(1500)));
        assert_eq!(time_of("2024-02-29T00:00:00Z"), Some(Duration::from_secs(1_709_164_800)));
        assert_eq!(
            time_of("2026-11-22T03:28:52.284290Z"),
            Some(Duration::from_micros(1_795_318_132_284_290))
        );
        assert_eq!(time_of("LOG:  Time to go"), None);
    }

    #[test]
    fn the_steps_lie_between_fault_and_acknowledgement() {
        let found = steps([OTHER, LOG], at(5.0), at(6.0)).unwrap();
        assert_eq!(found.map(|length| length.as_millis()), [400, 100, 50, 250, 100, 100]);
        assert_eq!(steps([OTHER, LOG], at(6.0), at(10.0)), None);
        // A client writes before the member says that it is promoted.
        let found = steps([OTHER, LOG], at(5.0), at(5.7)).unwrap();
        assert_eq!(found.map(|length| length.as_millis()), [400, 100, 50, 150, 0, 0]);
        // Raft's leader stays: that step takes no time.
        let found = steps([OTHER, LOG], at(5.45), at(6.0)).unwrap();
        assert_eq!(found.map(|length| length.as_millis()), [0, 50, 50, 250, 100, 100]);
    }

    #[test]
    fn medians_have_their_share() {
        let found = [steps([OTHER, LOG], at(5.0), at(6.0)).unwrap()];
        let steps = sum_up("power loss", &found);
        let shares: Vec<_> = steps.iter().map(|step| (step.n, step.percent.round())).collect();
        assert_eq!(shares, [(1, 40.0), (1, 10.0), (1, 5.0), (1, 25.0), (1, 10.0), (1, 10.0)]);
    }
}
