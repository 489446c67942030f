//! The operating system user that Postgres programs run as.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::PgError;

/// An operating system user with everything a child process needs to become it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// The login name; the number as text when it has none.
    pub name: String,
    /// The user number.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    /// The home directory, `/` when unknown.
    pub home: PathBuf,
}

impl OsUser {
    /// Looks a user up by name.
    ///
    /// Reads `/etc/passwd` and `/etc/group`, then asks `getent` (blocking; for LDAP and the like).
    ///
    /// # Errors
    /// [`PgError::Refused`] when there is no such user.
    pub fn by_name(name: &str) -> Result<Self, PgError> {
        Self::find(|fields| fields.name == name, name).ok_or_else(|| PgError::Refused {
            what: format!("user `{name}`"),
            reason: "there is no such operating system user".into(),
        })
    }

    /// Looks a user up by number; an unknown number still makes a user, without a name.
    pub fn by_uid(uid: u32) -> Self {
        Self::find(|fields| fields.uid == uid, &uid.to_string()).unwrap_or_else(|| Self {
            name: uid.to_string(),
            uid,
            gid: uid,
            groups: vec![uid],
            home: PathBuf::from("/"),
        })
    }

    /// Returns the user that owns a file or directory.
    ///
    /// # Errors
    /// [`PgError::Io`] when the path cannot be read.
    pub fn owner_of(path: &Path) -> Result<Self, PgError> {
        let meta = fs::metadata(path).map_err(PgError::io("read the owner of", path))?;
        Ok(Self::by_uid(meta.uid()))
    }

    /// Returns the user that this process runs as.
    pub fn current() -> Self {
        Self::by_uid(rustix::process::geteuid().as_raw())
    }

    /// Says whether this is the user that this process runs as, so that nothing has to be changed.
    pub fn is_current(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.uid
    }

    fn find(wanted: impl Fn(&PasswdLine<'_>) -> bool, key: &str) -> Option<Self> {
        let local = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let search = |text: &str| {
            let mut lines = text.lines().filter_map(PasswdLine::parse);
            lines.find(|line| wanted(line)).map(|line| Self::from_line(&line))
        };
        let mut user = search(&local).or_else(|| search(&getent("passwd", key)?))?;
        let group_file = fs::read_to_string("/etc/group").unwrap_or_default();
        user.groups = groups_of(&group_file, &user.name, user.gid);
        Some(user)
    }

    fn from_line(line: &PasswdLine<'_>) -> Self {
        Self {
            name: line.name.to_owned(),
            uid: line.uid,
            gid: line.gid,
            groups: vec![line.gid],
            home: PathBuf::from(line.home),
        }
    }
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(Self { name, uid, gid, home })
    }
}

fn groups_of(group_file: &str, user: &str, primary: u32) -> Vec<u32> {
    let mut groups = vec![primary];
    for line in group_file.lines() {
        let mut fields = line.split(':');
        let (Some(gid), Some(members)) = (fields.nth(2).and_then(|gid| gid.parse().ok()), fields.next())
        else {
            continue;
        };
        if members.split(',').any(|member| member.trim() == user) && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    groups
}

fn getent(database: &str, key: &str) -> Option<String> {
    let output = std::process::Command::new("getent")
        .args([database, key])
        .env_clear()
        .env("PATH", crate::program::PATH)
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_passwd_and_group_lines() {
        let line = PasswdLine::parse("postgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash").unwrap();
        assert_eq!((line.name, line.uid, line.gid, line.home), ("postgres", 101, 104, "/var/lib/postgresql"));
        assert!(PasswdLine::parse("# comment").is_none());
        assert!(PasswdLine::parse("broken:x:abc:1::/:").is_none());
        let groups = "ssl-cert:x:103:postgres\npostgres:x:104:\nother:x:9:postgresql\n";
        assert_eq!(groups_of(groups, "postgres", 104), [104, 103]);
    }

    #[test]
    fn finds_the_present_user() {
        assert_eq!(OsUser::current().uid, rustix::process::geteuid().as_raw());
        assert!(OsUser::by_name("no-such-user-here").is_err());
    }
}
