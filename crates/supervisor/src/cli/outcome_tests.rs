//! What a change prints: the new state, as text and as JSON; and when it asks first.

use serde_json::Value;

use super::{Exit, FakeOperator, Member};

/// Runs a verb with `-o json`; the cluster in it has to be what `status -o json` prints then.
async fn changed(member: &Member, line: &str) -> Value {
    let (exit, out, err) = member.run(&format!("{line} -o json")).await;
    assert_eq!(exit, Exit::Done, "{line}: {err}");
    assert_eq!(out.lines().count(), 1, "{line}: {out}");
    let mut told: Value = serde_json::from_str(&out).expect("JSON");
    let cluster = told.as_object_mut().expect("an object").remove("cluster");
    let (_, status, _) = member.run("status -o json").await;
    assert_eq!(cluster, serde_json::from_str(&status).ok(), "{line}");
    told
}

#[tokio::test]
async fn a_change_prints_the_cluster_after_it_as_json_too() {
    let member = Member::start(FakeOperator::default());
    assert_eq!(changed(&member, "pause").await["paused"], true);
    assert_eq!(changed(&member, "resume").await["paused"], false);
    assert_eq!(changed(&member, "fence pg-2").await["fenced"], true);
    assert_eq!(changed(&member, "unfence pg-2").await["fenced"], false);
    assert_eq!(changed(&member, "switchover --to pg-2").await["to"], "pg-2");
    assert_eq!(changed(&member, "reinit pg-3").await["finished"], true);
    assert_eq!(changed(&member, "restart pg-2").await["finished"], true);
    assert_eq!(changed(&member, "member demote pg-3").await["votes"], false);
    assert_eq!(changed(&member, "member promote pg-3").await["votes"], true);
    assert_eq!(changed(&member, "member remove wit-1").await["removed"], true);
    // Nothing was waited for, so nothing is shown.
    let (_, out, _) = member.run("pause --no-wait -o json").await;
    assert!(!out.contains("cluster"), "{out}");
}

#[tokio::test]
async fn a_script_is_not_asked_about_what_loses_no_data() {
    let member = Member::start(FakeOperator::default());
    for line in ["reinit pg-3 --no-wait", "member remove wit-1", "fence pg-1 --no-wait"] {
        let (exit, _, err) = member.run(line).await;
        assert_eq!(exit, Exit::Done, "{line}: {err}");
    }
    let fence = member.operator.fences.lock().expect("unpoisoned").pop().expect("a request");
    assert!(fence.hand_over && fence.expected_epoch.is_some(), "{fence:?}");
}

#[tokio::test]
async fn what_is_not_set_ends_the_same_as_text_and_as_json() {
    let member = Member::start(FakeOperator::default());
    let (text, out, _) = member.run("settings get postgres.jit").await;
    assert_eq!((text, out.as_str()), (Exit::Failed, ""));
    let (json, out, _) = member.run("settings get postgres.jit -o json").await;
    assert_eq!((json, out.as_str()), (Exit::Failed, "{\"key\":\"postgres.jit\",\"value\":null}\n"));
    let (json, out, _) = member.run("settings get sync -o json").await;
    assert_eq!(json, Exit::Done, "{out}");
}

#[tokio::test]
async fn a_new_members_configuration_needs_no_argument() {
    let member = Member::start(FakeOperator::default());
    let (exit, out, err) = member.run("member add").await;
    assert_eq!(exit, Exit::Done, "{err}");
    assert!(out.contains("name      = \"pg-4\"") && out.contains("advertise = \"ADDRESS:7400\""), "{out}");
    assert!(err.contains("with the machine's host instead of ADDRESS"), "{err}");
    let (_, out, _) = member.run("member add -o json").await;
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told["name"], "pg-4");
    let (exit, out, err) = member.run("member add db-9 10.0.0.9").await;
    assert_eq!(exit, Exit::Done, "{err}");
    assert!(
        out.contains("advertise = \"10.0.0.9:5432\"") && err.starts_with("put this on 10.0.0.9 as "),
        "{err}"
    );
    let (exit, _, err) = member.run("member add pg-2").await;
    assert_eq!(exit, Exit::Refused, "{err}");
}

#[tokio::test]
async fn a_key_that_is_sent_again_is_carried_out_once() {
    use crate::api::proto::v1;
    use crate::api::proto::v1::admin_client::AdminClient;
    use crate::api::socket;
    use hyper_util::rt::TokioIo;

    let member = Member::start(FakeOperator::default());
    let folder = member.folder.path().to_owned();
    let connector = tower::service_fn(move |_| {
        let folder = folder.clone();
        async move { socket::connect(&folder).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://local");
    let channel = endpoint.connect_with_connector(connector).await.expect("a connection");
    let (mut one, mut other) = (AdminClient::new(channel.clone()), AdminClient::new(channel));
    let request = |key: &str| v1::SwitchoverRequest {
        idempotency_key: key.to_owned(),
        expected_epoch: Some(7),
        ..v1::SwitchoverRequest::default()
    };
    let first = one.switchover(request("a")).await.expect("an answer").into_inner();
    let again = other.switchover(request("a")).await.expect("an answer").into_inner();
    assert_eq!(first, again);
    assert_eq!(member.operator.seen.lock().expect("unpoisoned").len(), 1);
    other.switchover(request("b")).await.expect("an answer");
    assert_eq!(member.operator.seen.lock().expect("unpoisoned").len(), 2);
    let reinit = v1::MemberRequest {
        idempotency_key: "c".to_owned(),
        name: "pg-3".to_owned(),
        ..v1::MemberRequest::default()
    };
    let (left, right) = tokio::join!(one.reinit(reinit.clone()), other.reinit(reinit));
    assert_eq!(left.expect("an answer").into_inner(), right.expect("an answer").into_inner());
    assert_eq!(member.operator.work.lock().expect("unpoisoned").len(), 1);
}
