//! ✦ PgBouncer's configuration and list of users.

use crate::config::{Address, Pooler};

/// The role of PgBouncer's own that Rhone administers it as.
pub(super) const ADMIN: &str = "rhone_pooler";

/// The configuration's name in the folder.
pub(super) const CONFIG: &str = "pgbouncer.ini";

/// The list of users' name.
pub(super) const USERS: &str = "users.txt";

/// Renders `pgbouncer.ini`.
///
/// A server that is gone is noticed in seconds; what a client's library asks for and a pool cannot keep is ignored
/// where that is harmless.
pub(super) fn config(pooler: &Pooler, server: &Address) -> String {
    let dir = pooler.dir.display();
    let listen = if pooler.listen.is_wildcard() { "*" } else { &pooler.listen.host };
    let include =
        pooler.include.as_ref().map_or_else(String::new, |path| format!("%include {}\n", path.display()));
    format!(
        "; Written by rhone: changes are overwritten. Your own go into a file named by [pgbouncer] include.\n\
         [databases]\n\
         * = host={host} port={port}\n\
         \n\
         [pgbouncer]\n\
         listen_addr = {listen}\n\
         listen_port = {listen_port}\n\
         unix_socket_dir = {dir}\n\
         pidfile = {dir}/pgbouncer.pid\n\
         auth_type = scram-sha-256\n\
         auth_file = {dir}/{USERS}\n\
         admin_users = {ADMIN}\n\
         pool_mode = {mode}\n\
         default_pool_size = {pool_size}\n\
         max_client_conn = {max_clients}\n\
         server_login_retry = 1\n\
         server_connect_timeout = 3\n\
         server_fast_close = 1\n\
         tcp_keepalive = 1\n\
         tcp_keepidle = 5\n\
         tcp_keepintvl = 2\n\
         tcp_keepcnt = 3\n\
         tcp_user_timeout = 30000\n\
         ignore_startup_parameters = extra_float_digits\n\
         {include}",
        host = server.host,
        port = server.port,
        listen_port = pooler.listen.port,
        mode = pooler.mode.word(),
        pool_size = pooler.pool_size,
        max_clients = pooler.max_clients,
    )
}

/// Renders the list of users: the operator's, then Rhone's own.
pub(super) fn users(theirs: &str, password: &str) -> String {
    let own = format!("\"{ADMIN}\"");
    let mine = format!("{own} \"{}\"", password.replace('"', "\"\""));
    let theirs = theirs.lines().filter(|line| !line.trim_start().starts_with(&own));
    let lines: Vec<&str> = theirs.chain([mine.as_str()]).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::config::PoolMode;

    #[test]
    fn the_files_are_pgbouncers() {
        let pooler = Pooler {
            listen: "0.0.0.0:6432".parse().expect("an address"),
            user: None,
            dir: PathBuf::from("/var/lib/rhone/pgbouncer"),
            users_file: PathBuf::from("/etc/pgbouncer/userlist.txt"),
            include: Some(PathBuf::from("/etc/pgbouncer/more.ini")),
            mode: PoolMode::Transaction,
            pool_size: 20,
            max_clients: 1000,
            pause_timeout: Duration::from_secs(5),
        };
        let text = config(&pooler, &"10.0.0.12:5433".parse().expect("an address"));
        for line in [
            "* = host=10.0.0.12 port=5433",
            "listen_addr = *",
            "listen_port = 6432",
            "auth_file = /var/lib/rhone/pgbouncer/users.txt",
            "pool_mode = transaction",
            "%include /etc/pgbouncer/more.ini",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert_eq!(
            users("\"app\" \"SCRAM-SHA-256$…\"\n\"rhone_pooler\" \"old\"", "new"),
            "\"app\" \"SCRAM-SHA-256$…\"\n\"rhone_pooler\" \"new\"\n"
        );
    }
}
