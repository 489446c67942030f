//! `rhone inject`: puts this program where another container of the pod finds it.
//!
//! The image of `deploy/container` holds this program and nothing else, so that there is no `cp` in it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rhone_pgctl::file;
use rhone_pgctl::user::OsUser;

use super::exit::CliError;
use super::terminal::Terminal;

/// Copies the running program to `file`, as one step: whoever runs an older copy goes on with that.
pub(super) fn run(target: &Path, terminal: &mut Terminal) -> Result<(), CliError> {
    let own = std::fs::read("/proc/self/exe")
        .map_err(|error| CliError::failed(format!("read this program: {error}")))?;
    let changed = file::replace(target, &own, &OsUser::current(), 0o755)
        .map_err(|error| CliError::failed(error.to_string()))?;
    // A file that was there keeps its mode.
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(0o755))
        .map_err(|error| CliError::failed(format!("let others run {}: {error}", target.display())))?;
    let what = if changed { "is now this program" } else { "is this program already" };
    terminal.talk(&format!("{} {what}", target.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_copied_whole_and_can_be_run_by_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("rhone");
        let mut terminal = Terminal::of_process();
        for _ in 0..2 {
            run(&target, &mut terminal).expect("inject");
        }
        let own = std::fs::read("/proc/self/exe").expect("this test");
        assert!(std::fs::read(&target).expect("the copy") == own, "another content");
        assert_eq!(std::fs::metadata(&target).expect("its mode").permissions().mode() & 0o777, 0o755);
        let missing = folder.path().join("none/rhone");
        assert!(run(&missing, &mut terminal).is_err());
    }
}
