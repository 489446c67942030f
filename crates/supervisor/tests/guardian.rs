//! The guardian against real processes: what freezes, what dies, what goes on, and how fast.
//!
//! Needs Postgres (`RHONE_PG_BIN`, or version 15 in its usual place) and says so where there is none.
//! Each test has its own guardian, state directory and instance, and leaves nothing behind.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unused_self,
    reason = "tests print what they measure, and a rig reads better with methods"
)]

mod guardian_harness;

use std::io::Read;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guardian_harness::{Rig, children_of, eventually, has_cgroups, process_state, send_signal};
use rhone::guardian::{
    Backend, Cause, Event, ExitReport, FenceChoice, GuardState, Guardian, GuardianError, LastResort, Lease,
    PostmasterSignal, Refusal, StartStage, emergency,
};
use rhone::runtime::clock::{BootTime, Clock};
use rustix::process::Signal;

/// Runs a test with each backend that is possible here.
macro_rules! with_each_fence {
    ($($name:ident),* $(,)?) => {
        mod cgroup {
            $(#[tokio::test]
            async fn $name() {
                if super::has_cgroups() {
                    super::run(super::$name, super::FenceChoice::Auto).await;
                }
            })*
        }
        mod signals {
            $(#[tokio::test]
            async fn $name() {
                super::run(super::$name, super::FenceChoice::Signals).await;
            })*
        }
    };
}

async fn run(test: impl AsyncFn(Rig), fence: FenceChoice) {
    if let Some(rig) = Rig::new(fence) {
        test(rig).await;
    }
}

with_each_fence! {
    the_end_of_a_lease_freezes_a_busy_backend_and_a_renewal_thaws_it,
    a_kill_leaves_no_process,
    a_dead_supervisor_changes_nothing_for_a_standby,
    a_dead_supervisors_primary_is_frozen_and_then_killed,
    when_the_guardian_dies_the_postmaster_dies_and_the_rest_can_be_killed,
    a_crash_of_the_postmaster_is_seen_at_once,
    freezing_is_fast_each_time,
}

async fn the_end_of_a_lease_freezes_a_busy_backend_and_a_renewal_thaws_it(rig: Rig) {
    let guardian = rig.guardian().await;
    let mut events = guardian.events();
    rig.renew(&guardian, 7, Duration::from_secs(60));
    rig.start(&guardian).await;
    let writer = rig.busy_writer().await;

    guardian.page().set_guard(Duration::from_secs(600));
    let deadline = rig.renew(&guardian, 7, Duration::from_millis(300));
    guardian.kick().await.expect("kick");
    let Event::Frozen(frozen) = rig.next(&mut events, |event| matches!(event, Event::Frozen(_))).await else {
        unreachable!("that is what was waited for");
    };
    assert!(frozen.verified, "{frozen:?}");
    assert_eq!(frozen.cause, Cause::LeaseEnded);
    assert!(frozen.at() >= deadline, "not before its end");
    assert_eq!(guardian.page().state(), GuardState::Frozen);
    assert_eq!(guardian.page().frozen_at(), Some(frozen.at()));
    assert_eq!(guardian.page().fences(), 1);

    // A renewal that was sent before the freeze does not thaw; nor does one of another epoch.
    let old = frozen.at().saturating_sub(Duration::from_nanos(1));
    guardian.page().set_lease(7, old, Clock.now().saturating_add(Duration::from_secs(60)));
    assert_eq!(guardian.kick().await.expect("kick").state, GuardState::Frozen);
    rig.renew(&guardian, 8, Duration::from_secs(60));
    assert_eq!(guardian.kick().await.expect("kick").state, GuardState::Frozen);
    let refused = guardian.thaw(8, Clock.now()).await.expect_err("another epoch");
    assert!(matches!(refused, GuardianError::Refused { refusal: Refusal::NotRenewed, .. }), "{refused:?}");
    drop(guardian);

    // The epoch may not go back to 7 any more: that instance is only good for killing.
    let guardian = rig.guardian().await;
    rig.renew(&guardian, 7, Duration::from_secs(60));
    assert_eq!(guardian.kick().await.expect("kick").state, GuardState::Frozen);
    guardian.kill().await.expect("kill");
    drop(writer);

    // Once more, with the right renewal.
    let mut events = guardian.events();
    rig.renew(&guardian, 9, Duration::from_secs(60));
    rig.start(&guardian).await;
    let writer = rig.busy_writer().await;
    guardian.page().set_guard(Duration::from_nanos(1));
    let deadline = rig.renew(&guardian, 9, Duration::from_millis(300));
    guardian.kick().await.expect("kick");
    let Event::Frozen(frozen) = rig.next(&mut events, |event| matches!(event, Event::Frozen(_))).await else {
        unreachable!("that is what was waited for");
    };
    eventually("it stays frozen for a while", || {
        let now = Clock.now();
        let alive = now.saturating_sub(guardian.page().alive_age(now));
        alive.saturating_since(frozen.at()) > Duration::from_millis(300)
    })
    .await;
    let thaw = rig.renew(&guardian, 9, Duration::from_secs(60));
    rig.next(&mut events, |event| matches!(event, Event::Thawed)).await;
    println!("thawed {:?} before the end of its new lease", thaw.saturating_since(Clock.now()));
    let last_commit = writer.finish_after_gap(deadline).await;
    let late = guardian.page().late_fence_max();
    println!("last commit {last_commit} ns after the deadline; confirmed frozen at most {late:?} after it");
    assert!(last_commit < 1_000_000_000, "{last_commit} ns");
    assert_eq!(guardian.page().fences(), 2);
    assert_eq!(guardian.page().freezes(), 2);
    assert_eq!(guardian.page().late_fences(), 1, "the second, by the guard that was set for it");
    guardian.kill().await.expect("kill");
}

