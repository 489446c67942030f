//! The Debian package: built of the binary under test, installed into an empty root, upgraded, purged.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rhone_deploy::{binary, folder, repository, skipped, succeeds, tool};

/// Builds the package without compressing it: what is tested is what is in it.
fn build(out: &Path) -> Result<PathBuf> {
    let mut script = Command::new(repository().join("deploy/debian/build.sh"));
    let output = succeeds(script.arg(binary::rhone()?).arg(out).env("RHONE_DEB_COMPRESSION", "none"))?;
    let path = PathBuf::from(output.stdout.trim());
    ensure!(path.is_file(), "build.sh printed {output:?}");
    Ok(path)
}

/// Runs dpkg on a root of its own; maintainer scripts run here, with `DPKG_ROOT`.
fn dpkg(root: &Path, arguments: &[&str], package: &Path) -> Result<String> {
    let mut command = Command::new("dpkg");
    command.arg(format!("--root={}", root.display()));
    // Nothing else is installed there, and postgres's own user is not needed to look at files.
    command.args(["--force-script-chrootless", "--force-depends", "--force-not-root"]);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(arguments).arg(package);
    let output = succeeds(&mut command)?;
    Ok(output.stdout + &output.stderr)
}

fn empty_root(root: &Path) -> Result<()> {
    for name in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    for name in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
        std::fs::write(root.join(name), "")?;
    }
    Ok(())
}

#[test]
fn the_package_installs_upgrades_and_purges_and_leaves_what_is_the_operators() -> Result<()> {
    for name in ["dpkg-deb", "dpkg"] {
        if tool(name, "the Debian package").is_none() {
            return Ok(());
        }
    }
    let folder = folder()?;
    let package = build(&folder.path().join("out"))?;
    let info = succeeds(Command::new("dpkg-deb").arg("--info").arg(&package))?.stdout;
    for line in [" Package: rhone", " Depends: libc6 (>= 2.", " Recommends: postgresql-15 | "] {
        ensure!(info.contains(line), "{line:?} is not in\n{info}");
    }
    let root = folder.path().join("root");
    empty_root(&root)?;
    if !is_root() {
        skipped("installing the Debian package", "needs root");
        return Ok(());
    }
    dpkg(&root, &["--install"], &package)?;
    installed(&root)?;
    // The operator's own, and an example that was edited.
    let mine = root.join("etc/rhone/rhone.toml");
    std::fs::write(&mine, "cluster = \"mine\"\n")?;
    let promises = root.join("var/lib/rhone/hard");
    std::fs::create_dir_all(promises.parent().context("a folder")?)?;
    std::fs::write(&promises, "promised")?;
    let example = root.join("etc/rhone/rhone.example.toml");
    std::fs::write(&example, "# mine\n")?;
    // An upgrade asks nothing, keeps all three, and says nothing of a service that does not run there.
    let said = dpkg(&root, &["--force-confdef", "--force-confold", "--install"], &package)?;
    ensure!(!said.contains("error"), "{said}");
    ensure!(std::fs::read_to_string(&mine)? == "cluster = \"mine\"\n");
    ensure!(std::fs::read_to_string(&example)? == "# mine\n", "the conffile was overwritten");
    dpkg(&root, &["--purge"], Path::new("rhone"))?;
    ensure!(!root.join("usr/bin/rhone").exists() && !example.exists(), "purge left the package's own files");
    ensure!(mine.exists() && promises.exists(), "purge removed what is the operator's");
    Ok(())
}

fn installed(root: &Path) -> Result<()> {
    let version = succeeds(Command::new(root.join("usr/bin/rhone")).arg("--version"))?;
    ensure!(version.stdout.starts_with("rhone "), "{version:?}");
    let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/rhone.service"))?;
    ensure!(unit.contains("\nExecStart=/usr/bin/rhone run "), "the unit runs another program:\n{unit}");
    ensure!(!unit.contains("/usr/local"), "the unit speaks of an installation by hand:\n{unit}");
    links_lead_somewhere(&root.join("usr/share/doc/rhone"))?;
    // Enabled by nobody.
    ensure!(!root.join("etc/systemd").exists(), "the package enables something");
    for shell in ["bash-completion/completions/rhone", "zsh/vendor-completions/_rhone"] {
        let script = std::fs::read_to_string(root.join("usr/share").join(shell)).context(shell)?;
        ensure!(script.contains("switchover"), "{shell} completes no commands");
    }
    if let Some(sysusers) = binary::program("systemd-sysusers") {
        let users = std::fs::read_to_string(root.join("etc/passwd"))
            .with_context(|| format!("{} made no user", sysusers.display()))?;
        ensure!(users.contains("postgres:"), "no user postgres:\n{users}");
    }
    Ok(())
}

/// Every file that a document of the package links to is in the package.
fn links_lead_somewhere(docs: &Path) -> Result<()> {
    let mut folders = vec![docs.to_owned()];
    let mut links = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            for rest in text.split("](").skip(1) {
                let link = rest.split([')', '#']).next().unwrap_or_default();
                if link.is_empty() || link.contains("://") {
                    continue;
                }
                ensure!(folder.join(link).exists(), "{}: {link} is not in the package", path.display());
                links += 1;
            }
        }
    }
    ensure!(links > 40, "only {links} links were looked at");
    Ok(())
}

#[test]
fn lintian_finds_no_error_in_the_package() -> Result<()> {
    let Some(lintian) = binary::program("lintian") else {
        skipped("lintian", "not installed (apt-get install lintian); the package is tested without it");
        return Ok(());
    };
    let folder = folder()?;
    // A small program in place of a debug build, which lintian would read for a minute.
    let small = binary::program("true").context("find true")?;
    let mut script = Command::new(repository().join("deploy/debian/build.sh"));
    script.arg(small).arg(folder.path()).arg(binary::rhone()?).env("RHONE_DEB_COMPRESSION", "gzip");
    let package = succeeds(&mut script)?.stdout.trim().to_owned();
    let mut command = Command::new(lintian);
    // The changelog is in Markdown.
    command.args(["--allow-root", "--fail-on", "error", "--suppress-tags"]);
    command.arg("syntax-error-in-debian-changelog");
    succeeds(command.arg(package)).map(drop)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}
