#!/bin/sh
# The static build on real Postgres: it needs nothing but itself, it founds a cluster, fails over and rejoins.
#
#   static.sh amd64|arm64 TARGET_FOLDER [PROFILE]
#
# Of another architecture than this machine's, Rhone is emulated by qemu (supervisor, guardian, commands) and Postgres is
# this machine's own: the kernel is told what runs such programs in a user namespace that ends with the test. What
# qemu cannot show: the other machine's memory order, and pages of 16 KiB. Skips, and says why, where a tool is absent.
set -eu

arch=${1:?usage: static.sh amd64|arm64 TARGET_FOLDER}
target=${2:?usage: static.sh amd64|arm64 TARGET_FOLDER}
mkdir -p "$target"
target=$(cd "$target" && pwd)
cd "$(dirname "$0")/../.."
skip() { printf 'SKIPPED: the static build for %s: %s\n' "$arch" "$1" >&2; exit 0; }
fail() { printf 'error: the static build for %s: %s\n' "$arch" "$1" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

case $arch in amd64) cpu=x86_64 magic=3e align=4096 ;; *) cpu=aarch64 magic=b7 align=65536 ;; esac
[ "$(id -u)" = 0 ] || skip "needs root"
have readelf || skip "no readelf (Debian: binutils)"
emulated=no
if [ "$(uname -m)" != "$cpu" ]; then
    emulated=yes
    have "$cpu-linux-gnu-gcc" || skip "no cross compiler (Debian: gcc-$(printf %s $cpu | tr _ -)-linux-gnu)"
    qemu=$(command -v "qemu-$cpu-static" || command -v "qemu-$cpu" || true)
    [ -n "$qemu" ] || skip "no qemu (Debian: qemu-user)"
fi

binary=$(deploy/static.sh "$arch" "$target" "${3:-release}")
headers=$(readelf -lW "$binary")
! printf '%s' "$headers" | grep -q INTERP || fail "it names an interpreter"
! readelf -dW "$binary" | grep -q NEEDED || fail "it needs libraries"
for found in $(printf '%s' "$headers" | awk '$1 == "LOAD" {print $NF}'); do
    [ "$((found))" -ge "$align" ] || fail "a segment is aligned to $found: too little for pages of $align bytes"
done

folder=$(mktemp -d)
trap 'umount "$folder/root/proc" 2>/dev/null || true; rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir -p "$folder/root/bin"
cp "$binary" "$folder/root/bin/rhone"

# What runs within: first the kernel is told of qemu, if need be.
cat >"$folder/within" <<'END'
#!/bin/sh
set -eu
if [ -n "$1" ]; then
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    f='\xff\xff\xff\xff'
    printf '%s' ":rhone:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\x$2\\x00:\
$f\\xff\\xff\\xff\\x00$f$f\\xfe\\xff\\xff\\xff:$1:F" >/proc/sys/fs/binfmt_misc/register
    ip link set lo up
fi
shift 2
exec "$@"
END
chmod 755 "$folder/within"
run() {
    if [ $emulated = no ]; then "$folder/within" "" "" "$@"; return; fi
    mkfifo "$folder/mapped"
    # With all of this machine's ids, a network and mounts of its own: what is made there is gone with it.
    # shellcheck disable=SC2016 # the inner shell's
    unshare --user --mount --net sh -c 'read -r _ <"$0" && exec "$@"' "$folder/mapped" \
        "$folder/within" "$qemu" "$magic" "$@" &
    child=$!
    until [ "$(readlink "/proc/$child/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.1; done
    echo '0 0 65536' >"/proc/$child/uid_map"
    echo '0 0 65536' >"/proc/$child/gid_map"
    echo >"$folder/mapped"
    status=0
    wait $child || status=$?
    rm "$folder/mapped"
    return $status
}

[ $emulated = no ] || unshare --user --mount --net true 2>/dev/null || skip "no user namespaces here"
if [ $emulated = yes ] && ! run true 2>/dev/null; then
    skip "binfmt_misc cannot be mounted in a user namespace here (Linux 6.7 and later)"
fi

# In a root that holds nothing else; a qemu that itself needs libraries finds them only in this one.
if [ $emulated = yes ] && readelf -lW "$qemu" | grep -q INTERP; then
    run "$folder/root/bin/rhone" --version
    run "$folder/root/bin/rhone" inject "$folder/root/rhone"
else
    mkdir "$folder/root/proc"
    mount --bind /proc "$folder/root/proc"
    run chroot "$folder/root" /bin/rhone --version
    run chroot "$folder/root" /bin/rhone inject /rhone
    umount "$folder/root/proc"
fi
cmp "$binary" "$folder/root/rhone" || fail "inject made another program"

export RHONE_BIN="$folder/root/rhone"
built=$(cargo test --locked --target-dir "$target" -p rhone-chaos --no-run --test three --test pod 2>&1) ||
    fail "$built"
live() {
    program=$(printf '%s\n' "$built" | sed -n "s/^ *Executable tests\/$1\.rs (\(.*\))\$/\1/p")
    [ -x "$program" ] || fail "no test $1"
    shift
    run "$program" --nocapture "$@"
}
live three power_loss_of_the_primary_fails_over_and_the_node_comes_back sigterm_hands_over_and_loses_nothing
[ $emulated = yes ] || live pod
printf 'the static build for %s founds, fails over, hands over and rejoins%s\n' "$arch" \
    "$([ $emulated = no ] || echo ', emulated by qemu over native Postgres')"
