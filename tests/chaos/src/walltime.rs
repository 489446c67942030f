//! The wall clock that a node sees: libfaketime moves it, and leaves the monotonic clocks alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The wall clock of one node.
#[derive(Clone, Debug)]
pub struct WallTime {
    library: PathBuf,
    file: PathBuf,
}

fn library() -> Option<PathBuf> {
    fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.is_file())
}

/// Why the wall clock cannot be moved here, `None` when it can.
pub fn impossible() -> Option<&'static str> {
    if library().is_some() { None } else { Some("no libfaketime here (apt-get install libfaketime)") }
}

impl WallTime {
    /// A clock that can be moved, its offset in a file of `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let library = library().context("find libfaketime")?;
        let clock = Self { library, file: folder.join("wall-clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// The environment that makes a program see this clock.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_RESET", "1".to_owned()),
        ]
    }

    /// Makes a folder with Postgres's programs, whose `postgres` sees this clock too.
    pub fn programs(&self, real: &Path, folder: &Path) -> Result<PathBuf> {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).context("make bin")?;
        for entry in fs::read_dir(real).context("read the programs of postgres")?.flatten() {
            if entry.file_name() != "postgres" {
                symlink(entry.path(), bin.join(entry.file_name())).context("link a program")?;
            }
        }
        let exports: Vec<String> =
            self.environment().iter().map(|(name, value)| format!("{name}='{value}'")).collect();
        let script = format!(
            "#!/bin/sh\nexport {}\nexec '{}' \"$@\"\n",
            exports.join(" "),
            real.join("postgres").display()
        );
        let path = bin.join("postgres");
        fs::write(&path, script).context("write the wrapper of postgres")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("make it executable")?;
        Ok(bin)
    }

    /// Moves the clock so many seconds away from the true one.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // A new file in one step: a reader never sees half of it.
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).context("write the offset")?;
        fs::rename(&next, &self.file).context("replace the offset")
    }
}
