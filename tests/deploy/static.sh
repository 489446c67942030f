#!/bin/sh
# The static build on real Postgres: it needs nothing but itself, founds a cluster, fails over, hands over and rejoins.
#
#   static.sh TARGET_FOLDER [PROFILE]
#
# For this machine's own architecture. Skips, and says why, where a tool is absent.
set -eu

target=${1:?usage: static.sh TARGET_FOLDER}
mkdir -p "$target"
target=$(cd "$target" && pwd)
cd "$(dirname "$0")/../.."
skip() { printf 'SKIPPED: the static build: %s\n' "$1" >&2; exit 0; }
fail() { printf 'error: the static build: %s\n' "$1" >&2; exit 1; }

[ "$(id -u)" = 0 ] || skip "needs root"
command -v readelf >/dev/null || skip "no readelf (Debian: binutils)"
case $(uname -m) in aarch64) arch=arm64 align=65536 ;; *) arch=amd64 align=4096 ;; esac

binary=$(deploy/static.sh "$arch" "$target" "${2:-release}")
headers=$(readelf -lW "$binary")
! printf '%s' "$headers" | grep -q INTERP || fail "it names an interpreter"
! readelf -dW "$binary" | grep -q NEEDED || fail "it needs libraries"
for found in $(printf '%s' "$headers" | awk '$1 == "LOAD" {print $NF}'); do
    [ "$((found))" -ge "$align" ] || fail "a segment is aligned to $found: too little for pages of $align bytes"
done

# In a root that holds nothing else.
folder=$(mktemp -d)
trap 'umount "$folder/root/proc" 2>/dev/null || true; rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir -p "$folder/root/bin"
cp "$binary" "$folder/root/bin/rhone"
chroot "$folder/root" /bin/rhone --version
mkdir "$folder/root/proc"
mount --bind /proc "$folder/root/proc"
chroot "$folder/root" /bin/rhone inject /rhone
umount "$folder/root/proc"
cmp "$binary" "$folder/root/rhone" || fail "inject made another program"

export RHONE_BIN="$folder/root/rhone"
live() { cargo test --locked --target-dir "$target" -p rhone-chaos --test "$1" -- --nocapture "$2" "$3"; }
live three power_loss_of_the_primary_fails_over sigterm_hands_over
live pod a_pod_reaps a_pod_reaps
echo "the static build for $arch founds, fails over, hands over and rejoins"
