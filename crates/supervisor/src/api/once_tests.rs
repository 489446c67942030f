use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::oneshot;

use super::*;

fn asks(key: &str, name: &str) -> Call {
    let request = v1::MemberRequest { name: name.to_owned(), ..v1::MemberRequest::default() };
    Call::of("Reinit", key, &request)
}

fn reply(outcome: v1::Outcome, epoch: u64) -> v1::ChangeReply {
    v1::ChangeReply { outcome: outcome.into(), epoch: Some(epoch), ..v1::ChangeReply::default() }
}

/// Counts how often it was carried out, and ends so.
async fn call(
    once: &Arc<Once>,
    call: Call,
    count: &Arc<AtomicU32>,
    answer: Result<v1::Outcome, OperatorError>,
) -> Result<u64, Status> {
    let count = Arc::clone(count);
    let work = async move {
        let n = u64::from(count.fetch_add(1, Ordering::SeqCst)) + 1;
        answer.map(|outcome| reply(outcome, n)).map_err(Status::from)
    };
    once.carry_out(call, work).await.map(|reply| reply.into_inner().epoch.expect("an epoch"))
}

#[tokio::test]
async fn a_key_is_carried_out_once_and_only_what_changed_nothing_is_tried_again() {
    use v1::Outcome::{Done, Refused, Unknown};
    let (once, count) = (Arc::new(Once::default()), Arc::new(AtomicU32::new(0)));
    for (key, answer, expected) in [
        ("done", Ok(Done), [1, 1]),
        ("unknown", Ok(Unknown), [2, 2]), // it may have been done
        ("refused", Ok(Refused), [3, 4]),
        ("", Ok(Done), [5, 6]), // without a key each is its own
    ] {
        for expected in expected {
            let got = call(&once, asks(key, "pg-1"), &count, answer.clone()).await;
            assert_eq!(got.expect("an answer"), expected, "{key}");
        }
    }
    for (key, error, runs) in [
        ("elsewhere", OperatorError::NotLeader { leader: None }, 2),
        ("nobody", OperatorError::NoQuorum, 2),
        ("failed", OperatorError::Failed("it broke off".to_owned()), 1),
    ] {
        let before = count.load(Ordering::SeqCst);
        for _ in 0..2 {
            let got = call(&once, asks(key, "pg-1"), &count, Err(error.clone())).await;
            assert_eq!(OperatorError::from(got.expect_err("an error")), error);
        }
        assert_eq!(count.load(Ordering::SeqCst) - before, runs, "{key}");
    }
    let other = call(&once, asks("done", "pg-2"), &count, Ok(Done)).await.expect_err("another request");
    assert!(other.message().contains("that of another call"), "{other}");
    let long = call(&once, asks(&"x".repeat(200), "pg-1"), &count, Ok(Done)).await.expect_err("too long");
    assert!(long.message().contains("longer than 128 bytes"), "{long}");
}

#[tokio::test]
async fn a_second_call_waits_for_the_first_and_the_first_goes_on_without_its_caller() {
    let once = Arc::new(Once::default());
    let (go, wait) = oneshot::channel::<()>();
    let (begun, has_begun) = oneshot::channel::<()>();
    let first = tokio::spawn({
        let once = Arc::clone(&once);
        async move {
            let work = async move {
                begun.send(()).expect("somebody waits");
                wait.await.expect("it is let go");
                Ok(reply(v1::Outcome::Done, 1))
            };
            once.carry_out(asks("key", "pg-1"), work).await
        }
    });
    has_begun.await.expect("the first call begins");
    first.abort();
    assert!(first.await.expect_err("it is gone").is_cancelled());
    let second = once.carry_out(asks("key", "pg-1"), async { Ok(reply(v1::Outcome::Done, 2)) });
    let (second, ()) = tokio::join!(second, async { go.send(()).expect("the first goes on") });
    assert_eq!(second.expect("an answer").into_inner().epoch, Some(1));
}

#[tokio::test]
async fn the_oldest_are_forgotten_and_what_is_under_way_never() {
    let once = Once::default();
    let at = |ms: u64| BootTime::from_nanos(ms * 1_000_000);
    let tell = |turn: Turn, now: BootTime| match turn {
        Turn::First(tell, ended) => {
            tell.send_replace(Some(Ended { at: now, answer: Ok(Vec::new()) }));
            drop((tell, ended));
        }
        Turn::Again(_) => panic!("it is known"),
    };
    let known = |key: &str, now: BootTime| {
        matches!(once.turn(&asks(key, "pg-1"), now).expect("a turn"), Turn::Again(_))
    };
    let Turn::First(under_way, _ended) = once.turn(&asks("first", "pg-1"), at(0)).expect("a turn") else {
        panic!("it is known");
    };
    for n in 1..REMEMBERED as u64 {
        tell(once.turn(&asks(&format!("{n}"), "pg-1"), at(n)).expect("a turn"), at(n));
    }
    assert!(known("1", at(1100)) && known("first", at(1100)));
    let kept = |key: &str| once.calls.lock().expect("unpoisoned").contains_key(key);
    tell(once.turn(&asks("one more", "pg-1"), at(1100)).expect("a turn"), at(1100));
    assert!(!kept("1") && kept("2") && kept("first"), "the oldest that has ended makes room");
    assert!(known("first", at(600_002)) && known("one more", at(600_002)));
    assert!(!kept("2") && kept("3"), "ten minutes are over for what ended first");
    // Who never told broke off: that is unknown, and not for ever.
    drop(under_way);
    assert!(known("first", at(599_000)));
    assert!(matches!(once.turn(&asks("first", "pg-1"), at(601_000)), Ok(Turn::First(..))));
}

/// What a bug does.
fn breaks_off() -> Result<v1::ChangeReply, Status> {
    panic!("on purpose")
}

#[tokio::test]
async fn a_call_that_breaks_off_is_unknown() {
    let once = Arc::new(Once::default());
    let broken = once.carry_out(asks("key", "pg-1"), async { breaks_off() }).await.expect_err("no answer");
    assert_eq!(OperatorError::from(broken), OperatorError::Unknown);
    let again = once.carry_out(asks("key", "pg-1"), async { Ok(reply(v1::Outcome::Done, 2)) }).await;
    assert_eq!(OperatorError::from(again.expect_err("no answer")), OperatorError::Unknown);
}
