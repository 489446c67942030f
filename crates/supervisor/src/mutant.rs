//! A rule that a test build leaves out, to see that chaos notices (decision 0051).
//!
//! Without the feature `mutants`, which no default and no release build can have, [`left_out`] is the constant `false`
//! and nothing of this is in the binary. With it, `RHONE_MUTANT` names the rule.

/// A rule that may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The guardian freezes Postgres when the lease has ended.
    Freeze,
    /// A voter renews nobody below the Prepare that its log holds.
    RefusesOlder,
    /// A voter that has just started does not count as aged.
    Quarantine,
    /// The lease counts from the sending of a renewal, not from its answer.
    FromSending,
    /// An asynchronous Grant waits until the last owner's lease has aged.
    LeaseAge,
    /// Those who were revoked cover every policy.
    Cover,
    /// Who is granted has as much as any other.
    MostWal,
    /// An asynchronous failover leaves no more behind than the limit.
    LagGate,
    /// Only a silence that is long enough is suspicious.
    Patience,
    /// Postgres is told whom commits wait for.
    Names,
    /// A policy is in force when every walsender uses it.
    Settle,
    /// The gate opens when the epoch's marker is durable.
    Marker,
    /// A Revoke waits until the walreceiver is gone.
    CutsUpstream,
    /// An effect looks once more whether its epoch is the newest.
    Recheck,
    /// A copy counts from where it is complete.
    Floor,
}

/// Returns whether that rule is left out.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn left_out(_: Rule) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub(crate) use with::left_out;
#[cfg(feature = "mutants")]
pub use with::say;

#[cfg(feature = "mutants")]
mod with {
    use std::sync::OnceLock;

    use super::Rule;

    #[cfg(not(debug_assertions))]
    compile_error!("the feature `mutants` leaves rules of safety out: it is for debug builds of tests only");

    const ALL: [Rule; 15] = [
        Rule::Freeze,
        Rule::RefusesOlder,
        Rule::Quarantine,
        Rule::FromSending,
        Rule::LeaseAge,
        Rule::Cover,
        Rule::MostWal,
        Rule::LagGate,
        Rule::Patience,
        Rule::Names,
        Rule::Settle,
        Rule::Marker,
        Rule::CutsUpstream,
        Rule::Recheck,
        Rule::Floor,
    ];

    static LEFT_OUT: OnceLock<Option<Rule>> = OnceLock::new();

    #[allow(clippy::print_stderr, reason = "nobody is to overlook it")]
    fn chosen() -> Option<Rule> {
        let name = std::env::var("RHONE_MUTANT").ok()?;
        let rule = ALL.into_iter().find(|rule| format!("{rule:?}") == name);
        eprintln!("MUTANT: RHONE_MUTANT={name}: this build obeys it, and leaves {rule:?} out");
        rule
    }

    pub(crate) fn left_out(rule: Rule) -> bool {
        *LEFT_OUT.get_or_init(chosen) == Some(rule)
    }

    /// Says on standard error which rule is left out, before anything else is done.
    #[allow(clippy::print_stderr, reason = "nobody is to overlook it")]
    pub fn say() {
        match LEFT_OUT.get_or_init(chosen) {
            Some(rule) => {
                eprintln!("MUTANT: this binary leaves the rule {rule:?} out. IT LOSES DATA. Never use it.")
            }
            None => eprintln!("MUTANT: RHONE_MUTANT names none of {ALL:?}; nothing is left out"),
        }
    }
}