async fn a_kill_leaves_no_process(rig: Rig) {
    let guardian = rig.guardian().await;
    let mut events = guardian.events();
    guardian.page().clear_lease();
    let postmaster = rig.start(&guardian).await;
    let writer = rig.busy_writer().await;
    let busy = writer.backend();
    let session = rig.connect().await;
    let stopped = session.backend();
    send_signal(stopped, Signal::STOP);
    eventually("the backend stops", || process_state(stopped) == Some('T')).await;
    let all = children_of(postmaster);
    assert!(all.contains(&busy) && all.contains(&stopped), "{all:?}");

    let begun = Clock.now();
    guardian.kill().await.expect("kill");
    println!("killed in {:?}", Clock.now().saturating_since(begun));
    for pid in all.into_iter().chain([postmaster]) {
        assert_eq!(process_state(pid), None, "process {pid} is left");
    }
    assert_eq!(guardian.page().state(), GuardState::Dead);
    assert_eq!(guardian.page().postmaster(), None);
    let killed = rig.next(&mut events, |event| matches!(event, Event::Killed { .. })).await;
    assert_eq!(killed, Event::Killed { cause: Cause::Command, postmaster: ExitReport::Signaled(9) });
    assert_eq!(guardian.status().await.expect("status").cgroup, None);
    guardian.kill().await.expect("there is nothing left to kill");
    // And it can start again.
    rig.start(&guardian).await;
    guardian.kill().await.expect("kill");
}

async fn a_dead_supervisor_changes_nothing_for_a_standby(rig: Rig) {
    let supervisor = rig.supervisor("standby").await;
    let watcher = rig.observed_page();
    drop(supervisor);
    let dead = Clock.now();
    // Any number of looks at the page later it still runs.
    eventually("the guardian looks at the page six times", || {
        watcher.alive().saturating_since(dead) > Duration::from_millis(1200)
    })
    .await;
    let guardian = rig.guardian().await;
    assert!(guardian.adopted());
    assert_eq!(guardian.page().state(), GuardState::Running);
    assert_eq!(guardian.kick().await.expect("kick").lease(), Lease::NotNeeded);
    rig.connect().await.check().await;
    guardian.kill().await.expect("kill");
}

