//! ✦ How the timings must relate: presets, and the inequalities that keep a lease safe.

pub use rhone_consensus::settings::Timing;

use super::units;

/// The names of the presets.
pub const PRESETS: [&str; 3] = ["default", "fast", "calm"];

/// The single timings, as keys below `timing.`.
pub const SINGLE: [&str; 5] = ["renewal", "suspicion", "lease", "drift", "guard"];

/// Gives a preset: `default` for a wired LAN of small boards, `fast`, or `calm`, which rides out 10 s
/// without a network.
pub fn preset(name: &str) -> Option<Timing> {
    match name {
        "default" => Some(Timing::default()),
        "fast" => Some(Timing {
            renewal_ms: 50,
            suspicion_ms: 250,
            lease_ms: 600,
            drift_permille: 10,
            guard_ms: 100,
        }),
        "calm" => Some(Timing {
            renewal_ms: 500,
            suspicion_ms: 4000,
            lease_ms: 12_000,
            drift_permille: 10,
            guard_ms: 500,
        }),
        _ => None,
    }
}

/// What to do about timings that contradict each other.
pub const HINT: &str = "`timing = \"default\"`, \"fast\" and \"calm\" are sets that fit together";

/// Sets a single timing, named as in [`SINGLE`].
///
/// # Errors
/// The value is no duration (the drift: no percentage), or the name is none of them.
pub fn set_single(timing: &mut Timing, name: &str, text: &str) -> Result<(), String> {
    let ms = |text: &str| {
        let ms = units::parse_duration(text)?.as_millis();
        u32::try_from(ms).map_err(|_| "the duration is too long".to_owned())
    };
    match name {
        "renewal" => timing.renewal_ms = ms(text)?,
        "suspicion" => timing.suspicion_ms = ms(text)?,
        "lease" => timing.lease_ms = ms(text)?,
        "guard" => timing.guard_ms = ms(text)?,
        "drift" => timing.drift_permille = parse_percent(text)?,
        _ => return Err(format!("there is no timing {name}")),
    }
    Ok(())
}

/// Names the preset that these are, if any.
pub fn preset_of(timing: &Timing) -> Option<&'static str> {
    PRESETS.into_iter().find(|name| preset(name).as_ref() == Some(timing))
}

/// Lists every inequality that fails, with its numbers; none: the timings are sound.
pub fn contradictions(timing: &Timing) -> Vec<String> {
    let Timing { renewal_ms: h, suspicion_ms: d, lease_ms: l, drift_permille: rho, guard_ms: g } = *timing;
    let mut found = Vec::new();
    let mut must = |holds: bool, text: String| {
        if !holds {
            found.push(text);
        }
    };
    must(h >= 10, format!("renewal >= 10ms fails: renewal is {h}ms"));
    must(l <= 120_000, format!("lease <= 2min fails: lease is {l}ms"));
    must((1..=100).contains(&rho), format!("0.1% <= drift <= 10% fails: drift is {}%", permille(rho)));
    // The longest freeze that was measured took 30 ms; less than that guards nothing.
    must(g >= 30, format!("guard >= 30ms fails: guard is {g}ms"));
    let (h5, h3) = (h.saturating_mul(5), h.saturating_mul(3));
    must(
        h5 <= d,
        format!(
            "5 * renewal <= suspicion fails: 5 * {h}ms = {h5}ms, suspicion is {d}ms; one lost packet must not be a failover"
        ),
    );
    must(d <= l, format!("suspicion <= lease fails: suspicion is {d}ms, lease is {l}ms"));
    let own = own_lease_ms(timing).saturating_sub(h3);
    must(
        g < own,
        format!(
            "guard < lease * (1 - drift) - 3 * renewal fails: guard is {g}ms, the right side {own}ms; \
             a healthy primary must never come near its guard"
        ),
    );
    found
}

/// Gives `L·(1 − rho)`, rounded down: how long the primary counts on a renewal, in ms.
fn own_lease_ms(timing: &Timing) -> u32 {
    let kept = u64::from(timing.lease_ms) * u64::from(1000_u32.saturating_sub(timing.drift_permille)) / 1000;
    u32::try_from(kept).unwrap_or(u32::MAX)
}

/// Prints thousandths as percent: 10 is `1`, 15 is `1.5`.
fn permille(value: u32) -> String {
    if value.is_multiple_of(10) { (value / 10).to_string() } else { format!("{}.{}", value / 10, value % 10) }
}

/// Reads `1%` or `0.5%` as thousandths.
///
/// # Errors
///
/// Says what a percentage looks like.
fn parse_percent(text: &str) -> Result<u32, String> {
    let wrong = || "write a percentage with at most one decimal: 1%, 0.5%".to_owned();
    let number = text.trim().strip_suffix('%').ok_or_else(wrong)?.trim();
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let tenth: u32 = tenth.parse().ok().filter(|t| *t <= 9).ok_or_else(wrong)?;
    whole.checked_mul(10).and_then(|w| w.checked_add(tenth)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::{
        PRESETS, Timing, contradictions, own_lease_ms, parse_percent, preset, preset_of, set_single,
    };

    #[track_caller]
    fn check(change: fn(&mut Timing), expected: &str) {
        let mut timing = Timing::default();
        change(&mut timing);
        let found = contradictions(&timing).join("; ");
        assert!(found.starts_with(expected) && expected.is_empty() == found.is_empty(), "{found}");
    }

    #[test]
    fn presets_are_sound() {
        for name in PRESETS {
            let timing = preset(name).expect("a preset of that name");
            assert_eq!(preset_of(&timing), Some(name));
            assert_eq!(contradictions(&timing), Vec::<String>::new(), "{name}");
        }
        assert_eq!(preset("hasty"), None);
    }

    #[test]
    fn contradictions_show_the_inequality_that_fails() {
        check(|_| {}, "");
        check(
            |t| t.renewal_ms = 101,
            "5 * renewal <= suspicion fails: 5 * 101ms = 505ms, suspicion is 500ms",
        );
        check(|t| t.suspicion_ms = 1501, "suspicion <= lease fails: suspicion is 1501ms, lease is 1500ms");
        check(
            |t| t.guard_ms = 1185,
            "guard < lease * (1 - drift) - 3 * renewal fails: guard is 1185ms, the right side 1185ms",
        );
        check(|t| t.guard_ms = 1184, "");
        check(|t| t.drift_permille = 0, "0.1% <= drift <= 10% fails: drift is 0%");
        check(|t| t.guard_ms = 0, "guard >= 30ms fails");
    }

    #[test]
    fn the_primary_counts_less_than_the_voters() {
        let timing = Timing::default();
        assert_eq!((own_lease_ms(&timing), timing.aged_ns() / 1_000_000), (1485, 1515));
        assert_eq!(parse_percent("1%"), Ok(10));
        assert_eq!(parse_percent("0.5%"), Ok(5));
        assert!(parse_percent("1").is_err() && parse_percent("0.55%").is_err());
    }

    #[test]
    fn single_timings_carry_their_units() {
        let mut timing = Timing::default();
        for (name, text) in [
            ("renewal", "50ms"),
            ("suspicion", "0.25s"),
            ("lease", "600ms"),
            ("drift", "1%"),
            ("guard", "100ms"),
        ] {
            assert_eq!(set_single(&mut timing, name, text), Ok(()), "{name}");
        }
        assert_eq!(preset_of(&timing), Some("fast"));
        assert!(set_single(&mut timing, "lease", "600").is_err());
        assert!(set_single(&mut timing, "leash", "1s").is_err());
    }
}
