#!/bin/sh
# Makes the container image of a static binary that is built already (deploy/static.sh): build.sh BINARY [NAME]
set -eu

binary=${1:?usage: build.sh BINARY [NAME]}
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
name=${2:-rhone:$version}
fail() { printf 'error: %s\n' "$1" >&2; printf 'hint: %s\n' "$2" >&2; exit 1; }
[ -x "$binary" ] || fail "$binary is no program" "make image builds one"
# The machine field of the ELF header says what the image is for, whatever this machine is.
case $(od -An -tu2 -j18 -N2 "$binary" | tr -d ' ') in
    62) arch=amd64 ;;
    183) arch=arm64 ;;
    *) fail "$binary is for a machine that this script does not know" "amd64 and arm64 are known" ;;
esac
# A program that names an interpreter needs libraries, and the image has none.
! grep -aq '/ld-\(linux\|musl\)-[a-z0-9_-]*\.so' "$binary" || fail "$binary is not static" "make image builds one that is"

# The binary alone is the context: nothing else of the tree can get into the image.
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$binary" "$context/rhone"
chmod 755 "$context" "$context/rhone"
for tool in podman docker; do
    if command -v "$tool" >/dev/null 2>&1; then
        "$tool" build --platform "linux/$arch" -t "$name" -f "$here/Containerfile" "$context"
        exit
    fi
done
command -v buildah >/dev/null 2>&1 || fail "there is no podman, docker or buildah here" "apt-get install podman"
buildah bud --platform "linux/$arch" -t "$name" -f "$here/Containerfile" "$context"