async fn a_dead_supervisors_primary_is_frozen_and_then_killed(rig: Rig) {
    let supervisor = rig.supervisor("primary").await;
    let writer = rig.busy_writer().await;
    let page = rig.observed_page();
    let postmaster = page.postmaster();
    drop(supervisor);
    let deadline = page.deadline();
    eventually("it is frozen", || page.state() == GuardState::Frozen as u64).await;
    let frozen = page.frozen_at();
    println!("frozen {:?} after the deadline", frozen.saturating_since(deadline));
    assert!(frozen >= deadline);
    let all = children_of(postmaster);
    assert!(all.contains(&writer.backend()));
    eventually("it is killed", || page.state() == GuardState::Dead as u64).await;
    let after = Clock.now().saturating_since(frozen);
    println!("killed {after:?} after the freeze");
    assert!(after >= rhone::guardian::FROZEN_LIMIT);
    for pid in all.into_iter().chain([postmaster]) {
        assert_eq!(process_state(pid), None, "process {pid} is left");
    }
    let guardian = rig.guardian().await;
    let status = guardian.status().await.expect("status");
    assert_eq!(status.last_exit, Some(ExitReport::Signaled(9)));
}

async fn when_the_guardian_dies_the_postmaster_dies_and_the_rest_can_be_killed(rig: Rig) {
    let guardian = rig.guardian().await;
    guardian.page().clear_lease();
    let postmaster = rig.start(&guardian).await;
    let writer = rig.busy_writer().await;
    let session = rig.connect().await;
    send_signal(session.backend(), Signal::STOP);
    let cgroup = guardian.cgroup();
    assert_eq!(cgroup, guardian.status().await.expect("status").cgroup);
    assert_eq!(cgroup.is_some(), rig.fence() == FenceChoice::Auto);

    // A guardian that does not run is seen by its page.
    send_signal(guardian.pid(), Signal::STOP);
    eventually("its page gets old", || guardian.page().alive_age(Clock.now()) > Duration::from_millis(600))
        .await;
    let hung = guardian.kick().await.expect_err("it does not run");
    assert!(matches!(hung, GuardianError::Hung { .. }), "{hung:?}");
    send_signal(guardian.pid(), Signal::CONT);
    eventually("its page is fresh", || guardian.page().alive_age(Clock.now()) < Duration::from_millis(250))
        .await;

    send_signal(guardian.pid(), Signal::KILL);
    guardian.died().await;
    eventually("the postmaster dies with it", || matches!(process_state(postmaster), None | Some('Z'))).await;
    rig.reap();
    let stopped = process_state(session.backend());
    println!("left: busy backend {:?}, stopped one {stopped:?}", process_state(writer.backend()));
    assert_eq!(stopped, Some('T'), "nobody kills what does not run");

    // A new guardian starts nothing beside it. (One with cgroups would kill it at its own start.)
    if rig.fence() == FenceChoice::Signals {
        let successor = rig.guardian().await;
        assert!(!successor.adopted());
        successor.page().clear_lease();
        let refused = successor.start(rig.spec()).await.expect_err("something is left");
        assert!(
            matches!(refused, GuardianError::Refused { refusal: Refusal::LeftOver { .. }, .. }),
            "{refused:?}"
        );
    }
    let (data, limit) = (rig.data_dir(), Duration::from_secs(10));
    let frozen = emergency::freeze_instance(&data, cgroup.as_deref(), limit).expect("freeze");
    let killed = emergency::kill_instance(&data, cgroup.as_deref(), limit).expect("kill");
    println!("emergency: froze {frozen}, killed {killed}");
    rig.reap();
    for pid in [session.backend(), writer.backend(), postmaster] {
        assert_eq!(process_state(pid), None, "process {pid} is left");
    }
    assert_eq!(emergency::kill_instance(&data, cgroup.as_deref(), limit).expect("again"), 0);
    let successor = rig.guardian().await;
    successor.page().clear_lease();
    rig.start(&successor).await;
    successor.kill().await.expect("kill");
}

