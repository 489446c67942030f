//! Where a data directory's configuration is. Debian's packages keep it in `/etc/postgresql/MAJOR/NAME`; a server that
//! Rhone starts reads what is in the data directory.

use std::fmt;
use std::path::{Path, PathBuf};

use rhone_pgctl::settings::MANAGED_FILE;

/// What a server reads beside Rhone's settings; initdb makes all of them.
const FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// So many of these a server does not start without, wherever they are.
const NEEDED: usize = 2;

/// What is in a data directory that a Rhone has had: its settings, its identity.
const MARKS: [&str; 2] = [MANAGED_FILE, "rhone.id"];

/// A data directory whose configuration is somewhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignConfiguration {
    data_dir: PathBuf,
    major: String,
    missing: Vec<&'static str>,
}

/// Looks whether a data directory that no Rhone has had lacks its configuration: adopted so, the server would lose its
/// settings and pg_hba lines. Changes nothing; what cannot be looked at counts as there.
pub fn foreign_configuration(data_dir: &Path) -> Option<ForeignConfiguration> {
    let lacks = |name: &&str| matches!(data_dir.join(name).try_exists(), Ok(false));
    let major = std::fs::read_to_string(data_dir.join("PG_VERSION")).ok()?.trim().to_owned();
    if !MARKS.iter().all(lacks) || !FILES.iter().take(NEEDED).any(lacks) {
        return None;
    }
    let missing = FILES.iter().copied().filter(lacks).collect();
    Some(ForeignConfiguration { data_dir: data_dir.to_owned(), major, missing })
}

impl ForeignConfiguration {
    /// Returns what to type.
    pub fn hint(&self) -> String {
        let (dir, from) = (self.data_dir.display(), self.debians_place());
        let files = match self.missing.as_slice() {
            [file] => (*file).to_owned(),
            several => format!("{{{}}}", several.join(",")),
        };
        format!(
            "sudo install -o postgres -m 600 {from}/{files} {dir}/ && \
             sudo sed -i -E '/^(data_directory|hba_file|ident_file|external_pid_file|include_dir)/d' {dir}/postgresql.conf"
        )
    }

    /// Where Debian keeps the configuration of `…/15/main`; of a directory elsewhere, most likely that of `main`.
    fn debians_place(&self) -> String {
        let name = |dir: &Path| dir.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let of_this_version = self.data_dir.parent().and_then(name).is_some_and(|major| major == self.major);
        let name = name(&self.data_dir).filter(|_| of_this_version).unwrap_or_else(|| "main".to_owned());
        format!("/etc/postgresql/{}/{name}", self.major)
    }
}

impl fmt::Display for ForeignConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.data_dir.display();
        let (is, it) = if self.missing.len() == 1 { ("is", "it") } else { ("are", "them") };
        let files = self.missing.join(", ");
        write!(
            f,
            "{files} {is} not in {dir}: without {it} the server would lose its settings and pg_hba lines"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes `15/main` with these files and looks at it.
    fn found(files: &[&str]) -> Option<(String, String)> {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("15/main");
        std::fs::create_dir_all(&dir).expect("make the directory");
        for file in files {
            std::fs::write(dir.join(file), "15\n").expect("write");
        }
        let plain = |text: String| text.replace(&dir.display().to_string(), "DIR");
        foreign_configuration(&dir).map(|found| (plain(found.to_string()), plain(found.hint())))
    }

    #[test]
    fn what_debian_keeps_elsewhere_is_missed() {
        let (message, hint) = found(&["PG_VERSION"]).expect("it is foreign");
        assert_eq!(
            message,
            "postgresql.conf, pg_hba.conf, pg_ident.conf are not in DIR: without them the server would lose its \
             settings and pg_hba lines"
        );
        assert_eq!(
            hint,
            "sudo install -o postgres -m 600 /etc/postgresql/15/main/{postgresql.conf,pg_hba.conf,pg_ident.conf} DIR/ \
             && sudo sed -i -E '/^(data_directory|hba_file|ident_file|external_pid_file|include_dir)/d' DIR/postgresql.conf"
        );
        let (message, hint) =
            found(&["PG_VERSION", "postgresql.conf", "pg_ident.conf"]).expect("it is foreign");
        assert!(message.starts_with("pg_hba.conf is not in DIR: without it"), "{message}");
        assert!(hint.contains("/etc/postgresql/15/main/pg_hba.conf DIR/"), "{hint}");
    }

    #[test]
    fn what_is_complete_or_rhones_is_never_refused() {
        let complete = ["PG_VERSION", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
        assert_eq!(found(&complete), None); // initdb's, and every copy of a member's
        assert_eq!(found(&complete[..3]), None); // a server starts without pg_ident.conf
        assert_eq!(found(&["PG_VERSION", "rhone.conf"]), None);
        assert_eq!(found(&["PG_VERSION", "rhone.id"]), None);
        assert_eq!(found(&[]), None); // empty, or no data directory
    }

    #[test]
    fn a_directory_elsewhere_is_taken_for_main() {
        let at = |data_dir: &str| {
            let missing = vec!["pg_hba.conf"];
            ForeignConfiguration { data_dir: data_dir.into(), major: "16".to_owned(), missing }
                .debians_place()
        };
        assert_eq!(at("/var/lib/postgresql/16/shop"), "/etc/postgresql/16/shop");
        assert_eq!(at("/srv/data"), "/etc/postgresql/16/main");
        assert_eq!(at("/"), "/etc/postgresql/16/main");
    }
}
