//! File systems of a node's own: ext4 on a loop device, so that a power cut loses what was not
//! fsynced, and that a disk can be full, hang or turn read-only without harm to the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::binary;
use crate::clock::Moment;
use crate::process::{self, run_ok};

/// The ioctl that takes the power from a mounted ext4 or xfs; 2 is "do not flush the log".
const SHUTDOWN: &str = "import fcntl,os,struct,sys; \
     [fcntl.ioctl(os.open(at,0),0x8004587d,struct.pack('I',2)) for at in sys.argv[1:]]";

/// One mounted file system.
#[derive(Clone, Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

/// Why disks cannot be made here, `None` when they can.
pub fn impossible() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("no root: no disks of their own");
    }
    let there = |name| binary::program(name).is_some();
    if !there("mkfs.ext4") || !there("fsfreeze") || !Path::new("/dev/loop-control").exists() {
        return Some("no mkfs.ext4, fsfreeze or loop devices here");
    }
    if there("python3") { None } else { Some("no python3 here, which makes the ioctl of a power cut") }
}

/// Mount points below a folder, innermost first.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1).map(PathBuf::from))
        .filter(|at| at.starts_with(folder) && at != folder)
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Takes the power from all of them at once: what was not fsynced is lost, and each later call fails,
/// until [`Disk::reboot`].
pub fn cut_power(disks: &[Disk]) -> Result<()> {
    let places = disks.iter().map(|disk| &disk.at);
    run_ok(Command::new("python3").args(["-c", SHUTDOWN]).args(places)).map(drop)
}

/// Thaws and unmounts everything below a folder.
pub fn erase_below(folder: &Path, unmount: bool) {
    for at in mounts_below(folder) {
        drop(process::run(Command::new("fsfreeze").arg("-u").arg(&at), Duration::from_secs(5)));
        if unmount {
            drop(run_ok(Command::new("umount").arg("-l").arg(&at)));
        }
    }
}

impl Disk {
    /// Makes an ext4 of so many MiB in the file `image` and mounts it at the folder `at`.
    pub fn create(image: PathBuf, at: PathBuf, mebibytes: u64) -> Result<Self> {
        let file = fs::File::create(&image).with_context(|| format!("make {}", image.display()))?;
        file.set_len(mebibytes << 20).context("size the image")?;
        // No blocks for root alone, so that a full disk is full for everybody.
        run_ok(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let disk = Self { image, at };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    fn mount(&self) -> Result<()> {
        let options = "loop,errors=remount-ro";
        run_ok(Command::new("mount").args(["-o", options]).arg(&self.image).arg(&self.at)).map(drop)
    }

    /// Where a mount namespace made meanwhile has a copy of the mount, the file system that lost its power lives on
    /// and would be mounted again: then a copy of its image takes its place.
    fn unmount(&self) -> Result<()> {
        let start = Moment::now();
        loop {
            match run_ok(Command::new("umount").arg(&self.at)) {
                Ok(_) => break,
                Err(error) if start.elapsed() > Duration::from_secs(10) => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
        let attached =
            process::run(Command::new("losetup").arg("-j").arg(&self.image), Duration::from_secs(60))?;
        if !attached.stdout.trim().is_empty() {
            let copy = self.image.with_extension("copy");
            run_ok(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&copy))?;
            fs::rename(&copy, &self.image).context("put the copy of the image in its place")?;
        }
        Ok(())
    }

    /// Mounts it again, as a machine does that starts. Nobody may use it meanwhile.
    pub fn reboot(&self) -> Result<()> {
        self.unmount()?;
        self.mount()?;
        // What had been given back and was not on disk yet is taken again.
        self.relieve()
    }

    /// The same, with what the file system's check repairs.
    pub fn repair(&self) -> Result<()> {
        self.unmount()?;
        let checked = process::run(
            Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image),
            Duration::from_secs(60),
        )?;
        // 1: errors were corrected.
        if !matches!(checked.code, Some(0 | 1)) {
            bail!("e2fsck ended with {:?}: {}", checked.code, checked.stdout);
        }
        self.mount()
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Takes all of the space that is left.
    pub fn fill(&self) -> Result<()> {
        // In ever smaller steps, until not one block is left.
        let script = "f=$1; for s in 268435456 16777216 1048576 65536 4096; do \
                      while fallocate -o $(stat -c %s $f 2>/dev/null || echo 0) -l $s $f 2>/dev/null; do :; done; done";
        run_ok(Command::new("sh").args(["-c", script, "fill"]).arg(self.ballast())).map(drop)
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn relieve(&self) -> Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove ballast")
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Lets every write hang, or go on.
    pub fn hang(&self, hung: bool) -> Result<()> {
        run_ok(Command::new("fsfreeze").arg(if hung { "-f" } else { "-u" }).arg(&self.at)).map(drop)
    }

    /// Lets the kernel find an error in it and remount it read-only, as it does with a failing card.
    pub fn fail(&self) -> Result<()> {
        let table = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
        let device = table
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, rest)| rest.split(' ').next().is_some_and(|at| Path::new(at) == self.at))
            .and_then(|(device, _)| device.rsplit('/').next().map(str::to_owned))
            .with_context(|| format!("{} is not mounted", self.at.display()))?;
        let path = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        fs::write(&path, "chaos").with_context(|| format!("write {path}"))
    }

    /// Whether it is mounted read-only.
    pub fn read_only(&self) -> bool {
        let table = fs::read_to_string("/proc/mounts").unwrap_or_default();
        table.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.nth(1).is_some_and(|at| Path::new(at) == self.at)
                && words.nth(1).is_some_and(|options| {
                    options.split(',').any(|word| word == "ro" || word == "emergency_ro")
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_power_cut_loses_what_was_not_synced_and_nothing_else() {
        if let Some(why) = impossible() {
            crate::scenario::report(&format!("SKIPPED: {why}"));
            return;
        }
        let folder = std::env::temp_dir().join(format!("{}-disk", crate::cleanup::new_id()));
        let at = folder.join("m");
        fs::create_dir_all(&at).expect("make a folder");
        let disk = Disk::create(folder.join("image"), at.clone(), 32).expect("a disk");
        let write = |name: &str| {
            let mut file = fs::File::create(at.join(name)).expect("create");
            file.write_all(b"x").expect("write");
            file
        };
        write("kept").sync_all().expect("sync");
        fs::File::open(&at).expect("open").sync_all().expect("sync the folder");
        drop(write("lost"));
        cut_power(std::slice::from_ref(&disk)).expect("cut");
        disk.reboot().expect("reboot");
        let there = (at.join("kept").exists(), fs::read(at.join("lost")).unwrap_or_default().len());
        disk.fill().expect("fill");
        let full = fs::write(at.join("more"), vec![1; 65536]).is_err();
        disk.relieve().expect("relieve");
        let relieved = fs::write(at.join("more"), vec![1; 65536]).is_ok();
        disk.fail().expect("fail");
        let read_only = disk.read_only() && fs::write(at.join("again"), b"x").is_err();
        disk.repair().expect("repair");
        let repaired = fs::write(at.join("again"), b"x").is_ok() && !disk.read_only();
        erase_below(&folder, true);
        drop(fs::remove_dir_all(&folder));
        assert_eq!(there, (true, 0));
        assert!(full && relieved && read_only && repaired, "{full} {relieved} {read_only} {repaired}");
    }
}