async fn a_crash_of_the_postmaster_is_seen_at_once(rig: Rig) {
    let guardian = rig.guardian().await;
    let mut events = guardian.events();
    rig.renew(&guardian, 1, Duration::from_secs(60));
    let postmaster = rig.start(&guardian).await;
    let writer = rig.busy_writer().await;
    let begun = Clock.now();
    send_signal(postmaster, Signal::KILL);
    let event = rig.next(&mut events, |event| matches!(event, Event::Exited(_))).await;
    println!("the crash was seen, and everything gone, after {:?}", Clock.now().saturating_since(begun));
    assert_eq!(event, Event::Exited(ExitReport::Signaled(9)));
    assert_eq!(process_state(writer.backend()), None, "the busy backend is gone");

    rig.start(&guardian).await;
    guardian.signal(PostmasterSignal::FastStop).await.expect("signal");
    let event = rig.next(&mut events, |event| matches!(event, Event::Exited(_))).await;
    assert_eq!(event, Event::Exited(ExitReport::Exited(0)));
    let refused = guardian.signal(PostmasterSignal::Reload).await.expect_err("nothing runs");
    assert!(matches!(refused, GuardianError::Refused { refusal: Refusal::NoInstance, .. }), "{refused:?}");
}

async fn freezing_is_fast_each_time(rig: Rig) {
    let guardian = rig.guardian().await;
    let mut events = guardian.events();
    rig.renew(&guardian, 1, Duration::from_secs(60));
    rig.start(&guardian).await;
    let writer = rig.busy_writer().await;
    let (mut late, mut took) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let deadline = rig.renew(&guardian, 1, Duration::from_millis(40));
        guardian.kick().await.expect("kick");
        let Event::Frozen(frozen) = rig.next(&mut events, |event| matches!(event, Event::Frozen(_))).await
        else {
            unreachable!("that is what was waited for");
        };
        late.push(frozen.at().saturating_since(deadline));
        took.push(frozen.took());
        rig.renew(&guardian, 1, Duration::from_secs(60));
        guardian.kick().await.expect("kick");
        rig.next(&mut events, |event| matches!(event, Event::Thawed)).await;
    }
    late.sort_unstable();
    took.sort_unstable();
    println!("frozen after the deadline: median {:?}, max {:?}", late[10], late[19]);
    println!("of which the freeze took: median {:?}, max {:?}", took[10], took[19]);
    let status = guardian.status().await.expect("status");
    println!("late_fence_max {:?}, RSS {}", guardian.page().late_fence_max(), rig.memory(guardian.pid()));
    println!("{:?}, {:?}, oom_score_adj {}", status.memory, status.priority, status.oom_score_adj);
    let expected = if rig.fence() == FenceChoice::Signals { Backend::Signals } else { Backend::Cgroup };
    assert_eq!(status.backend, expected);
    assert!(late[19] < Duration::from_secs(5));
    drop(writer);
    guardian.kill().await.expect("kill");
}

#[tokio::test]
async fn a_second_supervisor_adopts_and_the_first_is_not_heard() {
    let Some(rig) = Rig::new(FenceChoice::Auto) else { return };
    let first = rig.guardian().await;
    let mut events = first.events();
    rig.renew(&first, 3, Duration::from_secs(60));
    let postmaster = rig.start(&first).await;
    let second = rig.guardian().await;
    assert!(second.adopted());
    assert_eq!(second.pid(), first.pid());
    assert_eq!(second.page().postmaster(), Some(postmaster));
    rig.next(&mut events, |event| *event == Event::Superseded).await;

    // The lease of the first still counts, but nothing that it says from now on does.
    let in_force = second.kick().await.expect("kick").lease();
    first.page().set_lease(3, BootTime::ZERO, BootTime::ZERO);
    assert_eq!(second.kick().await.expect("kick").lease(), in_force);
    assert!(matches!(in_force, Lease::Until { epoch: 3, .. }), "{in_force:?}");
    let refused = first.kill().await.expect_err("superseded");
    assert!(matches!(refused, GuardianError::Refused { refusal: Refusal::Superseded, .. }), "{refused:?}");
    let deadline = rig.renew(&second, 4, Duration::from_secs(50));
    assert!(matches!(second.kick().await.expect("kick").lease(),
        Lease::Until { epoch: 4, deadline: at, .. } if at == deadline));
    second.kill().await.expect("kill");
}

