//! ✦ Durations and sizes, always with units.

use std::time::Duration;

/// Reads `500ms`, `1.5s`, `2min`, `1h`, `1d`. A bare number is refused, 0 excepted.
///
/// # Errors
///
/// Says what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [
        ("us", 1),
        ("ms", 1000),
        ("s", 1_000_000),
        ("min", 60_000_000),
        ("h", 3_600_000_000),
        ("d", 86_400_000_000),
    ];
    let micros = parse(text, &units, "a duration has a unit: 500ms, 1.5s, 2min, 1h")?;
    Ok(Duration::from_micros(micros))
}

/// Reads `512`, `10MB`: as [`parse_size`], and a bare number is bytes, as Patroni's URLs have it.
///
/// # Errors
///
/// Says what a size looks like.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    bare(text)
        .map_or_else(|| parse_size(text), |number| number.map_err(|_| "the size is too large".to_owned()))
}

/// Returns a number without a unit.
fn bare(text: &str) -> Option<Result<u64, std::num::ParseIntError>> {
    let text = text.trim();
    (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).then(|| text.parse())
}

/// Says what a bare number of bytes is with a unit; nothing where the text is none, or 0.
pub fn with_unit(text: &str) -> Option<String> {
    let bytes = bare(text)?.ok().filter(|bytes| *bytes > 0)?;
    let units = [("TB", 1_u64 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10), ("B", 1)];
    let (unit, scale) = units.into_iter().find(|(_, scale)| bytes.is_multiple_of(*scale))?;
    Some(format!("{}{unit}", bytes / scale))
}

/// Reads `10MB`, `16MiB`, `1GB` as Postgres does: `kB`, `MB`, `GB`, `TB` are powers of 1024, as are `KiB` and its
/// kin. A bare number is refused, 0 excepted.
///
/// # Errors
///
/// Says what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (k, m, g, t) = (1 << 10, 1 << 20, 1 << 30, 1 << 40);
    let units = [
        ("b", 1),
        ("kb", k),
        ("kib", k),
        ("mb", m),
        ("mib", m),
        ("gb", g),
        ("gib", g),
        ("tb", t),
        ("tib", t),
    ];
    parse(&text.to_lowercase(), &units, "a size has a unit: 512kB, 10MB, 1GB")
}

/// Reads a decimal number and a unit, without floating point.
fn parse(text: &str, units: &[(&str, u64)], advice: &str) -> Result<u64, String> {
    let wrong = || advice.to_owned();
    let text = text.trim();
    if text == "0" {
        return Ok(0);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let unit = unit.trim();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    if fraction.len() > 6 || fraction.contains('.') || (fraction.is_empty() && number.contains('.')) {
        return Err(wrong());
    }
    let mut total = whole.checked_mul(*factor).ok_or("the number is too large")?;
    let mut scale = *factor;
    for digit in fraction.chars().filter_map(|c| c.to_digit(10)) {
        scale /= 10;
        total = total.saturating_add(u64::from(digit) * scale);
    }
    Ok(total)
}

/// Prints bytes for people: `0 B`, `824 B`, `1.5 MiB`.
pub fn print_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, "B");
    for next in units.iter().skip(1) {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use super::{parse_bytes, parse_duration, parse_size, print_size, with_unit};

    #[test]
    fn reads_durations_only_with_units() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("1.5s"), Ok(1500));
        assert_eq!(ms("2 min"), Ok(120_000));
        assert_eq!(ms("0"), Ok(0));
        for wrong in ["500", "5 seconds", "s", "", "-1s", "1.s", "1.2.3s", "9999999999999999h"] {
            assert!(ms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn reads_and_prints_sizes() {
        assert_eq!(parse_size("10MB"), Ok(10 << 20));
        assert_eq!(parse_size("16MiB"), Ok(16 << 20));
        assert_eq!((parse_size("0"), parse_size("512B")), (Ok(0), Ok(512)));
        for wrong in ["10 apples", "1048576", "16", "MB", ""] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!((parse_bytes("1048576"), parse_bytes("1MB")), (Ok(1 << 20), Ok(1 << 20)));
        assert!(parse_bytes("99999999999999999999").is_err());
        for (bytes, expected) in
            [("1048576", "1MB"), ("1500", "1500B"), (" 2048 ", "2kB"), ("3221225472", "3GB")]
        {
            assert_eq!(with_unit(bytes).as_deref(), Some(expected));
        }
        assert_eq!((with_unit("0"), with_unit("1MB"), with_unit("x")), (None, None, None));
        assert_eq!(print_size(0), "0 B");
        assert_eq!(print_size(1_572_864), "1.5 MiB");
    }
}
