//! Finds the programs under test.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Finds `rhone`: `RHONE_BIN`, else the Cargo target folder that this program was built in.
///
/// # Errors
/// When there is none, naming each place that was looked at and what to type.
pub fn rhone() -> Result<PathBuf> {
    if let Some(named) = env::var_os("RHONE_BIN") {
        let path = PathBuf::from(named);
        if path.is_file() {
            return path.canonicalize().context("resolve RHONE_BIN");
        }
        bail!("RHONE_BIN names {}, which is not a file", path.display());
    }
    let own = env::current_exe().context("find own executable")?;
    let near: Vec<PathBuf> = own.ancestors().skip(1).take(2).map(|folder| folder.join("rhone")).collect();
    match near.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => bail!(
            "no `rhone` binary: looked at {}; build it with `cargo build -p rhone`, or set RHONE_BIN",
            near.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
        ),
    }
}

/// Finds the folder with `postgres`: `RHONE_PG_BIN`, else the newest Debian one.
pub fn postgres_folder() -> Result<PathBuf> {
    if let Some(named) = env::var_os("RHONE_PG_BIN") {
        let path = PathBuf::from(named);
        if path.join("postgres").is_file() {
            return Ok(path);
        }
        bail!("RHONE_PG_BIN names {}, which holds no `postgres`", path.display());
    }
    let root = Path::new("/usr/lib/postgresql");
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").is_file())
        .collect();
    found.sort();
    match found.pop() {
        Some((_, bin)) => Ok(bin),
        None => bail!("no Postgres in {}: install postgresql, or set RHONE_PG_BIN", root.display()),
    }
}

/// Finds a program on the path or in the sbin folders, `None` when it is not installed.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