#[tokio::test]
async fn an_instance_that_had_a_lease_needs_one_until_it_is_released() {
    let Some(rig) = Rig::new(FenceChoice::Auto) else { return };
    let guardian = rig.guardian().await;
    let refused = guardian.start(rig.spec()).await.expect_err("no lease was set");
    assert!(matches!(refused, GuardianError::Refused { refusal: Refusal::LeaseExpired, .. }), "{refused:?}");
    rig.renew(&guardian, 3, Duration::from_secs(60));
    rig.start(&guardian).await;
    let refused = guardian.start(rig.spec()).await.expect_err("one is there");
    assert!(
        matches!(
            refused,
            GuardianError::Refused { refusal: Refusal::InstanceExists(GuardState::Running), .. }
        ),
        "{refused:?}"
    );
    let refused = guardian.quit().await.expect_err("one is there");
    assert!(matches!(refused, GuardianError::Refused { .. }), "{refused:?}");
    guardian.page().clear_lease();
    let lease = guardian.kick().await.expect("kick").lease();
    assert!(matches!(lease, Lease::Until { epoch: 3, .. }), "{lease:?}");
    assert_eq!(guardian.release().await.expect("release").lease(), Lease::NotNeeded);
    // Frozen by a command it is thawed by one.
    let frozen = guardian.freeze().await.expect("freeze");
    assert_eq!(frozen.cause, Cause::Command);
    let refused = guardian.thaw(0, frozen.at()).await.expect_err("not sent after the freeze");
    assert!(matches!(refused, GuardianError::Refused { refusal: Refusal::NotRenewed, .. }), "{refused:?}");
    guardian.thaw(0, Clock.now()).await.expect("thaw");
    rig.connect().await.check().await;
    guardian.kill().await.expect("kill");
    guardian.quit().await.expect("quit");
}

#[tokio::test]
async fn a_program_that_cannot_start_is_told_with_its_reason() {
    let Some(rig) = Rig::new(FenceChoice::Auto) else { return };
    let guardian = rig.guardian().await;
    guardian.page().clear_lease();
    let why = async |change: fn(&mut rhone::guardian::StartSpec)| {
        let mut spec = rig.spec();
        change(&mut spec);
        let error = guardian.start(spec).await.expect_err("it cannot start");
        let GuardianError::Refused { refusal: Refusal::StartFailed { stage, .. }, .. } = error else {
            panic!("{error:?}");
        };
        stage
    };
    assert_eq!(why(|spec| spec.program = "/nowhere/postgres".into()).await, StartStage::Exec);
    assert_eq!(why(|spec| spec.log_file = "/nowhere/log".into()).await, StartStage::LogFile);
    assert_eq!(why(|spec| spec.cwd = "/nowhere".into()).await, StartStage::DataDirectory);
    // One that starts and ends at once was started.
    let mut events = guardian.events();
    let mut spec = rig.spec();
    spec.args = vec!["--no-such-option".into()];
    guardian.start(spec).await.expect("it is executed");
    let event = rig.next(&mut events, |event| matches!(event, Event::Exited(_))).await;
    assert_eq!(event, Event::Exited(ExitReport::Exited(1)));
    rig.start(&guardian).await;
    guardian.kill().await.expect("kill");
}

