//! A run from the founding to the calm at its end.

use crate::faults::Due;
use crate::process::{Process, address};

use super::{HUNTS, World};

impl World {
    /// Runs the whole story: founding, faults, healing, calm.
    pub fn run(&mut self) {
        let all_up = |world: &Self| world.processes.iter().flatten().all(|process| process.up().is_some());
        self.until(2000, all_up);
        self.found();
        if !self.until(40_000, Self::converged) {
            self.stuck("does not come up");
            return;
        }
        self.plant.say("the cluster is up");
        self.struck = 0;
        let faults = if self.stage.kinds.is_empty() { 0 } else { self.random.between(4, 22) };
        for _ in 0..faults {
            let pause = if self.random.permille(500) { 600 } else { 4000 };
            let pause = self.random.between(20, pause);
            self.until(pause, |_| false);
            if self.broken() {
                return;
            }
            crate::faults::strike(self);
        }
        self.until(1500, |_| false);
        self.heal();
        if !self.until(20_000, Self::converged)
            && (self.for_a_person() || !self.until(100_000, Self::converged))
        {
            self.stuck("I14: does not come to rest");
            return;
        }
        self.plant.say("all is well again");
        self.calm();
    }

    fn heal(&mut self) {
        self.struck = HUNTS;
        self.plant.say("all faults end");
        self.due.retain(|(_, due)| matches!(due, Due::Start(_) | Due::Power(_)));
        self.end_of(Due::Join);
        self.end_of(Due::Quick);
        for index in 0..self.plant.count() {
            self.end_of(Due::Fast(index));
            self.end_of(Due::Continue(index));
            self.end_of(Due::Power(index));
            self.end_of(Due::Start(index));
        }
    }

    /// Nothing ails anybody any more: the owner stays, clients are served (I13).
    fn calm(&mut self) {
        // What was decided while the faults ended is still carried out, leadership finds its place, a copy its end.
        self.until(6000, |_| false);
        let Some(primary) = self.primary() else {
            self.stuck("I14: has rested and does so no more");
            return;
        };
        let epoch = self.plant.machine(primary).epoch;
        let before = (self.plant.check().acknowledged, self.plant.net.sent(), self.log_end(), self.term());
        self.until(8000, |_| false);
        if self.broken() {
            return;
        }
        let messages = (self.plant.net.sent() - before.1) / 8;
        // A new leader writes one entry of its own.
        let entries = self.log_end().saturating_sub(before.2 + self.term() - before.3);
        let before = before.0;
        self.plant.say(format!("calm: {messages} messages a second, {entries} log entries"));
        self.calm_numbers(messages, entries);
        let now = self.plant.machine(primary).epoch;
        let mut check = self.plant.check();
        if now != epoch {
            check.violated(format!("I13: the owner of {epoch} lost it without a cause"));
        }
        if check.acknowledged <= before {
            check.violated("I14: clients are not served");
        }
        drop(check);
        if let Some(data) = self.plant.machine(primary).data.clone() {
            self.plant.check().all_there(primary, &data);
        }
    }

    /// An idle cluster writes nothing, and talks no more than it has to.
    fn calm_numbers(&self, messages: u64, entries: u64) {
        let limit = 40 * self.plant.count() as u64 * self.plant.count() as u64;
        if messages > limit {
            self.plant.check().violated(format!("calm: {messages} messages a second, {limit} are enough"));
        }
        if entries > 0 {
            self.plant.check().violated(format!("calm: {entries} log entries without a cause"));
        }
    }

    fn term(&self) -> u64 {
        let ups = self.processes.iter().flatten().filter_map(Process::up);
        ups.map(|up| up.shared.consensus.status().term).max().unwrap_or(0)
    }

    /// Returns the highest index of any log.
    fn log_end(&self) -> u64 {
        let ups = self.processes.iter().flatten().filter_map(Process::up);
        ups.map(|up| up.shared.consensus.status().last_log.0).max().unwrap_or(0)
    }

    /// Returns what the leader waits for, by code and in words.
    fn waits_for(&self) -> (String, String) {
        let words = self.leader().and_then(|leader| {
            let up = self.processes[leader].as_ref()?.up()?;
            Some(up.shared.decided.borrow().clone())
        });
        words.unwrap_or_else(|| (String::new(), "there is no leader".to_owned()))
    }

    /// Whether what was acknowledged may be lost with a disk: that is a person's to give up.
    fn for_a_person(&self) -> bool {
        !self.plant.check().sync
            && self.data_lost
            && matches!(self.waits_for().0.as_str(), "lag_too_large" | "lag_unknown")
    }

    fn stuck(&mut self, what: &str) {
        if self.broken() {
            return;
        }
        let (_, words) = self.waits_for();
        self.describe();
        if self.for_a_person() {
            self.plant.say(format!("a person has to decide: {words}"));
            return;
        }
        self.plant.check().violated(format!("{what}: {words}"));
    }

    fn describe(&self) {
        for index in 0..self.plant.count() {
            let machine = self.plant.machine(index);
            let end = machine.data.as_ref().map(|data| data.position(data.wal.len()).to_string());
            let up = self.processes[index].as_ref().and_then(Process::up);
            let raft = up.as_ref().map(|up| {
                let status = up.shared.consensus.status();
                let configs: Vec<usize> =
                    status.configs.iter().map(std::collections::BTreeSet::len).collect();
                let members = up.shared.consensus.state().borrow().state.members.len();
                format!(
                    "{:?} term {} applied {} of {} voters {configs:?} learners {} members {members}",
                    status.role,
                    status.term,
                    status.applied,
                    status.last_log,
                    status.learners.len()
                )
            });
            let hard = up.map(|up| {
                let hard = up.shared.hard.get();
                format!(
                    "promise {} floor {:?} sentinel {}",
                    hard.promise,
                    hard.floor.map(|p| p.to_string()),
                    hard.sentinel.is_some()
                )
            });
            let upstream = machine.upstream.and_then(|node| self.plant.index_of(node)).map(|index| index + 1);
            let frozen = machine.guard.frozen.is_some();
            let text = format!(
                "n{} {} {:?} at {end:?} gate {} streaming {} from {upstream:?} frozen {frozen}; {hard:?}; {raft:?}",
                index + 1,
                address(index),
                machine.run,
                machine.gate,
                machine.streaming,
            );
            drop(machine);
            self.plant.say(text);
        }
    }
}
