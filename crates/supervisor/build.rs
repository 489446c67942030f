//! Compiles the gRPC services with protox, so that no protoc is needed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The services of this crate; they share one descriptor set.
const PROTOS: [&str; 2] = ["rhone/v1/admin.proto", "rhone/v1/agent.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_source_info(true).include_imports(true).open_files(PROTOS)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("rhone_descriptor.bin"), compiler.encode_file_descriptor_set())?;
    // The identity in each call between members is the consensus crate's.
    tonic_prost_build::configure()
        .extern_path(".rhone.v1.Identity", "::rhone_consensus::proto::Identity")
        .compile_fds(compiler.file_descriptor_set())?;
    for proto in PROTOS.into_iter().chain(["rhone/v1/identity.proto"]) {
        println!("cargo:rerun-if-changed=../../proto/{proto}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    make_smaller(&out);
    Ok(())
}

/// Has the linker make the program smaller, where it can (decision 0064). Whether it can is tried, since linkers differ:
/// - generic code is the same for many types, and one function of those with the same instructions is enough;
/// - a table of what is to be relocated takes a fortieth of its room where the C library reads it packed (glibc 2.36).
fn make_smaller(out: &Path) {
    const FOLDED: &str = "-Wl,--icf=all";
    const PACKED: &str = "-Wl,-z,pack-relative-relocs";
    if variable("PROFILE") != "release" {
        return;
    }
    let native = variable("TARGET") == variable("HOST") && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    if links(out, FOLDED) {
        println!("cargo:rustc-link-arg-bins={FOLDED}");
    }
    // The program has to start here, too.
    if native && links(out, PACKED) && succeeds(&mut Command::new(out.join("trial"))) {
        println!("cargo:rustc-link-arg-bins={PACKED}");
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn links(out: &Path, argument: &str) -> bool {
    let source = out.join("trial.rs");
    if std::fs::write(&source, "fn main() {}").is_err() {
        return false;
    }
    let mut trial = Command::new(variable("RUSTC"));
    trial.args(variable("CARGO_ENCODED_RUSTFLAGS").split('\u{1f}').filter(|flag| !flag.is_empty()));
    trial.args(["--target", &variable("TARGET"), "-C", &format!("link-arg={argument}")]);
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        trial.args(["-C", &format!("linker={linker}")]);
    }
    succeeds(trial.arg("-o").arg(out.join("trial")).arg(source))
}

fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
