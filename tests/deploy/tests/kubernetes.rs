//! Every overlay is rendered by kustomize, valid by Kubernetes's own schemas, and accepted by `rhone check`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rhone_deploy::{binary, ends, folder, repository, skipped, succeeds};
use serde_json::Value;

/// The interpreter that knows the schemas: `RHONE_MANIFEST_PYTHON`, else what install-deps.sh made.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("RHONE_MANIFEST_PYTHON").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    named.or_else(|| Some(cache?.join("rhone/manifests/bin/python"))).filter(|path| path.is_file())
}

/// Renders each overlay into `out`; `false`: nothing here can.
fn render(out: &Path) -> Result<bool> {
    let kustomize = binary::program("kustomize").map(|path| (path, vec!["build"]));
    let kubectl = || binary::program("kubectl").map(|path| (path, vec!["kustomize"]));
    let Some((program, verb)) = kustomize.or_else(kubectl) else { return Ok(false) };
    let overlays = repository().join("deploy/kubernetes/overlays");
    for entry in std::fs::read_dir(&overlays)? {
        let overlay = entry?.path();
        let text = succeeds(Command::new(&program).args(&verb).arg(&overlay))?.stdout;
        let name = overlay.file_name().context("a name")?.to_string_lossy().into_owned();
        std::fs::write(out.join(format!("{name}.yaml")), text)?;
    }
    Ok(true)
}

#[test]
fn every_overlay_is_valid_and_what_it_configures_is_accepted() -> Result<()> {
    let folder = folder()?;
    let rendered = folder.path().join("rendered");
    std::fs::create_dir(&rendered)?;
    if !render(&rendered)? {
        skipped("the manifests", "no kustomize and no kubectl here");
        return Ok(());
    }
    let Some(python) = python() else {
        skipped(
            "the manifests' schemas",
            "no kubernetes-validate here (deploy/install-deps.sh test installs it)",
        );
        return Ok(());
    };
    let argo = repository().join("deploy/kubernetes/argocd/application.yaml");
    std::fs::copy(argo, rendered.join("argocd.yaml"))?;
    let check = |rendered: &Path| {
        let mut command = Command::new(&python);
        ends(command.arg(repository().join("tests/deploy/manifests.py")).arg(rendered))
    };
    let output = check(&rendered)?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    let members: Vec<Value> = serde_json::from_str(&output.stdout)?;
    ensure!(members.len() >= 20, "only {} members are configured", members.len());
    accepted(&members, folder.path())?;
    // It does look: a key that no schema knows is found.
    let pi = std::fs::read_to_string(rendered.join("pi.yaml"))?;
    let wrong = folder.path().join("wrong");
    std::fs::create_dir(&wrong)?;
    std::fs::write(wrong.join("pi.yaml"), pi.replace("serviceName: pg-peers", "serviceNaem: pg-peers"))?;
    let output = check(&wrong)?;
    ensure!(
        output.code == Some(1) && output.stderr.contains("serviceNaem"),
        "a wrong key passes: {output:?}"
    );
    Ok(())
}

/// Asks `rhone check` about each member, with its volumes mounted under a folder.
fn accepted(members: &[Value], folder: &Path) -> Result<()> {
    let rhone = binary::rhone()?;
    let secrets = folder.join("secrets");
    std::fs::create_dir_all(&secrets)?;
    for (name, text) in [("password", "secret\n"), ("userlist.txt", "\"app\" \"secret\"\n")] {
        std::fs::write(secrets.join(name), text)?;
    }
    // As components/tls says.
    let certs = |arguments: &[&str]| {
        let mut command = Command::new(&rhone);
        command.current_dir(&secrets).env_clear().env("RHONE_CONFIG", secrets.join("none.toml")).arg("certs");
        succeeds(command.args(arguments))
    };
    certs(&["init", "--cluster", "pg"])?;
    for name in ["pg-0", "pg-1", "pg-2"] {
        certs(&["issue", name, "--host", &format!("{name}.pg-peers")])?;
    }
    let data = folder.join("data");
    std::fs::create_dir_all(&data)?;
    let moved = |text: &str| {
        text.replace("/etc/rhone-tls/", &format!("{}/", secrets.display()))
            .replace("/etc/rhone-app/", &format!("{}/", secrets.display()))
            .replace("/etc/rhone-pgbouncer/", &format!("{}/", secrets.display()))
            .replace("\"/data/", &format!("\"{}/", data.display()))
    };
    for member in members {
        let file = folder.join("rhone.toml");
        std::fs::write(&file, moved(member["toml"].as_str().context("a file")?))?;
        let env: BTreeMap<String, String> = serde_json::from_value(member["env"].clone())?;
        let mut command = Command::new(&rhone);
        command.env_clear().env("RHONE_PG_BIN", binary::postgres_folder()?);
        command.envs(env.iter().map(|(name, value)| (name, moved(value))));
        let output = ends(command.arg("check").arg("-c").arg(&file))?;
        ensure!(output.code == Some(0), "{} {}: {}", member["overlay"], member["member"], output.stderr);
        ensure!(output.stdout.contains("of cluster pg"), "{output:?}");
    }
    Ok(())
}
