//! What is shown of a member, by its report.

use rhone_pgctl::wal::WalPosition;

use super::*;
use crate::runtime::witness;

/// The state of a member whose report has just come in.
#[track_caller]
fn check_state(instance: Instance, crash_recovery: bool, expected: State) {
    let mut report = Report { instance, ..witness::report(false) };
    report.server.crash_recovery = crash_recovery;
    let received = Received { at: Moment(0), report };
    assert_eq!(role_and_state(Some(&received), Epoch(0), Moment(0)).1, expected);
}

#[test]
fn crash_recovery_is_told_from_another_start() {
    check_state(Instance::Starting, true, State::CrashRecovery);
    check_state(Instance::Starting, false, State::Starting); // or an older member, which does not say
    let position: WalPosition = "5:0/30".parse().expect("a position");
    let standby =
        Instance::Standby { position, upstream: None, streaming: true, idle_ms: 0, wal_gone: false };
    check_state(standby, false, State::Streaming);
}

/// `standby 0/30 0/20`: its role, where its WAL ends and what it has replayed (`-`: not told), behind a primary.
#[track_caller]
fn check_lag(member: &str, primary: &str, expected: Option<u64>) {
    let words: Vec<&str> = member.split(' ').collect();
    let lsn = |text: &str| (text != "-").then(|| text.parse::<Lsn>().expect("an LSN"));
    let role = match words[0] {
        "primary" => Role::Primary,
        "standby" => Role::Standby,
        "witness" => Role::Witness,
        _ => Role::None,
    };
    let status = MemberStatus {
        role,
        lsn: lsn(words[1]),
        lag_bytes: (role == Role::Primary).then_some(0),
        ..MemberStatus::default()
    };
    assert_eq!(replay_lag(&status, lsn(primary), lsn(words[2])), expected, "{member} behind {primary}");
}

#[test]
fn replay_is_behind_the_primary_or_behind_what_is_here_already() {
    check_lag("standby 0/100 0/20", "0/100", Some(0xe0));
    check_lag("standby 0/100 0/100", "0/180", Some(0x80));
    check_lag("standby 0/180 0/20", "0/100", Some(0x160)); // the primary's report is older
    check_lag("standby 0/100 -", "0/100", None); // an older member does not tell
    check_lag("standby 0/100 0/20", "-", None);
    check_lag("none - -", "0/100", None);
    check_lag("primary 0/100 -", "0/100", Some(0));
    check_lag("witness - -", "0/100", None);
}
