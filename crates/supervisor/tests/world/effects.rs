//! What a member does when it is told to.

use super::*;

impl World {
    pub(super) fn act(&mut self, node: usize) {
        if let Some((effect, epoch, until)) = self.nodes[node].running
            && self.now >= until
        {
            self.nodes[node].running = None;
            self.finish(node, effect, epoch);
        }
        let instance = self.nodes[node].instance(self.now);
        let decision = decide::node(&self.nodes[node].view(&instance), self.at());
        if self.recording && self.nodes[node].decided != Some(decision) {
            self.nodes[node].decided = Some(decision);
            let (at, now) = (rhone::civil::WallTime::from_ms(0), self.at());
            let seen = MemberSeen::of(&self.nodes[node].view(&instance));
            self.replay(&Line::Member(record::Record { at, now, seen, decided: decision }));
        }
        let text = match decision {
            NodeDecision::Act(effect, epoch, reason) => {
                let takes = self.draw(4) * TICK_MS;
                self.begin(node, effect, epoch);
                self.nodes[node].running = Some((effect, epoch, self.now + TICK_MS + takes));
                let to = match effect {
                    Effect::Start(Some(to)) | Effect::Follow(to) | Effect::Rewind(to) | Effect::Clone(to) => {
                        format!(" n{}", to.0)
                    }
                    _ => String::new(),
                };
                format!("n{}: {}{to} in {epoch} ({reason})", node + 1, effect.code())
            }
            NodeDecision::Rest(_) => String::new(),
        };
        if !text.is_empty() && self.nodes[node].last != text {
            self.say(&text);
        }
        if !text.is_empty() {
            self.nodes[node].last = text;
        }
        let n = &mut self.nodes[node];
        if n.leaving && matches!(n.postgres, Postgres::Stopped { .. }) && n.leave_now {
            n.up = false;
        }
        if n.revoke.is_some_and(|asked| {
            asked < n.promise || n.state.grant.as_ref().is_some_and(|g| g.epoch >= asked)
        }) {
            n.revoke = None;
        }
    }

    /// What an effect does as soon as it begins.
    pub(super) fn begin(&mut self, node: usize, effect: Effect, epoch: Epoch) {
        let n = &mut self.nodes[node];
        match effect {
            Effect::Start(Some(_)) | Effect::Follow(_) | Effect::Clone(_) => n.promise = n.promise.max(epoch),
            Effect::Rewind(_) => {
                n.promise = n.promise.max(epoch);
                n.unfinished = Some(epoch);
                n.kill();
            }
            Effect::Fence => n.kill(),
            Effect::SetPolicy => {
                if let Some(policy) = n.state.policy().filter(|policy| policy.epoch == epoch) {
                    let new = (policy.number, policy.kind.clone());
                    // From the reload on some processes use the new one and some the old.
                    if n.using.last().is_none_or(|(number, _)| *number < new.0) {
                        n.using.push(new);
                    }
                }
            }
            Effect::Revoke => {
                n.promise = n.promise.max(epoch);
                if matches!(n.postgres, Postgres::Primary { .. }) {
                    n.kill();
                }
            }
            _ => {}
        }
    }

    pub(super) fn finish(&mut self, node: usize, effect: Effect, epoch: Epoch) {
        if self.nodes[node].promise > epoch {
            return; // a promise that was given meanwhile
        }
        let source = |to: NodeId| to.0 as usize - 1;
        match effect {
            Effect::InitDb => {
                let n = &mut self.nodes[node];
                n.wal = vec![Record { timeline: 1, id: 0 }];
                n.data = DataId(1000 + node as u64);
                n.postgres = Postgres::Stopped { clean: true, primary: true };
            }
            Effect::Start(upstream) => {
                if matches!(self.nodes[node].postgres, Postgres::Stopped { .. }) {
                    self.nodes[node].postgres = Postgres::Standby { upstream, streaming: false };
                }
            }
            Effect::Follow(to) => {
                if matches!(self.nodes[node].postgres, Postgres::Standby { .. }) {
                    self.nodes[node].postgres = Postgres::Standby { upstream: Some(to), streaming: false };
                }
            }
            Effect::Revoke => self.answer(node, epoch),
            Effect::Promote => self.promote(node, epoch),
            Effect::SetPolicy => self.settle(node),
            Effect::OpenGate => {
                let first = self.nodes[node].state.history.is_empty();
                let durable = first || self.acknowledged(node) >= self.nodes[node].wal.len();
                if let Postgres::Primary { gate, .. } = &mut self.nodes[node].postgres {
                    *gate |= durable;
                }
            }
            Effect::Fence => {}
            Effect::HandOver => {
                let id = self.nodes[node].id;
                for peer in 0..3 {
                    if self.linked(node, peer)
                        && self.nodes[peer].postgres
                            == (Postgres::Standby { upstream: Some(id), streaming: true })
                    {
                        self.nodes[peer].streamed = self.now;
                        self.nodes[peer].wal = self.nodes[node].wal.clone();
                        self.nodes[peer].timeline = self.nodes[node].timeline;
                    }
                }
                if matches!(self.nodes[node].postgres, Postgres::Primary { .. }) {
                    self.nodes[node].postgres = Postgres::Stopped { clean: true, primary: true };
                }
            }
            Effect::Stop => {
                let n = &mut self.nodes[node];
                if matches!(n.postgres, Postgres::Standby { .. }) {
                    n.postgres = Postgres::Stopped { clean: true, primary: false };
                }
            }
            Effect::Rewind(to) | Effect::Clone(to) => self.copy(node, source(to), effect),
        }
    }

