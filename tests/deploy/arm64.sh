#!/bin/sh
# Three members of the consensus layer as ARM64 programs under qemu: founding, a failover of Raft's leadership, a
# restart. Over real gRPC, sled and fsync, as on this machine. Skips, and says why, where a tool is absent.
#
#   arm64.sh TARGET_FOLDER
#
# The standard library for ARM64 is rustup's where that target is installed, else Debian's: its compiler and both
# standard libraries are downloaded into the target folder, and nothing is installed.
set -eu

folder=${1:?usage: arm64.sh TARGET_FOLDER}
mkdir -p "$folder/arm64"
folder=$(cd "$folder/arm64" && pwd)
triple=aarch64-unknown-linux-gnu
skip() { printf 'SKIPPED: arm64: %s\n' "$1" >&2; exit 0; }
have() { command -v "$1" >/dev/null 2>&1; }

have aarch64-linux-gnu-gcc || skip "no cross compiler (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
[ -n "$qemu" ] || skip "no qemu (Debian: qemu-user)"

# Debian's compiler with its standard libraries, from lists and into folders of our own.
debian() {
    have apt-get && have dpkg || return 1
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/debs"
    own=$(dpkg --print-architecture)
    apt="-q -o APT::Architecture=$own -o APT::Architectures::=$own -o APT::Architectures::=arm64
        -o Dir::State::Lists=$folder/lists -o Dir::Cache=$folder/cache -o Debug::NoLocking=1
        -o Acquire::Languages=none -o APT::Sandbox::User=root"
    # shellcheck disable=SC2086 # options, one word each
    (
        apt-get $apt update >/dev/null || exit 1
        std=$(apt-cache $apt depends rustc-web | sed -n 's/.*Depends: \(libstd-rust-web-[a-z0-9.]*\)$/\1/p' | head -n 1)
        [ -n "$std" ] || exit 1
        so=$(apt-cache $apt depends "$std" | sed -n 's/.*Depends: \(libstd-rust-web-[0-9.]*\)$/\1/p' | head -n 1)
        llvm=$(apt-cache $apt depends "$so" | sed -n 's/.*Depends: \(libllvm[0-9.]*\)$/\1/p' | head -n 1)
        cd "$folder/debs" || exit 1
        apt-get $apt download rustc-web "$std" "$so" "$llvm" "$std:arm64" >/dev/null || exit 1
    ) || return 1
    for deb in "$folder"/debs/*.deb; do
        dpkg -x "$deb" "$folder/rust"
    done
    # One tree for both: the compiler's folder holds the two standard libraries side by side.
    [ -d "$folder/rust/usr/lib/rustlib/$triple" ]
}

if rustc --print target-libdir --target "$triple" 2>/dev/null | xargs -r test -d; then
    :
elif [ -x "$folder/rust/usr/bin/rustc" ] || debian; then
    export RUSTC="$folder/rustc"
    libraries=$(dirname "$(find "$folder/rust/usr/lib" -name 'librustc_driver-*.so' | head -n 1)")
    cat >"$RUSTC" <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries" exec "$folder/rust/usr/bin/rustc" "\$@"
END
    chmod 755 "$RUSTC"
else
    skip "no Rust standard library for it: neither rustup's target nor Debian's packages can be had"
fi

root=/usr/aarch64-linux-gnu
[ -d "$root/lib" ] || skip "no C library for it in $root (Debian: libc6-dev-arm64-cross)"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$qemu -L $root"
export CARGO_TARGET_DIR="$folder/target"
export CARGO_PROFILE_DEV_DEBUG=false
cargo test --locked --target "$triple" -p rhone-consensus --test cluster -- --test-threads=1 \
    a_proposal_reaches_every_member_and_its_observer_first \
    an_isolated_leader_leads_no_more_and_another_is_elected \
    a_restarted_leader_leads_only_when_elected_anew \
    a_wiped_member_comes_back_as_another_and_catches_up_by_snapshot
