//! What `rhone check` sees on the machine beyond the file. Starts and changes nothing.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::problem::Problem;
use super::{Config, DeadMan, Postgres, Tls};
use crate::guardian::rehearse_dead_man;
use crate::tls::{Identity, Role};

/// The programs that must be in `bin-dir`.
const PROGRAMS: [&str; 5] = ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"];

/// The oldest major version that is supported.
const OLDEST_MAJOR: u32 = 15;

/// Looks at the files, folders and programs that the configuration names.
///
/// Empty: as far as can be seen without starting anything, `rhone run` can work.
pub fn inspect(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut say = |message: String, hint: &str| {
        problems.push(Problem { line: None, variable: None, message, hint: Some(hint.to_owned()) });
    };
    let postgres = config.postgres.as_ref();
    let password = postgres.and_then(|postgres| postgres.replication_password_file.as_deref());
    let owner_password = config.bootstrap.database.as_ref().and_then(|d| d.password_file.as_deref());
    for (key, file) in [
        ("postgres.replication-password-file", password),
        ("bootstrap.database-password-file", owner_password),
    ] {
        if let Some(file) = file {
            check_secret(key, file, &mut say);
        }
    }
    check_certificates(config, &mut say);
    check_folder("node.state-dir", &config.node.state_dir, &mut say);
    if let Some(postgres) = postgres {
        let bin_dir = check_programs(postgres, &mut say);
        check_user(postgres, &mut say);
        check_data_dir(postgres, bin_dir.as_deref(), &mut say);
        if postgres.dead_man == DeadMan::Nftables {
            check_dead_man(rehearse_dead_man(), &mut say);
        }
    }
    problems
}

/// Finds the folder with Postgres' programs: the configured one, else that of the `postgres` on
/// `PATH`, else the newest of Debian's and the PGDG's folders.
pub fn find_bin_dir(configured: Option<&Path>) -> Option<PathBuf> {
    let has_postgres = |dir: &PathBuf| dir.join("postgres").is_file();
    if let Some(dir) = configured {
        return Some(dir.to_owned()).filter(has_postgres);
    }
    if let Some(dir) = std::env::var_os("RHONE_PG_BIN").map(PathBuf::from).filter(has_postgres) {
        return Some(dir);
    }
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    // A link such as /usr/local/bin/postgres leads to the folder that holds all the others.
    let linked = on_path
        .filter_map(|dir| dir.join("postgres").canonicalize().ok()?.parent().map(Path::to_owned))
        .find(|dir| dir.join("initdb").is_file());
    linked.or_else(newest_packaged)
}

