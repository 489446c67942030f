//! ✦ The status page's line of time: who was primary when, and when nobody was.

use std::fmt::Write;

use super::page::escape;
use crate::civil::WallTime;
use crate::status::HistoryEntry;

/// A stretch of time, in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
struct Stretch<'a> {
    from: u64,
    until: u64,
    /// Who was primary; none: nobody was.
    primary: Option<&'a str>,
}

/// Cuts the time from the first of these changes until `now` where the primary changed.
///
/// Times are those of the members that decided: where their clocks disagree a stretch is empty, and never negative.
fn stretches(entries: &[HistoryEntry], now: WallTime) -> Vec<Stretch<'_>> {
    let mut found: Vec<Stretch<'_>> = Vec::new();
    for entry in entries {
        let Some(time) = entry.time.map(WallTime::as_ms) else { continue };
        let gap = entry.seconds_without_primary.unwrap_or(0.0).clamp(0.0, 1e9);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the limits above"
        )]
        let gap = (gap * 1000.0) as u64;
        let since =
            found.last().map_or(time.saturating_sub(gap), |last| last.from.max(time.saturating_sub(gap)));
        if let Some(last) = found.last_mut() {
            last.until = since;
        }
        if gap > 0 {
            found.push(Stretch { from: since, until: time.max(since), primary: None });
        }
        found.push(Stretch { from: time.max(since), until: time.max(since), primary: entry.to.as_deref() });
    }
    if let Some(last) = found.last_mut() {
        last.until = now.as_ms().max(last.from);
    }
    found
}

/// Draws it. Whoever cannot see it has the table below.
pub(super) fn draw(out: &mut String, entries: &[HistoryEntry], now: WallTime) {
    let stretches = stretches(entries, now);
    let (Some(first), Some(_)) = (stretches.first(), stretches.get(1)) else { return };
    // Writing to a String cannot fail.
    let _ok = write!(out, "<div class=time aria-hidden=true>");
    for stretch in &stretches {
        let seconds = stretch.until.saturating_sub(stretch.from) / 1000;
        let (class, name) = match stretch.primary {
            Some(name) => ("", escape(name)),
            None => (" class=gap", "no primary".to_owned()),
        };
        let from = WallTime::from_ms(stretch.from).short();
        let until = WallTime::from_ms(stretch.until).short();
        let shown = if class.is_empty() { name.as_str() } else { "" };
        let _ok = write!(
            out,
            "<i{class} style=\"flex-grow:{seconds}\" title=\"{name}, {from} to {until}\">{shown}</i>"
        );
    }
    let _ok = write!(
        out,
        "</div><p class=\"soft ends\" aria-hidden=true><span>{}</span><span>now</span></p>",
        WallTime::from_ms(first.from).short()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(time: u64, to: Option<&str>, gap: f64) -> HistoryEntry {
        HistoryEntry {
            time: Some(WallTime::from_ms(time)),
            to: to.map(str::to_owned),
            seconds_without_primary: Some(gap),
            ..HistoryEntry::default()
        }
    }

    #[track_caller]
    fn check(entries: &[HistoryEntry], now: u64, expected: &[(u64, u64, Option<&str>)]) {
        let found = stretches(entries, WallTime::from_ms(now));
        let found: Vec<_> = found.iter().map(|s| (s.from, s.until, s.primary)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn time_is_cut_where_the_primary_changed() {
        check(&[], 9000, &[]);
        check(
            &[entry(10_000, Some("a"), 0.0), entry(20_000, Some("b"), 1.5)],
            30_000,
            &[(10_000, 18_500, Some("a")), (18_500, 20_000, None), (20_000, 30_000, Some("b"))],
        );
        // The second one's clock is behind, and so is the one here.
        check(
            &[entry(10_000, Some("a"), 0.0), entry(9000, Some("b"), 0.5)],
            8000,
            &[(10_000, 10_000, Some("a")), (10_000, 10_000, None), (10_000, 10_000, Some("b"))],
        );
    }

    #[test]
    fn names_are_escaped() {
        let mut out = String::new();
        draw(&mut out, &[entry(10_000, Some("<b>"), 1.0)], WallTime::from_ms(20_000));
        assert!(out.contains("&lt;b&gt;, 1970-01-01 00:00:10") && !out.contains("<b>"), "{out}");
    }
}
