//! What comes to the guardian's socket: changed by seed (`rhone_fuzz`).

use std::fmt::Debug;

use rhone_fuzz::Fuzz;
use serde::{Deserialize, Serialize};

use super::page::GuardState;
use super::wire::{
    self, Answer, Command, Event, Kind, MESSAGE_MAX, PostmasterSignal, Refusal, Reply, Request, StartSpec,
};

fn packed<T: Serialize>(kind: Kind, message: &T) -> Vec<u8> {
    let mut buffer = vec![0; MESSAGE_MAX];
    wire::pack(kind, message, &mut buffer).expect("it fits").to_vec()
}

/// Unpacks, and holds that what was understood is packed to the same again.
fn round<'a, T: Serialize + Deserialize<'a> + Debug>(kind: Kind, body: &'a [u8]) -> String {
    let Ok(message) = wire::unpack::<T>(body) else { return "garbage".to_owned() };
    let again = packed(kind, &message);
    assert_eq!(wire::open(&again).map(|(kind, _)| kind), Ok(kind));
    assert!(again.len() <= body.len() + 4, "it grows on the way");
    format!("{message:?}").chars().take(24).collect()
}

#[test]
fn fuzz_the_guardians_packets() {
    let spec = StartSpec {
        program: "/usr/lib/postgresql/15/bin/postgres".into(),
        args: vec!["-D".into(), "/data".into()],
        env: vec![("LC_ALL".into(), "C".into())],
        cwd: "/data".into(),
        user: Some(wire::RunAs { uid: 70, gid: 70, groups: vec![70, 71] }),
        log_file: "/log".into(),
    };
    let commands = [
        Command::Hello { claim: true },
        Command::Start(spec),
        Command::Thaw { sent_ns: 1 << 50, epoch: 7 },
        Command::Signal(PostmasterSignal::FastStop),
        Command::Quit,
    ];
    let mut corpus: Vec<Vec<u8>> =
        commands.into_iter().map(|command| packed(Kind::Request, &Request { id: 9, command })).collect();
    let refused = Reply { id: 9, result: Err(Refusal::InstanceExists(GuardState::Frozen)) };
    let hello = Answer::Hello { writer: 5, cgroup: Some("/sys/fs/cgroup/x".into()) };
    corpus.push(packed(Kind::Reply, &refused));
    corpus.push(packed(Kind::Reply, &Reply { id: 1, result: Ok(hello) }));
    corpus.push(packed(Kind::Event, &Event::Started { postmaster: 4711 }));
    Fuzz::new("guardian", corpus).cases(6000).run(|bytes| match wire::open(bytes) {
        Ok((kind @ Kind::Request, body)) => round::<Request>(kind, body),
        Ok((kind @ Kind::Reply, body)) => round::<Reply>(kind, body),
        Ok((kind @ Kind::Event, body)) => round::<Event>(kind, body),
        Ok((Kind::WrongVersion, _)) => "another version".to_owned(),
        Err(why) => format!("{why:?}"),
    });
}