    pub(super) fn copy(&mut self, node: usize, source: usize, effect: Effect) {
        if !self.linked(node, source) || !matches!(self.nodes[source].postgres, Postgres::Primary { .. }) {
            return;
        }
        let theirs = self.nodes[source].wal.clone();
        let timeline = self.nodes[source].timeline;
        let back = self.draw(3) as usize;
        let data = DataId(1000 + self.fresh() * 10 + node as u64);
        let n = &mut self.nodes[node];
        (n.data, n.stranger, n.streamed) = (data, false, self.now);
        if matches!(effect, Effect::Clone(_)) {
            n.floor = theirs.len();
            n.wal = theirs;
            n.timeline = timeline;
        } else {
            let common = n.wal.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            n.floor = common;
            n.wal.truncate(common.saturating_sub(back).max(1));
            n.timeline = n.wal.last().map_or(1, |record| record.timeline);
        }
        n.unfinished = None;
        n.postgres = Postgres::Stopped { clean: true, primary: false };
    }

    pub(super) fn answer(&mut self, node: usize, epoch: Epoch) {
        let streams_on = self.mutant == Mutant::StreamsOn;
        let no_floor = self.mutant == Mutant::NoFloor;
        let no_incarnation = self.mutant == Mutant::NoIncarnation;
        let n = &mut self.nodes[node];
        if let Postgres::Standby { upstream, streaming } = &mut n.postgres
            && !streams_on
        {
            (*upstream, *streaming) = (None, false);
        }
        let counts =
            n.postgres != Postgres::Absent && n.unfinished.is_none() && (n.wal.len() >= n.floor || no_floor);
        let counts = counts && (!n.stranger || no_incarnation);
        let revoked = Revoked {
            epoch,
            position: counts.then(|| n.position()),
            data: n.data,
            able: !n.leaving,
            highest_timeline: Timeline::new(n.timeline),
        };
        n.revoke = n.revoke.filter(|asked| *asked > epoch);
        self.messages.push_back(Message::Revoked(node, revoked));
    }

    pub(super) fn promote(&mut self, node: usize, epoch: Epoch) {
        let n = &self.nodes[node];
        let Some(grant) = n.state.current_grant().cloned() else { return };
        let ready = grant.epoch == epoch && n.promise == epoch && n.position() == grant.base;
        if !ready || self.now >= n.lease_until || !matches!(n.postgres, Postgres::Standby { .. }) {
            return;
        }
        let id = self.fresh();
        let n = &mut self.nodes[node];
        n.timeline = grant.timeline.get();
        n.postgres = Postgres::Primary { epoch, gate: false, switch: n.wal.len() as u64 };
        n.wal.push(Record { timeline: n.timeline, id });
        n.acks.clear();
        let policy = n.state.policy().expect("a grant has one").clone();
        n.using = vec![(policy.number, policy.kind)];
        n.secured = Some(policy.number);
    }

    /// All processes have taken the newest policy over; older ones go once it has everything.
    pub(super) fn settle(&mut self, node: usize) {
        if !matches!(self.nodes[node].postgres, Postgres::Primary { .. }) {
            return;
        }
        let Some((number, kind)) = self.nodes[node].using.last().cloned() else { return };
        let until = self.acknowledged_under(node, &kind);
        let n = &mut self.nodes[node];
        n.using = vec![(number, kind)];
        if until >= n.wal.len() || self.mutant == Mutant::NarrowsEarly {
            n.secured = Some(number);
        }
    }

    pub(super) fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