/// The newest major version among the packages' folders.
fn newest_packaged() -> Option<PathBuf> {
    let debian = children("/usr/lib/postgresql").map(|dir| (dir.clone(), dir));
    let pgdg = children("/usr").filter_map(|dir| {
        let version = dir.file_name()?.to_str()?.strip_prefix("pgsql-")?.to_owned();
        Some((PathBuf::from(version), dir))
    });
    let version = |name: &Path| name.file_name()?.to_str()?.parse::<u32>().ok();
    debian
        .chain(pgdg)
        .filter_map(|(name, dir)| Some((version(&name)?, dir.join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").is_file())
        .max()
        .map(|(_, bin)| bin)
}

fn children(folder: &str) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// The files of `[tls]` must belong together, and the certificate must be this member's. One that has
/// expired is no reason not to start: its successor may come.
fn check_certificates(config: &Config, say: &mut impl FnMut(String, &str)) {
    let Tls::Mutual(files) = &config.tls else { return };
    let (name, cluster) = (&config.node.name, &config.cluster);
    let hint =
        format!("`rhone certs issue {name} --host {}` makes what is needed", config.node.advertise.host);
    let (ca, cert, key) = (("tls.ca", &files.ca), ("tls.cert", &files.cert), ("tls.key", &files.key));
    let missing: Vec<_> = [ca, cert, key]
        .into_iter()
        .filter_map(|(key, file)| Some((key, file, std::fs::File::open(file).err()?)))
        .filter(|(_, _, error)| error.kind() == std::io::ErrorKind::NotFound)
        .collect();
    if !missing.is_empty() {
        for (key, file, error) in missing {
            say(format!("`{key}`: {} cannot be read: {error}", file.display()), &hint);
        }
        return;
    }
    let own = match files.check() {
        Ok(own) => own,
        Err(error) => {
            let kind = std::fs::File::open(&error.file).err().map(|error| error.kind());
            let hint = if kind == Some(std::io::ErrorKind::PermissionDenied) {
                format!("chown {} to the user that runs rhone", error.file.display())
            } else {
                hint
            };
            return say(format!("[tls]: {error}"), &hint);
        }
    };
    let wanted = Identity { cluster: cluster.clone(), role: Role::Member, name: name.clone() };
    match own.identity {
        Some(found) if found == wanted => {}
        Some(found) => say(format!("`tls.cert` is for {found}, not for {wanted}"), &hint),
        None => say(format!("`tls.cert` names no role; it needs the URI {wanted}"), &hint),
    }
}

fn check_secret(key: &str, file: &Path, say: &mut impl FnMut(String, &str)) {
    let shown = file.display();
    match std::fs::read_to_string(file) {
        Err(error) => say(
            format!("`{key}`: {shown} cannot be read: {error}"),
            "create it with one line, owned by the user that runs rhone, mode 0600",
        ),
        Ok(text) if text.trim().is_empty() => {
            say(format!("`{key}`: {shown} is empty"), "put the password on its first line");
        }
        Ok(_) => {}
    }
}

/// The folder, or the nearest one above that exists, must be a folder we may write.
fn check_folder(key: &str, folder: &Path, say: &mut impl FnMut(String, &str)) {
    let Some(present) = folder.ancestors().find(|dir| dir.exists()) else { return };
    let shown = present.display();
    if !present.is_dir() {
        say(format!("`{key}`: {shown} is not a folder"), "name another folder, or move that file away");
    } else if rustix::fs::access(present, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        say(
            format!("`{key}`: {shown} cannot be written by this user"),
            &format!("chown it to the user that runs rhone, or create {} first", folder.display()),
        );
    }
}

fn check_programs(postgres: &Postgres, say: &mut impl FnMut(String, &str)) -> Option<PathBuf> {
    let Some(dir) = find_bin_dir(postgres.bin_dir.as_deref()) else {
        match &postgres.bin_dir {
            Some(dir) => say(
                format!("`postgres.bin-dir`: there is no program `postgres` in {}", dir.display()),
                "on Debian it is /usr/lib/postgresql/15/bin; leave the key out to have it found",
            ),
            None => say(
                "no Postgres is installed where rhone looks".to_owned(),
                "apt-get install postgresql-15, or name its folder with `bin-dir` in [postgres]",
            ),
        }
        return None;
    };
    for program in PROGRAMS {
        let file = dir.join(program);
        if rustix::fs::access(&file, Access::EXEC_OK).is_err() {
            say(
                format!("the program {} is missing or cannot be run", file.display()),
                "install the complete server package, as postgresql-15",
            );
        }
    }
    Some(dir)
}

/// Whether this user and this kernel can do what the dead-man does; tried without changing anything.
fn check_dead_man(rehearsed: std::io::Result<()>, say: &mut impl FnMut(String, &str)) {
    let Err(error) = rehearsed else { return };
    let hint = if error.kind() == std::io::ErrorKind::PermissionDenied {
        "run this as the user that runs rhone, with CAP_NET_ADMIN (docs/operating.md), or remove the key"
    } else {
        "modprobe nf_tables; a kernel without it, or without its inet family, cannot do this: remove the key"
    };
    say(format!("`postgres.dead-man`: the kernel refuses it: {error}"), hint);
}

/// Postgres refuses to run as root.
fn check_user(postgres: &Postgres, say: &mut impl FnMut(String, &str)) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    if let Some(user) = &postgres.user
        && user_id(user).is_none()
    {
        say(
            format!("`postgres.user`: there is no user \"{user}\" on this machine"),
            "adduser --system, or name another",
        );
    }
}

/// Finds a user's number in `/etc/passwd`.
fn user_id(name: &str) -> Option<u32> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn check_data_dir(postgres: &Postgres, bin_dir: Option<&Path>, say: &mut impl FnMut(String, &str)) {
    let dir = &postgres.data_dir;
    let shown = dir.display();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(Result::ok).filter(|e| e.file_name() != "lost+found").count(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(parent) = dir.parent() {
                check_folder("postgres.data-dir", parent, say);
            }
            return;
        }
        Err(error) => {
            say(
                format!("`postgres.data-dir`: {shown} cannot be read: {error}"),
                "run as its owner, or as root",
            );
            return;
        }
    };
    if entries == 0 {
        return;
    }
    let Ok(version) = std::fs::read_to_string(dir.join("PG_VERSION")) else {
        say(
            format!("`postgres.data-dir`: {shown} is neither empty nor a Postgres data directory"),
            "name an empty folder, or the folder that holds PG_VERSION",
        );
        return;
    };
    let version = version.trim();
    let major = bin_dir.and_then(server_major);
    match (version.parse::<u32>(), major) {
        (Ok(found), _) if found < OLDEST_MAJOR => say(
            format!(
                "`postgres.data-dir`: {shown} was made by Postgres {found}; rhone needs {OLDEST_MAJOR} or later"
            ),
            "pg_upgrade it first",
        ),
        (Ok(found), Some(major)) if found != major => say(
            format!(
                "`postgres.data-dir`: {shown} was made by Postgres {found}, but the programs are of {major}"
            ),
            &format!("set `bin-dir` in [postgres] to the programs of version {found}"),
        ),
        (Err(_), _) => say(
            format!("`postgres.data-dir`: PG_VERSION in {shown} says \"{version}\", which is no version"),
            "the data directory is damaged: restore it, or name an empty folder",
        ),
        (Ok(_), _) => {}
    }
    check_owner(postgres, say);
    if let Some(foreign) = super::foreign_configuration(dir) {
        say(format!("`postgres.data-dir`: {foreign}"), &foreign.hint());
    }
    if dir.join("patroni.dynamic.json").exists() {
        say(
            format!("`postgres.data-dir`: {shown} belongs to a cluster that Patroni runs"),
            "stop Patroni on this machine and remove patroni.dynamic.json, then check again",
        );
    }
}

fn check_owner(postgres: &Postgres, say: &mut impl FnMut(String, &str)) {
    let shown = postgres.data_dir.display();
    let Ok(meta) = std::fs::metadata(&postgres.data_dir) else { return };
    let own = rustix::process::geteuid();
    let wanted = match &postgres.user {
        Some(user) if own.is_root() => user_id(user),
        Some(_) | None if own.is_root() => None,
        Some(_) | None => Some(own.as_raw()),
    };
    if meta.uid() == 0 {
        say(
            format!("`postgres.data-dir`: root owns {shown}, and Postgres refuses that"),
            "chown -R it to the user postgres",
        );
    } else if wanted.is_some_and(|wanted| wanted != meta.uid()) {
        say(
            format!(
                "`postgres.data-dir`: {shown} belongs to user {}, not to the one that runs Postgres",
                meta.uid()
            ),
            "chown -R it, or change `user` in [postgres]",
        );
    }
}

/// Finds the major version of a bin folder without starting a program: from its path, as the
/// packages name them.
fn server_major(bin_dir: &Path) -> Option<u32> {
    bin_dir.components().rev().find_map(|part| {
        let part = part.as_os_str().to_str()?;
        part.strip_prefix("pgsql-").unwrap_or(part).parse().ok()
    })
}
