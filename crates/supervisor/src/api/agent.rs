//! What other supervisors may ask of this one; strangers are turned away before anything else.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{Stream, StreamExt};
use rhone_consensus::command::{ClusterCommand, Member, MemberKind, Outcome};
use rhone_consensus::ids::{Epoch, Incarnation, LogIndex, NodeId};
use rhone_consensus::proto::Identity;
use rhone_consensus::settings::Settings;
use rhone_consensus::store::hard::Founder;
use rhone_consensus::transport::Certified;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use crate::api::proto::v1::agent_server::Agent;
use crate::api::proto::v1::{
    AcceptFounderReply, AcceptFounderRequest, ExamineReply, ExamineRequest, HelloReply, HelloRequest,
    JoinReply, JoinRequest, ParametersReply, ParametersRequest, PausePoolerReply, PausePoolerRequest,
    PerformReply, PerformRequest, RehearseReply, RehearseRequest, RenewReply, RenewRequest, ReportReply,
    ReportRequest, RevokeReply, RevokeRequest, StoreState,
};
use crate::runtime::lease::renew_reply;
use crate::runtime::shared::{RevokeAsk, Shared, table_rows};
use crate::runtime::{aside, chores, codec, doctor, found, rehearse};
use crate::view::{Instance, Received, Report};

/// How long an admission may take: two proposals on slow disks.
const ADMIT_LIMIT: std::time::Duration = std::time::Duration::from_secs(8);

/// The service.
#[derive(Clone, Debug)]
pub struct AgentService {
    shared: Arc<Shared>,
}

impl AgentService {
    /// Makes the service.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Turns strangers away: another cluster or generation, an old image or a copy of a store, a
    /// member under another store than the recorded one.
    fn known(&self, from: Option<&Identity>, caller: Option<&Certified>) -> Result<NodeId, Status> {
        self.known_and_meant(from, None, caller)
    }

