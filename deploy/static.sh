#!/bin/sh
# Builds rhone so that it needs no library: it runs in Debian- and in Alpine-based images, and in one that holds nothing else.
#
#   deploy/static.sh amd64|arm64 TARGET_FOLDER [PROFILE]
#
# Prints the program's path: of the release build, or of another of Cargo's profiles. C code (ring's cryptography) is compiled by this machine's gcc, or by the cross
# compiler for another architecture; musl comes with Rust's target. Adds that target by rustup where it is missing.
set -eu

arch=${1:?usage: static.sh amd64|arm64 TARGET_FOLDER}
out=${2:?usage: static.sh amd64|arm64 TARGET_FOLDER}
profile=${3:-release}
cd "$(dirname "$0")/.."

fail() { printf 'error: %s\n' "$1" >&2; printf 'hint: %s\n' "$2" >&2; exit 1; }
case $arch in
    amd64) cpu=x86_64 ;;
    arm64) cpu=aarch64 ;;
    *) fail "$arch is no architecture that is known here" "amd64 or arm64" ;;
esac
triple=$cpu-unknown-linux-musl

if [ "$(uname -m)" = "$cpu" ]; then
    compiler=${CC:-cc}
    package=build-essential
else
    compiler=$cpu-linux-gnu-gcc
    package="gcc-$(printf %s "$cpu" | tr _ -)-linux-gnu"
fi
command -v "$compiler" >/dev/null || fail "there is no $compiler here" "apt-get install $package"

has_target() { [ -d "$(rustc --print target-libdir --target "$triple" 2>/dev/null)" ]; }
if ! has_target; then
    command -v rustup >/dev/null || fail "Rust has no $triple here" "install Rust by https://rustup.rs"
    rustup target add "$triple" >&2 || true
    has_target || fail "rustup has no $triple" "rustup target add $triple"
fi

name=$(printf %s "$triple" | tr - _)
upper=$(printf %s "$name" | tr '[:lower:]' '[:upper:]')
export "CC_$name=$compiler" "CARGO_TARGET_${upper}_LINKER=$compiler"
# Some distributions' compilers call glibc's checked functions by default, which musl has not.
export "CFLAGS_$name=-U_FORTIFY_SOURCE"
cargo build --locked --profile "$profile" -p rhone --target "$triple" --target-dir "$out" >&2
printf '%s\n' "$out/$triple/$profile/rhone"
