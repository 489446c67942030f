#!/bin/sh
# Makes rhone_VERSION_ARCH.deb of a binary that is built already; builds nothing else, needs no root.
#
#   deploy/debian/build.sh BINARY FOLDER [GENERATOR]
#
# GENERATOR is the rhone that is asked for completions and manual pages: BINARY itself, under qemu where it is another
# architecture's. $RHONE_DEB_COMPRESSION: xz, zstd, gzip or none.
set -eu

binary=${1:?usage: build.sh BINARY FOLDER [GENERATOR]}
out=${2:?usage: build.sh BINARY FOLDER [GENERATOR]}
generator=${3:-$binary}
repo=$(cd "$(dirname "$0")/../.." && pwd)

fail() { printf 'error: %s\n' "$1" >&2; printf 'hint: %s\n' "$2" >&2; exit 1; }
[ -x "$binary" ] || fail "$binary is no program" "cargo build --release -p rhone"
command -v dpkg-deb >/dev/null || fail "there is no dpkg-deb here" "apt-get install dpkg"

# The machine field of the ELF header says what the binary is for, whatever this machine is.
case $(od -An -tu2 -j18 -N2 "$binary" | tr -d ' ') in
    62) arch=amd64 cpu=x86_64 ;;
    183) arch=arm64 cpu=aarch64 ;;
    *) fail "$binary is for a machine that this script does not know" "amd64 and arm64 are known" ;;
esac
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
[ -n "$version" ] || fail "no version in Cargo.toml" "[workspace.package] holds it"
# The newest version of a symbol that the binary asks glibc for; a static one asks for none.
glibc=$(grep -ao 'GLIBC_2\.[0-9]*' "$binary" | sort -uV | tail -n 1 | cut -d_ -f2)
# Packed relocations are read since 2.36 (decision 0064).
if grep -aq GLIBC_ABI_DT_RELR "$binary"; then glibc=$(printf '%s\n' "$glibc" 2.36 | sort -V | tail -n 1); fi

# A clean root, the same bytes for the same input.
umask 022
root=$(mktemp -d)
trap 'rm -rf "$root" "$root.man"' EXIT
chmod 755 "$root"
: "${SOURCE_DATE_EPOCH:=$(git -C "$repo" log -1 --format=%ct 2>/dev/null || echo 0)}"
export SOURCE_DATE_EPOCH

put() { install -D -m "$1" "$2" "$root$3"; }
pack() { install -d "$root$(dirname "$2")"; gzip -9n <"$1" >"$root$2"; chmod 644 "$root$2"; }

put 755 "$binary" /usr/bin/rhone
for unit in rhone rhone-pgbouncer; do
    put 644 "$repo/deploy/systemd/$unit.service" "/usr/lib/systemd/system/$unit.service"
done
sed -i -e 's#/usr/local/bin/rhone#/usr/bin/rhone#' \
    -e 's#^Documentation=.*#Documentation=man:rhone(1) file:///usr/share/doc/rhone/README.md#' \
    "$root/usr/lib/systemd/system/rhone.service"
put 644 "$repo/deploy/debian/sysusers.conf" /usr/lib/sysusers.d/rhone.conf
put 644 "$repo/deploy/rhone.example.toml" /etc/rhone/rhone.example.toml
put 644 "$repo/deploy/debian/copyright" /usr/share/doc/rhone/copyright
pack "$repo/CHANGELOG.md" /usr/share/doc/rhone/changelog.gz
# As they lie in the repository, so that they find each other, and what they show.
(cd "$repo" && find README.md ARCHITECTURE.md CONTRIBUTING.md docs deploy -type f) | while read -r text; do
    put 644 "$repo/$text" "/usr/share/doc/rhone/$text"
done

emulator=
if ! "$generator" --version >/dev/null 2>&1; then
    emulator=$(command -v "qemu-$cpu-static" || command -v "qemu-$cpu") || fail "$generator does not run here" \
        "apt-get install qemu-user, or name a rhone that runs here: build.sh BINARY FOLDER RHONE"
fi
# shellcheck disable=SC2086 # nothing, where none is needed
generate() { $emulator "$generator" "$@"; }
complete() { install -d "$root$(dirname "$2")"; generate completions "$1" >"$root$2"; chmod 644 "$root$2"; }
complete bash /usr/share/bash-completion/completions/rhone
complete zsh /usr/share/zsh/vendor-completions/_rhone
complete fish /usr/share/fish/vendor_completions.d/rhone.fish
pages=$root.man
mkdir "$pages"
said=$(generate man "$pages" 2>&1) || fail "no manual pages: $said" "$generator man FOLDER makes them"
for page in "$pages"/*.1; do
    pack "$page" "/usr/share/man/man1/${page##*/}.gz"
done

install -d "$root/DEBIAN"
size=$(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f1)
sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" \
    -e "s/@LIBC@/${glibc:+libc6 (>= $glibc), libgcc-s1, }/" \
    "$repo/deploy/debian/control" >"$root/DEBIAN/control"
echo /etc/rhone/rhone.example.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "$repo/deploy/debian/$script" "$root/DEBIAN/$script"
done
(cd "$root" && find etc usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root/DEBIAN/control" "$root/DEBIAN/conffiles" "$root/DEBIAN/md5sums"

mkdir -p "$out"
package="$out/rhone_${version}_$arch.deb"
dpkg-deb --root-owner-group -Z"${RHONE_DEB_COMPRESSION:-xz}" --build "$root" "$package" >/dev/null
printf '%s\n' "$package"
