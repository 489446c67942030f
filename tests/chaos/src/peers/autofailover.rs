//! pg_auto_failover: a monitor on a node of its own (the last one), and a keeper beside each Postgres.
//!
//! All of it as `pg_autoctl create … --run` makes it: its default timings, and its default of synchronous replication
//! to one of two standbys.

use std::time::Duration;

use anyhow::Result;

use crate::binary;
use crate::cluster::Cluster;
use crate::node::POSTGRES_PORT;
use crate::peers::launch;

/// Writes what each node starts; the last one is the monitor.
pub fn prepare(cluster: &mut Cluster) -> Result<()> {
    let (members, last) = (cluster.members(), cluster.members() - 1);
    let program = launch::needed("pg_autoctl")?;
    let program = program.display();
    let monitor = cluster.node(last)?.address();
    for index in 0..members {
        let node = cluster.node(index)?;
        let (data, address, range) = (node.data(), node.address(), cluster.network().client_range());
        let data = data.display();
        let pgctl = binary::postgres_folder()?.join("pg_ctl");
        let common = format!(
            "--pgdata '{data}' --pgctl '{}' --pgport {POSTGRES_PORT} --hostname {address} --auth trust --no-ssl",
            pgctl.display()
        );
        // What was created runs on by `run`.
        let create = if index == last {
            format!("as '{program}' create monitor {common}")
        } else {
            format!(
                "until as '{}' -q -h {monitor} -p {POSTGRES_PORT} -d pg_auto_failover -U autoctl_node; do sleep 0.2; done\n\
                 as '{program}' create postgres {common} --username postgres --name {} \
                 --monitor 'postgres://autoctl_node@{monitor}:{POSTGRES_PORT}/pg_auto_failover?sslmode=prefer'",
                binary::postgres_folder()?.join("pg_isready").display(),
                node.name(),
            )
        };
        let rules = format!("host replication all {range} trust\\nhost all all {range} trust\\n");
        // pg_autoctl looks for the socket in Debian's one folder: each node sees its own folder there.
        let before = format!(
            "if [ -z \"${{APART:-}}\" ]; then APART=1 exec unshare --mount --propagation private \"$0\" \"$@\"; fi\n\
             mkdir -p /var/run/postgresql\nmount --bind '{sockets}' /var/run/postgresql\n\
             if [ ! -e created ]; then\n{create}\nprintf '{rules}' >> '{data}/pg_hba.conf'\n\
             echo \"shared_buffers = '32MB'\" >> '{data}/postgresql.conf'\ntouch created\nfi",
            sockets = node.folder().join("s").display(),
        );
        let script = launch::script(node, &before, &format!("'{program}' run --pgdata '{data}'"))?;
        cluster.node_mut(index)?.use_program(script);
    }
    Ok(())
}

/// `pg_autoctl perform promotion` of one standby.
pub fn switchover(cluster: &Cluster, to: usize) -> Result<()> {
    let node = cluster.node(to)?;
    let (program, data, name) = (launch::needed("pg_autoctl")?, node.data(), node.name());
    let (program, data) = (program.display().to_string(), data.display().to_string());
    let words = [program.as_str(), "perform", "promotion", "--pgdata", &data, "--name", &name];
    launch::command_ok(cluster, to, &words, Duration::from_secs(120)).map(drop)
}
