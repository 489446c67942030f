//! Compiles the gRPC services with protox, so that no protoc is needed.

use std::path::PathBuf;

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
    Ok(())
}
