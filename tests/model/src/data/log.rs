//! The replicated log, each prefix a number, with the real state after it.

use std::collections::HashMap;
use std::rc::Rc;

use rhone_consensus::command::{ClusterCommand, Outcome};
use rhone_consensus::ids::LogIndex;
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::state::ClusterState;

use crate::search::Memo;

/// The number of a log.
pub(super) type LogId = u32;

#[derive(Debug)]
struct Prefix {
    /// The log without its last entry.
    chain: Vec<LogId>,
    command: Option<ClusterCommand>,
    state: Rc<ClusterState>,
}

/// Every log that was ever seen, and every command.
#[derive(Debug)]
pub(super) struct Logs {
    prefixes: Vec<Prefix>,
    commands: Vec<ClusterCommand>,
    known: HashMap<String, u32>,
    appended: Memo<(LogId, u32), Option<LogId>>,
}

impl Default for Logs {
    fn default() -> Self {
        let empty = Prefix { chain: vec![0], command: None, state: Rc::default() };
        Self { prefixes: vec![empty], commands: Vec::new(), known: HashMap::new(), appended: Memo::default() }
    }
}

impl Logs {
    fn prefix(&self, log: LogId) -> &Prefix {
        &self.prefixes[log as usize]
    }

    /// Gives a command its number.
    pub(super) fn command(&mut self, command: &ClusterCommand) -> u32 {
        let text = format!("{command:?}");
        if let Some(known) = self.known.get(&text) {
            return *known;
        }
        let id = u32::try_from(self.commands.len()).expect("few enough commands");
        self.commands.push(command.clone());
        self.known.insert(text, id);
        id
    }

    pub(super) fn the_command(&self, id: u32) -> &ClusterCommand {
        &self.commands[id as usize]
    }

    /// Appends a command and applies it; nothing when it is refused. `edit` is for mutants.
    pub(super) fn append(
        &mut self,
        log: LogId,
        command: u32,
        edit: impl Fn(&mut ClusterState, &mut ClusterCommand, bool),
    ) -> Option<LogId> {
        if let Some(known) = self.appended.get(&(log, command)) {
            return *known;
        }
        let here = self.prefix(log);
        let mut applied = self.the_command(command).clone();
        let mut state = ClusterState::clone(&here.state);
        let index = LogIndex(here.chain.len() as u64);
        edit(&mut state, &mut applied, false);
        let outcome = state.apply(index, &applied);
        edit(&mut state, &mut applied, true);
        let made = if matches!(outcome, Outcome::Refused(_)) {
            None
        } else {
            let id = LogId::try_from(self.prefixes.len()).expect("few enough logs");
            let mut chain = here.chain.clone();
            chain.push(id);
            self.prefixes.push(Prefix { chain, command: Some(applied), state: Rc::new(state) });
            Some(id)
        };
        self.appended.insert((log, command), made);
        made
    }

    /// Returns how many entries a log has.
    pub(super) fn len(&self, log: LogId) -> u8 {
        u8::try_from(self.prefix(log).chain.len() - 1).expect("a short log")
    }

    /// Returns its first `len` entries.
    pub(super) fn cut(&self, log: LogId, len: u8) -> LogId {
        self.prefix(log).chain[usize::from(len)]
    }

    pub(super) fn state(&self, log: LogId) -> Rc<ClusterState> {
        Rc::clone(&self.prefix(log).state)
    }

    pub(super) fn last(&self, log: LogId) -> Option<&ClusterCommand> {
        self.prefix(log).command.as_ref()
    }

    /// Returns the policy that the entry of that index added.
    pub(super) fn policy(&self, log: LogId, number: u8) -> Option<&PolicyKind> {
        if usize::from(number) >= self.prefix(log).chain.len() {
            return None;
        }
        match self.last(self.cut(log, number))? {
            ClusterCommand::Grant(grant) => Some(&grant.policy),
            ClusterCommand::AddPolicy { kind, .. } => Some(kind),
            _ => None,
        }
    }
}
