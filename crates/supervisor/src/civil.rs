//! ✦ Wall-clock times as people and Patroni's users read them. Reads no clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment by somebody's wall clock, in milliseconds since 1970 UTC.
///
/// For people only: no decision compares these. Printed and serialized as RFC 3339,
/// `2026-11-21T07:13:00.123Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// Takes milliseconds since 1970.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Takes the system's representation; a time before 1970 becomes 1970.
    pub fn from_system(time: std::time::SystemTime) -> Self {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Gives milliseconds since 1970.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// Gives seconds since 1970, as metrics want them.
    #[expect(clippy::cast_precision_loss, reason = "exact for the next 280 000 years")]
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// Prints it as Patroni prints Postgres' `timestamptz`: `2026-11-21 07:13:00.123000+00:00`.
    pub fn patroni(self) -> String {
        let c = Civil::of(self);
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}000+00:00",
            c.year, c.month, c.day, c.hour, c.minute, c.second, c.milli
        )
    }

    /// Prints it to the second, for tables: `2026-11-21 07:13:00`.
    pub fn short(self) -> String {
        let c = Civil::of(self);
        format!("{:04}-{:02}-{:02} {:02}:{:02}:{:02}", c.year, c.month, c.day, c.hour, c.minute, c.second)
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = Civil::of(*self);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            c.year, c.month, c.day, c.hour, c.minute, c.second, c.milli
        )
    }
}

/// A text is not a time as this module prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time like 2026-11-21T07:13:00.123Z")]
pub struct ParseTimeError;

impl WallTime {
    /// Reads an RFC 3339 time as people type it: `2026-11-21T20:00:00Z`, `2026-11-21 20:00:00.5+01:00`.
    ///
    /// # Errors
    /// It is none, or lies before 1970.
    pub fn from_rfc3339(text: &str) -> Result<Self, ParseTimeError> {
        let (time, offset_ms) = if let Some(time) = text.strip_suffix(['Z', 'z']) {
            (time, 0)
        } else {
            let at = text.len().checked_sub(6).filter(|at| text.is_char_boundary(*at));
            let (time, zone) = text.split_at(at.ok_or(ParseTimeError)?);
            let sign = match zone.get(..1) {
                Some("+") => 1,
                Some("-") => -1,
                Some(_) | None => return Err(ParseTimeError),
            };
            let part = |from, to| number(zone, from, to).filter(|_| zone.get(3..4) == Some(":"));
            let (hours, minutes) = part(1, 3).zip(part(4, 6)).ok_or(ParseTimeError)?;
            if hours > 23 || minutes > 59 {
                return Err(ParseTimeError);
            }
            (time, sign * i64::try_from((hours * 60 + minutes) * 60_000).map_err(|_| ParseTimeError)?)
        };
        let (seconds, fraction) = time.split_at_checked(19).ok_or(ParseTimeError)?;
        let digits = match fraction.strip_prefix('.') {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits
            }
            None if fraction.is_empty() => "",
            Some(_) | None => return Err(ParseTimeError),
        };
        let milli: String = digits.chars().chain("000".chars()).take(3).collect();
        if seconds.get(10..11).is_none_or(|t| !matches!(t, "T" | "t" | " ")) {
            return Err(ParseTimeError);
        }
        let shape = seconds.char_indices().all(|(at, c)| match at {
            4 | 7 => c == '-',
            10 => true,
            13 | 16 => c == ':',
            _ => c.is_ascii_digit(),
        });
        let in_range = |from, to, limit| number(seconds, from, to).is_some_and(|value| value <= limit);
        if !shape || !in_range(11, 13, 23) || !in_range(14, 16, 59) || !in_range(17, 19, 60) {
            return Err(ParseTimeError);
        }
        let (date, clock) = (seconds.get(..10).unwrap_or_default(), seconds.get(11..).unwrap_or_default());
        let local: Self = format!("{date}T{clock}.{milli}Z").parse()?;
        // The 31st of a month that has 30 days is none.
        if !local.to_string().starts_with(date) && number(seconds, 17, 19) != Some(60) {
            return Err(ParseTimeError);
        }
        local.0.checked_add_signed(-offset_ms).map(Self).ok_or(ParseTimeError)
    }
}

fn number(text: &str, from: usize, to: usize) -> Option<u64> {
    text.get(from..to)
        .filter(|part| part.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|part| part.parse().ok())
}

impl FromStr for WallTime {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |from: usize, to: usize| {
            text.get(from..to).and_then(|part| part.parse::<u64>().ok()).ok_or(ParseTimeError)
        };
        let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
        if text.len() != 24 || !text.ends_with('Z') || !(1..=12).contains(&month) || !(1..=31).contains(&day)
        {
            return Err(ParseTimeError);
        }
        let seconds = digits(11, 13)? * 3600 + digits(14, 16)? * 60 + digits(17, 19)?;
        let days = days_since_1970(year, month, day).ok_or(ParseTimeError)?;
        Ok(Self((days * 86_400 + seconds) * 1000 + digits(20, 23)?))
    }
}

impl Serialize for WallTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WallTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The parts of a time in UTC.
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    milli: u64,
}

impl Civil {
    /// Splits a time; the arithmetic is the usual one over 400-year eras that begin in March.
    fn of(time: WallTime) -> Self {
        let (seconds, milli) = (time.0 / 1000, time.0 % 1000);
        let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted + 2) / 5 + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
            milli,
        }
    }
}

fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let year_of_era = year % 400;
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (year / 400 * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::WallTime;

    #[track_caller]
    fn check(ms: u64, expected: &str) {
        let time = WallTime::from_ms(ms);
        assert_eq!(time.to_string(), expected);
        assert_eq!(expected.parse(), Ok(time));
    }

    #[test]
    fn reads_times_as_people_type_them() {
        let check = |text: &str, expected: Option<&str>| {
            let found = WallTime::from_rfc3339(text).ok().map(|time| time.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        };
        check("2026-11-21T20:00:00Z", Some("2026-11-21T20:00:00.000Z"));
        check("2026-11-21 20:00:00.5+01:00", Some("2026-11-21T19:00:00.500Z"));
        check("2026-11-21t20:00:00.123456-05:30", Some("2026-11-22T01:30:00.123Z"));
        for wrong in [
            "",
            "tomorrow",
            "2026-11-21",
            "2026-11-21T20:00:00",
            "2026-11-21T20:00Z",
            "2026-02-30T20:00:00Z",
            "2026-11-21T25:00:00Z",
            "2026-11-21T20:61:00Z",
            "2026-11-21T20:00:00.Z",
            "2026-11-21T20:00:00+0100",
            "2026-11-21T20:00:00+24:00",
            "1960-01-01T00:00:00Z",
            "2026-11-21T20:00:00é1:00",
            "20é6-11-21T20:00:00Z",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn prints_and_reads_times_in_utc() {
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_795_245_180_123, "2026-11-21T07:13:00.123Z");
        assert_eq!(WallTime::from_ms(1_795_245_180_123).patroni(), "2026-11-21 07:13:00.123000+00:00");
        assert!("2026-13-21T07:13:00.123Z".parse::<WallTime>().is_err());
    }
}
