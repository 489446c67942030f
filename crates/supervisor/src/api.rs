//! What the member shows to the outside: gRPC for operators, HTTP for checks and dashboards.
//!
//! Nothing over HTTP changes anything. Only `convert` knows both the protocol's types and ours.

pub mod access;
pub mod admin;
pub mod agent;
mod convert;
mod convert_settings;
pub mod discovery;
mod disks;
pub mod health;
mod metrics;
mod once;
mod page;
mod patroni;
pub mod proto;
pub mod socket;
mod tags;
mod timeline;

pub use self::admin::admin_service;
pub(crate) use self::convert::{
    change_reply, cluster_status, event, explanation, history_entry, to_dsn_role,
};
pub(crate) use self::convert_settings::{finding, settings_changed, settings_version, settings_view};