#[tokio::test]
async fn a_postmaster_inherits_nothing_of_the_guardian() {
    let Some(rig) = Rig::new(FenceChoice::Auto) else { return };
    let guardian = rig.guardian().await;
    guardian.page().clear_lease();
    let mut spec = rig.spec();
    spec.program = "/bin/sleep".into();
    spec.args = vec!["1000".into()];
    let pid = guardian.start(spec).await.expect("start");
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read /proc");
    let fds = || {
        let mut fds: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("its descriptors")
            .filter_map(|fd| fd.ok()?.file_name().into_string().ok())
            .collect();
        fds.sort_unstable();
        fds
    };
    // While it is loaded it has its libraries open, one after the other; what it inherited would stay.
    let loaded = tokio::time::timeout(Duration::from_secs(60), async {
        while fds() != ["0", "1", "2"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(loaded.await.is_ok(), "{:?}", fds());
    let status = proc("status");
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a line").trim();
    assert_eq!(line("SigBlk:"), "0000000000000000");
    // The C library's own two signals are ignored in whatever it spawns.
    let ignored = u64::from_str_radix(line("SigIgn:"), 16).expect("a mask");
    assert_eq!(ignored & !0x1_8000_0000, 0);
    assert_eq!(line("VmLck:"), "0 kB");
    assert_eq!(line("PPid:"), guardian.pid().to_string());
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").expect("read /proc");
    assert_eq!(proc("oom_score_adj"), own);
    let own = std::fs::read_to_string("/proc/self/stat").expect("read /proc");
    let field = |stat: &str, at: usize| {
        stat.rsplit_once(") ").expect("a stat").1.split(' ').nth(at).expect("a field").to_owned()
    };
    assert_eq!(field(&proc("stat"), 16), field(&own, 16), "nice, as before the guardian");
    assert_eq!(field(&proc("stat"), 38), "0", "policy");
    assert_eq!(proc("environ"), "PATH=/usr/bin:/bin\0LC_ALL=C\0");
    guardian.kill().await.expect("kill");
}

/// Mounts a file system of its own on a loop device, and freezes that: needs root, as the cgroups do.
#[tokio::test]
async fn a_process_that_hangs_on_a_disk_is_stopped_too_and_delays_nobody() {
    if !has_cgroups() {
        return;
    }
    let Some(rig) = Rig::new(FenceChoice::Auto) else { return };
    let disk = rig.disk();
    let guardian = rig.guardian().await;
    let mut events = guardian.events();
    guardian.page().clear_lease();
    let mut spec = rig.spec();
    spec.program = "/bin/sh".into();
    let script = format!("while :; do echo x >> {}/file; done", disk.mount().display());
    spec.args = vec!["-c".into(), script.into()];
    spec.user = None;
    let pid = guardian.start(spec).await.expect("start");
    disk.freeze();
    eventually("it hangs", || process_state(pid) == Some('D')).await;

    let frozen = guardian.freeze().await.expect("freeze");
    println!("{frozen:?}");
    assert!(!frozen.verified && frozen.by_signals, "{frozen:?}");
    assert_eq!(guardian.page().state(), GuardState::Freezing);
    disk.thaw();
    let event =
        rig.next(&mut events, |event| matches!(event, Event::Frozen(report) if report.verified)).await;
    println!("{event:?}");
    assert_eq!(guardian.page().state(), GuardState::Frozen);
    let size = disk.size();
    let looked = Clock.now();
    eventually("some looks later", || {
        guardian.page().alive_age(looked).is_zero()
            && Clock.now().saturating_since(looked) > Duration::from_millis(100)
    })
    .await;
    assert_eq!(disk.size(), size, "it does not write");
    guardian.thaw(0, Clock.now()).await.expect("thaw");
    eventually("it goes on", || disk.size() > size).await;

    // Killing takes as long as the disk, and the guardian serves meanwhile.
    disk.freeze();
    eventually("it hangs", || process_state(pid) == Some('D')).await;
    let killed = guardian.kill();
    tokio::pin!(killed);
    let answered = async {
        for _ in 0..100 {
            assert_eq!(guardian.kick().await.expect("kick").state, GuardState::Killing);
        }
    };
    tokio::select! {
        biased;
        _ = &mut killed => panic!("it cannot be dead"),
        () = answered => {}
    }
    disk.thaw();
    killed.await.expect("kill");
    assert_eq!(process_state(pid), None);
}

#[test]
fn a_guardian_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Guardian>();
    shared::<rhone::guardian::SharedPage>();
}

#[tokio::test]
async fn there_is_one_guardian_per_directory_and_it_needs_no_file_of_its_own() {
    let Some(mut rig) = Rig::new(FenceChoice::Auto) else { return };
    rig.use_long_paths();
    rig.use_own_binary();
    let guardian = rig.guardian().await;
    let second = Command::new(rig.exe())
        .args(["guardian", "--state-dir"])
        .arg(rig.state_dir())
        .output()
        .expect("run a second guardian");
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another guardian"), "{said}");
    assert_eq!(second.status.code(), Some(3));
    std::fs::remove_file(rig.exe()).expect("remove the binary");
    guardian.page().clear_lease();
    rig.start(&guardian).await;
    assert!(guardian.freeze().await.expect("freeze").verified);
    guardian.kill().await.expect("kill");
    // SIGTERM ends it now that it has nothing to guard.
    send_signal(guardian.pid(), Signal::TERM);
    guardian.died().await;
}

#[tokio::test]
async fn signals_do_not_end_a_guardian_that_has_an_instance() {
    let Some(rig) = Rig::new(FenceChoice::Auto) else { return };
    let guardian = rig.guardian().await;
    guardian.page().clear_lease();
    let postmaster = rig.start(&guardian).await;
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT, Signal::PIPE, Signal::USR1] {
        send_signal(guardian.pid(), signal);
        assert_eq!(guardian.kick().await.expect("kick").state, GuardState::Running);
    }
    assert_eq!(guardian.page().postmaster(), Some(postmaster));
    guardian.kill().await.expect("kill");
}

/// A device as the kernel's softdog is one: it fires when nothing was written for a while, unless it was closed with
/// a V.
struct Softdog {
    /// How many bytes, and when the last of them was written while it was armed.
    said: Arc<Mutex<(u64, Option<BootTime>)>>,
}

impl Softdog {
    const PATIENCE: Duration = Duration::from_secs(3);

    fn watch(mut device: std::fs::File) -> Self {
        let said: Arc<Mutex<(u64, Option<BootTime>)>> = Arc::default();
        let written = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut word = [0_u8; 64];
            while let Ok(read) = device.read(&mut word) {
                let mut said = written.lock().expect("lock");
                said.0 += read as u64;
                said.1 = (word.get(read - 1) != Some(&b'V')).then(|| Clock.now());
            }
        });
        Self { said }
    }

    fn words(&self) -> u64 {
        self.said.lock().expect("lock").0
    }

    fn armed(&self) -> bool {
        self.said.lock().expect("lock").1.is_some()
    }

    /// Whether the machine would be reset now.
    fn fires(&self) -> bool {
        self.said
            .lock()
            .expect("lock")
            .1
            .is_some_and(|last| Clock.now().saturating_since(last) > Self::PATIENCE)
    }
}

