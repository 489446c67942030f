#!/bin/sh
# Makes the container image of a binary that is built already: build.sh BINARY [NAME]
set -eu

binary=${1:?usage: build.sh BINARY [NAME]}
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
name=${2:-rhone:$version}
fail() { printf 'error: %s\n' "$1" >&2; printf 'hint: %s\n' "$2" >&2; exit 1; }
[ -x "$binary" ] || fail "$binary is no program" "cargo build --release -p rhone"

# The binary alone is the context: nothing else of the tree can get into the image.
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$binary" "$context/rhone"
chmod 755 "$context" "$context/rhone"
for tool in podman docker; do
    if command -v "$tool" >/dev/null 2>&1; then
        "$tool" build -t "$name" -f "$here/Containerfile" "$context"
        exit
    fi
done
command -v buildah >/dev/null 2>&1 || fail "there is no podman, docker or buildah here" "apt-get install podman"
buildah bud -t "$name" -f "$here/Containerfile" "$context"
