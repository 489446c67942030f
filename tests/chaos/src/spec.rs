//! What kind of cluster is built.

use std::path::PathBuf;

use crate::node::Extras;

/// The replicated `sync` setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    /// Asynchronous: a bounded loss.
    Off,
    /// Synchronous while it can be.
    Quorum,
    /// Synchronous or not at all.
    Strict,
}

impl Sync {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Quorum => "quorum",
            Self::Strict => "strict",
        }
    }
}

/// What kind of cluster.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How many members, a witness too.
    pub members: usize,
    /// What each node is given.
    pub extras: Extras,
    /// How many of them found the cluster; the others are not started, and join it later. All when absent.
    pub founders: Option<usize>,
    /// Whether the last member is a witness.
    pub witness: bool,
    /// Lines under `[node.tags]` of a member, by its index.
    pub tags: Vec<(usize, &'static str)>,
    /// The `sync` setting.
    pub sync: Sync,
    /// Further lines under `[bootstrap]`.
    pub bootstrap: String,
    /// Further tables of each member's file; `{address}` and `{folder}` are the member's.
    pub tables: String,
    /// Further Postgres parameters.
    pub postgres: String,
    /// The program under test instead of `rhone`, for tests of the harness itself.
    pub program: Option<PathBuf>,
}

impl Spec {
    /// An asynchronous cluster.
    pub fn asynchronous(members: usize) -> Self {
        Self {
            members,
            founders: None,
            witness: false,
            tags: Vec::new(),
            extras: Extras::default(),
            sync: Sync::Off,
            bootstrap: String::new(),
            tables: String::new(),
            postgres: String::new(),
            program: None,
        }
    }

    /// The same with a witness as its last member.
    pub fn with_witness(self) -> Self {
        Self { witness: true, ..self }
    }

    /// The `[bootstrap]` tables, for clients of these addresses.
    pub(crate) fn bootstrap(&self, clients: &str) -> String {
        let sync = self.sync.name();
        format!(
            "[bootstrap]\nsync = \"{sync}\"\npg-hba = [\"host all all {clients} trust\"]\n{}\
             [bootstrap.postgres]\nshared_buffers = \"32MB\"\n{}",
            self.bootstrap, self.postgres
        )
    }
}
