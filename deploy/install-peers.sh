#!/bin/sh
# Installs what `make bench PEERS=1` compares Rhone with, and nothing that starts by itself:
#
#   Patroni (with its raft mode) and psycopg from PyPI, into a virtual environment in /var/cache/rhone/peers
#   etcd from Debian's package, unpacked into /var/cache/rhone/peers/debian
#   pg_auto_failover as a package: Postgres finds extensions only in its own folder
#
# As root. What cannot be had is said, and the benchmark leaves it out and says so. A second run does nothing.
set -eu

folder=${RHONE_PEERS:-/var/cache/rhone/peers}
patroni=4.1.5

say() { printf '%s\n' "peers: $*" >&2; }
[ "$(id -u)" = 0 ] || { say "error: not root" "(the benchmark needs network namespaces too)"; exit 1; }
mkdir -p "$folder/debian"
chmod 755 "$folder" "$folder/debian"

refreshed=no
refresh() {
    [ "$refreshed" = no ] || return 0
    refreshed=yes
    apt-get -q -o DPkg::Lock::Timeout=300 update >/dev/null || say "warning: apt-get update failed"
}

# Unpacks a package without installing it: no service, no user, no configuration.
unpack() {
    program=$1
    package=$2
    [ ! -x "$folder/debian/$program" ] || return 0
    refresh
    say "unpacks $package"
    into=$(mktemp -d)
    if (cd "$into" && apt-get -q download "$package" >/dev/null 2>&1); then
        dpkg-deb -x "$into"/*.deb "$folder/debian"
    else
        say "warning: no package $package: it is left out"
    fi
    rm -rf "$into"
}

python=/usr/bin/python3 # one that the user postgres can read
if ! "$folder/bin/patroni" --version 2>/dev/null | grep -q " $patroni\$"; then
    say "installs Patroni $patroni into $folder"
    "$python" -m venv "$folder" >/dev/null 2>&1 || {
        refresh
        DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends python3-venv >&2
        "$python" -m venv "$folder"
    }
    "$folder/bin/pip" install -q --disable-pip-version-check "patroni[etcd3,raft,psycopg3]==$patroni" 'psycopg[binary]' >&2 ||
        say "warning: no Patroni: it is left out"
fi

version=$(for dir in /usr/lib/postgresql/*/bin; do
    [ ! -x "$dir/postgres" ] || basename "${dir%/bin}"
done | sort -n | tail -n 1)
unpack usr/bin/etcd etcd-server
if [ ! -e "/usr/share/postgresql/$version/extension/pgautofailover.control" ]; then
    refresh
    say "installs postgresql-$version-auto-failover"
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
        "postgresql-$version-auto-failover" >&2 || say "warning: no extension pgautofailover: it is left out"
fi
