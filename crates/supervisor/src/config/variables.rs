//! ✦ Variables of the environment that nobody reads and that look like one that is read.

use super::nearest::nearest;
use super::{Environment, keys};

/// Variables that belong to no key.
const OTHERS: [&str; 5] = ["CONFIG", "HOST", "LOG", "LOG_FORMAT", "PG_BIN"];

/// Returns each variable that is nearly one that Rhone reads, with that one's name.
///
/// What is not near any is left alone: Kubernetes sets `RHONE_SERVICE_HOST` and the like for a service `rhone`.
pub fn misspelled(env: &Environment) -> Vec<(String, String)> {
    let of_keys = keys::KEYS.iter().filter(|key| keys::is_value(key)).map(|key| keys::variable(key));
    let known: Vec<String> = of_keys.chain(OTHERS.iter().map(|name| format!("RHONE_{name}"))).collect();
    let names = || known.iter().filter_map(|name| name.strip_prefix("RHONE_"));
    let free: Vec<String> = keys::FREE.iter().map(|table| keys::variable(table)).collect();
    env.keys()
        .filter(|name| !known.contains(*name) && !free.iter().any(|table| name.starts_with(table)))
        .filter_map(|name| Some((name, nearest(name.strip_prefix("RHONE_")?, names())?)))
        .map(|(name, near)| (name.clone(), format!("RHONE_{near}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::misspelled;

    #[test]
    fn a_slip_is_found_and_what_others_set_is_left_alone() {
        let env = [
            "RHONE_NODE_NAEM",
            "RHONE_CLUSTR",
            "RHONE_HOSTS",
            "RHONE_NODE_NAME",
            "RHONE_BOOTSTRAP_POSTGRES_WORK_MME",
            "RHONE_NODE_TAGS_ZONE",
            "RHONE_LOG",
            "RHONE_PORT",
            "RHONE_SERVICE_HOST",
            "RHONE_PORT_7400_TCP_ADDR",
            "PGHOST",
        ];
        let env = env.map(|name| (name.to_owned(), String::new())).into();
        let found: Vec<String> =
            misspelled(&env).into_iter().map(|(name, near)| format!("{name} {near}")).collect();
        assert_eq!(
            found,
            ["RHONE_CLUSTR RHONE_CLUSTER", "RHONE_HOSTS RHONE_HOST", "RHONE_NODE_NAEM RHONE_NODE_NAME"]
        );
    }
}