    /// Like `known`, for a call that says whom it means to reach.
    fn known_and_meant(
        &self,
        from: Option<&Identity>,
        to: Option<NodeId>,
        caller: Option<&Certified>,
    ) -> Result<NodeId, Status> {
        let admitted = self.shared.consensus.admit(from, to).and_then(|node| {
            self.shared.consensus.vouched(caller, node)?;
            Ok(node)
        });
        admitted.inspect_err(|_| {
            self.shared.strangers.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Refuses a renewal by anybody but the owner, where the Grant is known here.
    fn owner_at_most(&self, node: NodeId, epoch: Epoch) -> Result<(), Status> {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        match applied.state.grant.as_ref().filter(|grant| grant.epoch == epoch) {
            Some(grant) if grant.owner != node => {
                Err(Status::permission_denied(format!("{node} does not own epoch {epoch}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses to promise an epoch that the log here does not hold to anybody but the Raft leader: a
    /// promise cannot be taken back.
    fn leader_at_most(&self, node: NodeId, epoch: Epoch) -> Result<(), Status> {
        let held = self.shared.voter.log_held().1 >= epoch;
        if held || self.shared.consensus.status().leader == Some(node) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("epoch {epoch} is not known here, nor {node} as the leader")))
    }

    /// Judges a renewal, now.
    fn renewal(&self, caller: Option<&Certified>, request: &RenewRequest) -> Result<RenewReply, Status> {
        // A voter that lost its store is another one now, at the same address: it must not be counted as the old one.
        let to = Some(NodeId(request.to));
        let node = self.named(self.known_and_meant(request.from.as_ref(), to, caller)?)?;
        self.owner_at_most(node, Epoch(request.epoch))?;
        let result = self.shared.voter.renew(
            Epoch(request.epoch),
            Lsn::new(request.flushed_lsn),
            LogIndex(request.membership),
        );
        Ok(renew_reply(request.seq, result))
    }

    /// Like `known`, and only members that the state names: what they say counts in decisions.
    fn member(&self, from: Option<&Identity>, caller: Option<&Certified>) -> Result<NodeId, Status> {
        let node = self.known(from, caller)?;
        self.named(node)
    }

    /// Turns away whom the state does not name.
    fn named(&self, node: NodeId) -> Result<NodeId, Status> {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        if applied.state.is_founded() && !applied.state.members.contains_key(&node) {
            return Err(Status::failed_precondition(format!("{node} is no member (yet)")));
        }
        Ok(node)
    }
}

/// Names a kind of member as [`HelloReply`] has it.
fn kind_name(kind: MemberKind) -> &'static str {
    match kind {
        MemberKind::Data => "data",
        MemberKind::Witness => "witness",
    }
}

/// Takes a call apart: whom its connection's certificate names, and the message.
fn opened<T>(request: Request<T>) -> (Option<Certified>, T) {
    (request.extensions().get::<Certified>().cloned(), request.into_inner())
}

/// Says who this member is and what its store holds.
pub fn hello(shared: &Shared) -> HelloReply {
    let hard = shared.hard.get();
    let member = shared.member();
    let own = shared.own.borrow();
    let data = own.as_ref().and_then(|report| report.system_id);
    let position = own.as_ref().and_then(|report| report.instance.position());
    let running = *shared.takeover.borrow();
    let stopped = own.as_ref().and_then(|report| match report.instance {
        Instance::Stopped { primary, .. } => Some(primary),
        Instance::Unknown
        | Instance::Absent
        | Instance::Unusable(_)
        | Instance::Starting
        | Instance::Standby { .. }
        | Instance::Primary { .. }
        | Instance::Frozen { .. }
        | Instance::Hung { .. } => None,
    });
    let role = stopped
        .or(running.map(|found| found.primary))
        .map(|primary| if primary { "primary" } else { "standby" });
    let timeline = position.map(|position| position.timeline).or(running.map(|found| found.timeline));
    let mut peers: Vec<String> = shared.config.node.peers.iter().map(ToString::to_string).collect();
    peers.sort();
    let state =
        if shared.consensus.status().nodes.is_empty() { StoreState::Empty } else { StoreState::Member };
    HelloReply {
        from: Some(shared.identity()),
        name: member.name,
        store: state.into(),
        accepted_founder: hard.accepted_founder.as_ref().map(|f| f.name.clone()).unwrap_or_default(),
        accepted_incarnation: hard
            .accepted_founder
            .map(|f| f.incarnation.0.to_be_bytes().to_vec())
            .unwrap_or_default(),
        peers,
        kind: kind_name(member.kind).to_owned(),
        address: member.address,
        postgres: member.postgres,
        http: member.http,
        priority: member.priority,
        tags: codec::pack(&member.tags),
        data_system_identifier: data.map_or(0, SystemId::get),
        data_position: position.map(|p| p.to_string()).unwrap_or_default(),
        data_role: role.unwrap_or_default().to_owned(),
        data_timeline: timeline.map_or(0, Timeline::get),
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let (caller, request) = opened(request);
        // A member of an older generation, or one that has no store yet, may still ask who is here.
        if request.from.as_ref().is_none_or(|from| from.cluster != self.shared.config.cluster) {
            self.known(request.from.as_ref(), caller.as_ref())?;
        }
        Certified::speaks_for(caller.as_ref(), Some(&request.name))?;
        if self.shared.own.borrow().is_none() {
            return Err(Status::unavailable("this member has not looked at its data directory yet"));
        }
        Ok(Response::new(hello(&self.shared)))
    }

    async fn accept_founder(
        &self,
        request: Request<AcceptFounderRequest>,
    ) -> Result<Response<AcceptFounderReply>, Status> {
        let (caller, request) = opened(request);
        self.known(request.from.as_ref(), caller.as_ref())?;
        Certified::speaks_for(caller.as_ref(), Some(&request.founder))?;
        let from = request.from.unwrap_or_default();
        let refuse = |reason: &str| {
            Ok(Response::new(AcceptFounderReply { accepted: false, reason: reason.to_owned() }))
        };
        if !self.shared.consensus.status().nodes.is_empty() {
            return refuse("this member belongs to a cluster already");
        }
        let Ok(bytes) = <[u8; 16]>::try_from(from.incarnation.as_slice()) else {
            return refuse("the founder's incarnation cannot be read");
        };
        let founder = Founder { name: request.founder, incarnation: Incarnation(u128::from_be_bytes(bytes)) };
        let known = self.shared.hard.get().accepted_founder;
        if let Some(known) = known.filter(|known| known.name != founder.name) {
            return refuse(&format!("this member accepted {} as founder", known.name));
        }
        let keeper = Arc::clone(&self.shared.hard);
        let kept = tokio::task::spawn_blocking(move || {
            keeper.update(|state| found::accept(state, founder.clone())).map(|_| ())
        })
        .await;
        match kept {
            Ok(Ok(())) => Ok(Response::new(AcceptFounderReply { accepted: true, reason: String::new() })),
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let (caller, request) = opened(request);
        if request.from.as_ref().is_none_or(|from| from.cluster != self.shared.config.cluster) {
            self.known(request.from.as_ref(), caller.as_ref())?;
        }
        let Some(member) = codec::unpack::<Member>(&request.member) else {
            return Err(Status::invalid_argument("the member's description cannot be read"));
        };
        Certified::speaks_for(caller.as_ref(), Some(&member.name))?;
        Ok(Response::new(self.admit(member).await))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        let (caller, request) = opened(request);
        let node = self.member(request.from.as_ref(), caller.as_ref())?;
        let Some(mut report) = codec::unpack::<Report>(&request.report) else {
            return Err(Status::invalid_argument("the report cannot be read"));
        };
        if let Some(told) = &request.aside {
            aside::put(&mut report, told);
        }
        let now = self.shared.now();
        let leader = self.shared.consensus.status().leading;
        let mut reply = ReportReply { leader, ..ReportReply::default() };
        if leader {
            self.shared.table.send_modify(|table| {
                table.insert(node, Received { at: now, report });
            });
            let table = self.shared.table.borrow();
            reply.table = codec::pack(&table_rows(&table, now));
            reply.asides = aside::of_table(&table);
        }
        // Only a member that the state names with this very store gets the password, or gives it.
        let named = self.shared.consensus.state().borrow().state.members.contains_key(&node);
        if named
            && let Ok(secret) = String::from_utf8(request.replication_secret)
            && let Err(error) = self.shared.secret.keep(&secret)
        {
            tracing::warn!(%error, "could not keep the replication password");
        }
        if named && let Some(secret) = self.shared.secret.get() {
            reply.replication_secret = secret.into_bytes();
        }
        Ok(Response::new(reply))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        let (caller, request) = opened(request);
        let node = self.member(request.from.as_ref(), caller.as_ref())?;
        self.leader_at_most(node, Epoch(request.epoch))?;
        let (answer, told) = oneshot::channel();
        let ask = RevokeAsk { epoch: Epoch(request.epoch), answer };
        if self.shared.revokes.send(ask).await.is_err() {
            return Err(Status::unavailable("this member is stopping"));
        }
        let reply = match told.await {
            Ok(Ok(revoked)) => RevokeReply { revoked: codec::pack(&revoked), reason: String::new() },
            Ok(Err(reason)) => RevokeReply { revoked: Vec::new(), reason },
            Err(_) => RevokeReply { revoked: Vec::new(), reason: "superseded".to_owned() },
        };
        Ok(Response::new(reply))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let (caller, request) = opened(request);
        self.renewal(caller.as_ref(), &request).map(Response::new)
    }

    type RenewalsStream = Pin<Box<dyn Stream<Item = Result<RenewReply, Status>> + Send>>;

    async fn renewals(
        &self,
        request: Request<Streaming<RenewRequest>>,
    ) -> Result<Response<Self::RenewalsStream>, Status> {
        let (caller, requests) = opened(request);
        let service = self.clone();
        // Each is judged when it arrives here, and nothing is kept back.
        let replies = requests.map(move |request| service.renewal(caller.as_ref(), &request?));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn pause_pooler(
        &self,
        request: Request<PausePoolerRequest>,
    ) -> Result<Response<PausePoolerReply>, Status> {
        let (caller, request) = opened(request);
        let node = self.member(request.from.as_ref(), caller.as_ref())?;
        let epoch = Epoch(request.epoch);
        self.owner_at_most(node, epoch)?;
        let pooler = self.shared.config.pooler.as_ref();
        let paused = crate::pooler::pause_here(&self.shared.pooler, pooler, epoch).await;
        Ok(Response::new(PausePoolerReply { paused }))
    }

    async fn perform(&self, request: Request<PerformRequest>) -> Result<Response<PerformReply>, Status> {
        let (caller, request) = opened(request);
        let node = self.member(request.from.as_ref(), caller.as_ref())?;
        if self.shared.consensus.status().leader != Some(node) {
            return Err(Status::failed_precondition(format!("{node} is not known here as the leader")));
        }
        let meant = chores::Meant { started_ms: request.started_ms, data: request.data_id };
        let taken = chores::take_on(&self.shared, Epoch(request.epoch), request.work(), meant);
        let reason = taken.err();
        Ok(Response::new(PerformReply { accepted: reason.is_none(), reason: reason.unwrap_or_default() }))
    }

    async fn examine(&self, request: Request<ExamineRequest>) -> Result<Response<ExamineReply>, Status> {
        let (caller, request) = opened(request);
        self.member(request.from.as_ref(), caller.as_ref())?;
        let exam = doctor::examine(&self.shared).await;
        Ok(Response::new(ExamineReply { exam: codec::pack(&exam) }))
    }

    async fn rehearse(&self, request: Request<RehearseRequest>) -> Result<Response<RehearseReply>, Status> {
        let (caller, request) = opened(request);
        self.member(request.from.as_ref(), caller.as_ref())?;
        let settings: Option<Settings> = codec::unpack(&request.settings);
        let settings = settings.ok_or_else(|| Status::invalid_argument("no settings"))?;
        Ok(Response::new(rehearse::rehearse_here(&self.shared, &settings).await))
    }

    async fn parameters(
        &self,
        request: Request<ParametersRequest>,
    ) -> Result<Response<ParametersReply>, Status> {
        let (caller, request) = opened(request);
        self.member(request.from.as_ref(), caller.as_ref())?;
        Ok(Response::new(match chores::own_parameters(&self.shared).await {
            Ok(parameters) => ParametersReply { parameters: codec::pack(&parameters), reason: String::new() },
            Err(reason) => ParametersReply { parameters: Vec::new(), reason },
        }))
    }
}

impl AgentService {
    async fn admit(&self, member: Member) -> JoinReply {
        let generation = self.shared.hard.get().generation.0;
        let status = self.shared.consensus.status();
        let mut reply = JoinReply { generation, ..JoinReply::default() };
        if !status.leading {
            let applied = Arc::clone(&self.shared.consensus.state().borrow());
            reply.leader_address = status
                .leader
                .and_then(|leader| applied.state.members.get(&leader).map(|m| m.address.clone()))
                .unwrap_or_default();
            "this member does not lead".clone_into(&mut reply.reason);
            return reply;
        }
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        if applied.state.members.get(&member.node) == Some(&member) {
            reply.admitted = true;
            return reply;
        }
        if let Some(reason) = self.alive_under_that_name(&member) {
            reply.reason = reason;
            return reply;
        }
        let command = ClusterCommand::Admit(member);
        if let Some(reason) = self.shared.would_refuse(&command) {
            reply.reason = reason;
            return reply;
        }
        match self.shared.consensus.propose(command, ADMIT_LIMIT).await {
            Ok(done) if done.outcome == Outcome::Done => reply.admitted = true,
            Ok(done) => reply.reason = format!("{:?}", done.outcome),
            Err(error) => reply.reason = error.to_string(),
        }
        reply
    }

    /// A name that another live store answers to is not given away.
    fn alive_under_that_name(&self, member: &Member) -> Option<String> {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let known = applied.state.member_named(&member.name).filter(|known| known.node != member.node)?;
        let now = self.shared.now();
        let table = self.shared.table.borrow();
        let alive = table.get(&known.node).is_some_and(|received| now.millis_since(received.at) < 3000);
        alive
            .then(|| format!("another live member is named {}: give this one another node.name", member.name))
    }
}