#[tokio::test]
async fn a_watchdog_is_armed_for_a_primary_and_resets_the_machine_of_a_guardian_that_is_stopped() {
    let Some(mut rig) = Rig::new(FenceChoice::Auto) else { return };
    let device = Softdog::watch(rig.use_watchdog());
    let guardian = rig.guardian().await;
    let page = guardian.page();
    assert_eq!(page.watchdog(), LastResort::AtRest);
    // A standby needs none: a timer that an earlier guardian left is taken over, and ended.
    page.clear_lease();
    rig.start(&guardian).await;
    eventually("it is disarmed", || page.watchdog() == LastResort::AtRest && device.words() > 0).await;
    assert!(!device.armed());
    // A primary needs one.
    rig.renew(&guardian, 7, Duration::from_secs(600));
    guardian.kick().await.expect("kick");
    eventually("it is armed", || page.watchdog() == LastResort::Armed && device.armed()).await;
    let words = device.words();
    eventually("it is written to", || device.words() > words + 3).await;
    // Stopped, with the lease still running: nobody would freeze this instance at its end.
    send_signal(guardian.pid(), Signal::STOP);
    eventually("the machine would be reset", || device.fires()).await;
    send_signal(guardian.pid(), Signal::CONT);
    eventually("it is written to again", || !device.fires()).await;
    // Frozen for certain is as good as a lease.
    rig.renew(&guardian, 7, Duration::from_millis(1));
    eventually("it is frozen", || page.state() == GuardState::Frozen).await;
    let words = device.words();
    eventually("it is written to", || device.words() > words + 3 || page.state() != GuardState::Frozen).await;
    guardian.kill().await.expect("kill");
    eventually("it is disarmed at the end", || !device.armed()).await;
    assert_eq!(page.watchdog(), LastResort::AtRest);
}

/// Whether a network can be had where `nft` shows what is there; says so where not.
fn has_nft() -> bool {
    let tried = Command::new("unshare").args(["--net", "nft", "list", "ruleset"]).output();
    let yes = tried.is_ok_and(|output| output.status.success());
    if !yes {
        eprintln!("SKIPPED: no root, no unshare or no nft (apt-get install nftables)");
    }
    yes
}

