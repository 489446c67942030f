//! Programs of the operator's on real members: told of a change of primary, asked before it, in nobody's way.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec, Sync};
use rhone_chaos::lock::take_turn;
use rhone_chaos::scenario::hold;
use rhone_chaos::workload::Plan;

/// A command on a loaded machine.
const COMMAND: Duration = Duration::from_secs(120);

/// Each callback goes on for longer than anybody waits: it is killed at the limit and holds nothing up.
const TABLES: &str = "[hooks]\non-role-change = [\"{folder}/tell\", \"{folder}/told\"]\n\
    on-stop = [\"{folder}/tell\", \"{folder}/told\"]\npre-promote = [\"{folder}/may\"]\n\
    before-stop = [\"{folder}/tell\", \"{folder}/told\", \"before_stop\"]\ntimeout = \"2s\"\n";

/// Writes the programs of a member.
fn write(cluster: &Cluster, index: usize) -> Result<()> {
    let folder = cluster.node(index)?.folder();
    let refuse = folder.join("refuse").display().to_string();
    for (name, text) in [
        ("tell", "#!/bin/sh\nout=$1\nshift\necho \"$@\" >> \"$out\"\nsleep 1000\n".to_owned()),
        ("may", format!("#!/bin/sh\nif [ -e '{refuse}' ]; then echo not now >&2; exit 3; fi\n")),
        ("told", String::new()),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    }
    Ok(())
}

fn refuse(cluster: &Cluster, index: usize, refuses: bool) -> Result<()> {
    let path = cluster.node(index)?.folder().join("refuse");
    if refuses { std::fs::write(&path, "") } else { std::fs::remove_file(&path) }.context("refuse")
}

fn told(cluster: &Cluster, index: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(cluster.node(index)?.folder().join("told"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

#[test]
fn a_refused_promotion_passes_the_member_over_and_no_program_holds_anything_up() -> Result<()> {
    let _turn = take_turn()?;
    let spec = Spec { sync: Sync::Quorum, tables: TABLES.to_owned(), ..Spec::asynchronous(3) };
    let mut cluster = Cluster::create(&spec)?;
    for index in 0..3 {
        write(&cluster, index)?;
        cluster.start_node(index)?;
    }
    cluster.prepare_database()?;
    let workload = cluster.workload(&Plan::default());
    workload.wait_for(50, LIMIT)?;
    cluster.wait_secured()?;

    // The one that is to take over is not allowed to: another one does, or the old one again.
    let first = cluster.wait_whole()?;
    let (chosen, other) = ((first + 1) % 3, (first + 2) % 3);
    refuse(&cluster, chosen, true)?;
    let name = cluster.node(chosen)?.name();
    let output = cluster.rhone(first, &["switchover", "--to", &name], COMMAND)?;
    ensure!(output.code == Some(1), "{:?} {}", output.code, output.stderr);
    ensure!(output.stderr.contains(&format!("{name} could not take over")), "{}", output.stderr);
    let second = cluster.wait_whole()?;
    ensure!(second != chosen, "{name} was promoted");
    workload.wait_for(50, LIMIT)?;
    cluster.wait_until("the log of the one that refused says why", || {
        let log = std::fs::read_to_string(cluster.node(chosen)?.log())?;
        ensure!(
            log.contains("the pre-promote hook refuses") && log.contains("not now"),
            "{name} does not say"
        );
        Ok(())
    })?;
    cluster.wait_until("the programs were told", || {
        let (old, new) = (told(&cluster, first)?, told(&cluster, second)?);
        let at = |start: &str| old.iter().position(|line| line.starts_with(start));
        let (before, after) = (at("before_stop"), at("on_stop primary "));
        ensure!(before.is_some() && before < after, "{first}: {old:?}");
        let demoted = old.iter().any(|line| line.starts_with("on_role_change replica "));
        ensure!(demoted || second == first, "{first}: {old:?}");
        let promoted = new.iter().any(|line| line.starts_with("on_role_change primary "));
        ensure!(promoted || second == first, "{second}: {new:?}");
        Ok(())
    })?;
    ensure!(
        told(&cluster, chosen)?.iter().all(|line| !line.contains("primary")),
        "{:?}",
        told(&cluster, chosen)?
    );

    // Where everybody refuses nobody is promoted, and nothing is left to be cleared once somebody agrees.
    cluster.wait_secured()?;
    let survivors: Vec<usize> = [first, chosen, other].into_iter().filter(|index| *index != second).collect();
    for index in survivors.iter().filter(|index| **index != chosen) {
        refuse(&cluster, *index, true)?;
    }
    cluster.power_loss(second, PowerLoss::Resets)?;
    cluster.wait_until("both were asked and refused", || {
        for index in &survivors {
            let log = std::fs::read_to_string(cluster.node(*index)?.log())?;
            ensure!(log.contains("the pre-promote hook refuses"), "{index} was not asked");
        }
        Ok(())
    })?;
    hold(Duration::from_secs(2));
    ensure!(cluster.primary().is_none(), "somebody was promoted: {:?}", cluster.roles());
    for index in &survivors {
        refuse(&cluster, *index, false)?;
    }
    cluster.wait_whole_without(&[second])?;
    cluster.start_node(second)?;
    cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    workload.stop().map(drop)
}
