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
    major=$("$qemu" --version | sed -n 's/^.* version \([0-9]*\)\..*/\1/p')
    [ "${major:-0}" -ge 10 ] || skip "qemu $major refuses PR_SET_CHILD_SUBREAPER, which the guardian needs; qemu 10 knows it \
(Debian 12: apt-get install -t bookworm-backports qemu-user)"
fi

binary=$(deploy/static.sh "$arch" "$target" "${3:-release}")
headers=$(readelf -lW "$binary")
! printf '%s' "$headers" | grep -q INTERP || fail "it names an interpreter"
! readelf -dW "$binary" | grep -q NEEDED || fail "it needs libraries"
for found in $(printf '%s' "$headers" | awk '$1 == "LOAD" {print $NF}'); do
    [ "$((found))" -ge "$align" ] || fail "a segment is aligned to $found: too little for pages of $align bytes"
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
mkdir -p "$folder/root/bin" "$folder/root/proc"
cp "$binary" "$folder/root/bin/rhone"

# What runs in mounts of its own: network namespaces are named where nobody else sees them, and the kernel is told of
# qemu, if need be.
cat >"$folder/within" <<'END'
#!/bin/sh
set -eu
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
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
    if [ $emulated = no ]; then unshare --mount --propagation private "$folder/within" "" "" "$@"; return; fi
    mkfifo "$folder/mapped"
    # With all of this machine's ids, and a network of its own: what is made there is gone with it.
    # shellcheck disable=SC2016 # the inner shell's
    unshare --user --mount --propagation private --net sh -c 'read -r _ <"$0" && exec "$@"' "$folder/mapped" \
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

unshare --mount --propagation private true 2>/dev/null || skip "no mount namespaces here"
if [ $emulated = yes ]; then
    unshare --user --mount --net true 2>/dev/null || skip "no user namespaces here"
    run true 2>/dev/null || skip "binfmt_misc cannot be mounted in a user namespace here (Linux 6.7 and later)"
fi

# In a root that holds nothing else but /proc, as a container has; a qemu that itself needs libraries finds them only in this one.
if [ $emulated = yes ] && readelf -lW "$qemu" | grep -q INTERP; then
    run "$folder/root/bin/rhone" --version
    run "$folder/root/bin/rhone" inject "$folder/root/rhone"
else
    # shellcheck disable=SC2016 # the inner shell's
    run sh -euc 'mount --rbind /proc "$0/proc"; chroot "$0" /bin/rhone --version; chroot "$0" /bin/rhone inject /rhone' "$folder/root"
fi
cmp "$binary" "$folder/root/rhone" || fail "inject made another program"

# What it is shipped in is for the same machine, and asks for no library.
if have dpkg-deb; then
    package=$(RHONE_DEB_COMPRESSION=none deploy/debian/build.sh "$binary" "$folder")
    says=$(dpkg-deb -f "$package" Architecture Depends)
    case $says in *libc6*) fail "the package asks for a library: $says" ;; *"Architecture: $arch"*) ;; *) fail "the package: $says" ;; esac
    dpkg-deb --fsys-tarfile "$package" | tar -xO ./usr/bin/rhone | cmp - "$binary" || fail "the package holds another program"
    dpkg-deb --contents "$package" | grep '/man1/rhone-switchover\.1\.gz$' >/dev/null || fail "the package has no manual pages"
    printf '%s: %s\n' "${package##*/}" "$(printf %s "$says" | tr '\n' ' ')"
else
    printf 'SKIPPED: the package of the static build: no dpkg-deb\n' >&2
fi
if have podman; then
    printf '[storage]\ndriver = "vfs"\nrunroot = "%s/run"\ngraphroot = "%s/graph"\n' "$folder" "$folder" >"$folder/storage.conf"
    export CONTAINERS_STORAGE_CONF="$folder/storage.conf"
    deploy/container/build.sh "$binary" localhost/rhone:test
    says=$(podman image inspect --format '{{.Architecture}} {{.Config.User}} {{.Config.Entrypoint}}' localhost/rhone:test)
    [ "$says" = "$arch 999:999 [/usr/bin/rhone]" ] || fail "the image: $says"
else
    printf 'SKIPPED: the image of the static build: no podman\n' >&2
fi

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