/// The rules of a guardian's network, without line breaks.
fn rules(guardian: u32) -> String {
    let net = format!("--net=/proc/{guardian}/ns/net");
    let shown = Command::new("nsenter").args([&net, "nft", "list", "ruleset"]).output().expect("run nft");
    assert!(shown.status.success(), "{shown:?}");
    String::from_utf8_lossy(&shown.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_open(guardian: u32) -> bool {
    rules(guardian).contains("elements = { 6432 timeout")
}

#[tokio::test]
async fn a_dead_man_is_open_for_a_primary_until_its_lease_ends_and_never_longer() {
    let Some(mut rig) = Rig::new(FenceChoice::Auto) else { return };
    if !has_nft() {
        return;
    }
    rig.use_dead_man(6432);
    let guardian = rig.guardian().await;
    let (page, pid) = (guardian.page().clone(), guardian.pid());
    assert_eq!(page.dead_man(), LastResort::AtRest);
    page.clear_lease();
    rig.start(&guardian).await;
    assert_eq!(rules(pid), "", "a standby needs none");
    // From the answer on: before anybody is promoted.
    rig.renew(&guardian, 7, Duration::from_secs(600));
    guardian.kick().await.expect("kick");
    assert_eq!(page.dead_man(), LastResort::Armed);
    assert!(rules(pid).contains("tcp sport 6432 tcp sport != @open drop"));
    eventually("it is open", || is_open(pid)).await;
    // A lease that is cut short counts at once, and is the end of it while nobody runs here.
    let end = rig.renew(&guardian, 7, Duration::from_secs(3));
    guardian.kick().await.expect("kick");
    send_signal(pid, Signal::STOP);
    while Clock.now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!is_open(pid), "open after the end of the lease");
    assert_eq!(page.state(), GuardState::Running, "nobody fences");
    send_signal(pid, Signal::CONT);
    eventually("it is frozen", || page.state() == GuardState::Frozen).await;
    assert!(!is_open(pid));
    // Thawed, it is open again; and what somebody else removed is there again.
    rig.renew(&guardian, 7, Duration::from_secs(600));
    eventually("it goes on", || page.state() == GuardState::Running).await;
    eventually("it is open again", || is_open(pid)).await;
    let net = format!("--net=/proc/{pid}/ns/net");
    let flushed = Command::new("nsenter").args([&net, "nft", "flush", "ruleset"]).status();
    assert!(flushed.expect("run nft").success());
    rig.renew(&guardian, 7, Duration::from_secs(700));
    eventually("it is there again", || is_open(pid)).await;
    guardian.kill().await.expect("kill");
    eventually("it is removed", || rules(pid).is_empty()).await;
    assert_eq!(page.dead_man(), LastResort::AtRest);
}

#[tokio::test]
async fn a_supervisor_that_hangs_or_speaks_another_version_delays_nobody() {
    let Some(rig) = Rig::new(FenceChoice::Auto) else { return };
    let starter = rig.guardian().await;
    let hung = rig.raw_connection();
    let foreign = rig.raw_connection();
    rustix::net::send(&foreign, b"RG\x63\x00hello", rustix::net::SendFlags::empty()).expect("send");
    let mut answer = [0_u8; 64];
    let (read, _) =
        rustix::net::recv(&foreign, &mut answer, rustix::net::RecvFlags::empty()).expect("an answer");
    assert_eq!(&answer[..read], b"RG\x01\x03", "its own version, and nothing else");
    drop(starter);

    let guardian = rig.guardian().await;
    guardian.page().clear_lease();
    rig.start(&guardian).await;
    // Far more events than a socket buffer holds.
    for _ in 0..400 {
        assert!(guardian.freeze().await.expect("freeze").verified);
        guardian.thaw(0, Clock.now()).await.expect("thaw");
    }
    drop(hung);
    guardian.kill().await.expect("kill");
}

/// Not a test: the supervisor of another test, in a process of its own that can be killed.
#[tokio::test]
async fn helper_supervisor() {
    guardian_harness::be_a_supervisor_if_asked(async |guardian: Guardian, rig: &Rig, role: &str| {
        if role == "primary" {
            rig.renew(&guardian, 5, Duration::from_secs(8));
        } else {
            guardian.page().clear_lease();
        }
        rig.start(&guardian).await;
        guardian
    })
    .await;
}
