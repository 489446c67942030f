#!/bin/sh
# Installs what the Makefile's targets need and this machine lacks; touches nothing that is there.
#
#   deploy/install-deps.sh run     what `make demo` needs: Postgres 15 or later, a C compiler, cargo
#   deploy/install-deps.sh test    and what the tests and the benchmark use: iproute2, nftables, strace
#                                     pgbouncer, haproxy, prometheus (promtool), psycopg2, psycopg, asyncpg, JDBC where there is a Java,
#                                     and Kubernetes's schemas (PyPI's kubernetes-validate) in ~/.cache/rhone
#
# Debian's and Ubuntu's packages, as root or by sudo, and two from PyPI and npm for the tests, as the user. A second run does nothing.
set -eu

wanted=${1:-test}
rust_needed=88 # cargo 1.88, as rust-version in Cargo.toml

say() { printf '%s\n' "deps: $*" >&2; }
fail() { say "error: $1"; shift; for line in "$@"; do say "hint: $line"; done; exit 1; }
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

apt_updated=no
refresh() {
    [ "$apt_updated" = no ] || return 0
    apt_updated=yes
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update >/dev/null || say "warning: apt-get update failed"
}
apt() {
    have apt-get || fail "this machine has no apt-get" "install by hand: $*"
    [ "$(id -u)" = 0 ] || have sudo || fail "not root, and there is no sudo" "as root: apt-get install $*"
    refresh
    say "installs $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends "$@" >&2
}

# Installs programs whose packages start a service: only the programs are wanted, so that none is started now or
# at the next boot.
apt_without_services() {
    policy=/usr/sbin/policy-rc.d
    made=no
    if [ ! -e "$policy" ]; then
        made=yes
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    apt "$@"
    [ "$made" = no ] || as_root rm -f "$policy"
    if have systemctl && [ -d /run/systemd/system ]; then
        as_root systemctl disable "$@" >/dev/null 2>&1 || say "warning: could not disable: $*"
    fi
}

# The version of a package that could be installed; nothing where there is none.
candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '^(none)$' || true
}

# The newest installed server of version 15 or later.
postgres_bin() {
    if [ -n "${RHONE_PG_BIN:-}" ]; then
        printf '%s\n' "$RHONE_PG_BIN"
        return
    fi
    for dir in /usr/lib/postgresql/*/bin; do
        version=${dir%/bin}
        version=${version##*/}
        if [ -x "$dir/postgres" ] && [ "$version" -ge 15 ] 2>/dev/null; then
            printf '%s %s\n' "$version" "$dir"
        fi
    done | sort -n | tail -n 1 | cut -d' ' -f2
}

# Debian's server package makes a cluster named main and starts it on port 5432. Only the programs
# are wanted here, so that is switched off while this script installs, and for no longer. Where the
# tools were there before, their owner has decided about it, and nothing is switched.
install_postgres() {
    switch=/etc/postgresql-common/createcluster.d/rhone-deps.conf
    if ! have pg_createcluster; then
        apt postgresql-common
        as_root mkdir -p "${switch%/*}"
        echo 'create_main_cluster = false' | as_root tee "$switch" >/dev/null
        trap 'as_root rm -f "$switch"' EXIT
    fi
    package=postgresql
    refresh
    if [ -n "$(candidate postgresql-15)" ]; then package=postgresql-15; fi
    apt "$package"
    if [ -e "$switch" ]; then
        as_root rm -f "$switch"
        say "Postgres's programs are there; no server was made or started (pg_createcluster makes one)"
    fi
}

cargo_minor() { cargo --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p'; }

install_cargo() {
    [ -z "${HOME:-}" ] || PATH="$PATH:$HOME/.cargo/bin"
    if have cargo; then
        minor=$(cargo_minor)
        [ -n "$minor" ] || fail "cargo is there and does not run: $(cargo --version 2>&1 | head -n 1)" \
            "rust-toolchain.toml asks for a toolchain that rustup does not have: rustup toolchain install"
        [ "$minor" -ge "$rust_needed" ] && return
        fail "cargo 1.$minor is too old: 1.$rust_needed or later is needed" \
            "remove it and run this again, or install rustup from https://rustup.rs"
    fi
    refresh
    offered=$(candidate cargo)
    # Before 2024 Debian counted cargo's own versions: 0.66 was the cargo of Rust 1.65.
    minor=$(printf '%s' "$offered" | sed -n 's/^1\.\([0-9]*\)\..*/\1/p')
    if [ "${minor:-0}" -ge "$rust_needed" ]; then
        apt cargo rustc rustfmt rust-clippy
        return
    fi
    if [ -n "$(candidate rustup)" ]; then
        apt rustup ca-certificates
        toolchain=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$(dirname "$0")/../rust-toolchain.toml")
        say "rustup fetches Rust $toolchain"
        if rustup toolchain install "$toolchain" --profile minimal -c rustfmt -c clippy >&2; then return; fi
    fi
    fail "there is no cargo here, and the packages have none that is new enough (found: ${offered:-none})" \
        "install rustup from https://rustup.rs (it reads rust-toolchain.toml), then run this again"
}

[ -n "$(postgres_bin)" ] || install_postgres
[ -n "$(postgres_bin)" ] || fail "the packages have no Postgres 15 or later" \
    "name a folder that holds the programs: RHONE_PG_BIN=/path/to/bin make …"

packages=
have cc || packages="$packages build-essential"
have make || packages="$packages make"
if [ "$wanted" = test ]; then
    have ip || packages="$packages iproute2"
    have nft || packages="$packages nftables"
    have strace || packages="$packages strace"
    have nsenter || packages="$packages util-linux"
    have openssl || packages="$packages openssl"
    /usr/bin/python3 -c 'import psycopg2' 2>/dev/null || packages="$packages python3-psycopg2"
    for driver in psycopg asyncpg; do
        /usr/bin/python3 -c "import $driver" 2>/dev/null || packages="$packages python3-$driver"
    done
    if have java && [ ! -e /usr/share/java/postgresql.jar ]; then packages="$packages libpostgresql-jdbc-java"; fi
    have kubectl || have kustomize || say "no kubectl and no kustomize: the manifests' test says that it is skipped"
    services=
    have pgbouncer || services="$services pgbouncer"
    have haproxy || services="$services haproxy"
    have promtool || services="$services prometheus"
    # shellcheck disable=SC2086 # a list of words
    [ -z "$services" ] || apt_without_services $services
fi
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || apt $packages
install_cargo

# Kubernetes's schemas, in a folder of their own: nothing else sees them.
install_schemas() {
    folder=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/rhone/manifests
    wanted_version=1.37.0
    if "$folder/bin/python" -c "import kubernetes_validate as k; assert k.__version__ == '$wanted_version'" 2>/dev/null; then
        return
    fi
    say "installs kubernetes-validate $wanted_version into $folder"
    python3 -m venv "$folder" >/dev/null 2>&1 || { apt python3-venv && python3 -m venv "$folder" >&2; }
    "$folder/bin/pip" install -q --disable-pip-version-check "kubernetes-validate==$wanted_version" >&2 ||
        say "warning: no schemas: the manifests' test says that it is skipped"
}

# node-postgres, for its example, where Node.js is here.
install_node_postgres() {
    have npm || return 0
    folder=${HOME:-/tmp}/.cache/rhone/node
    if [ -d "$folder/node_modules/pg" ]; then return; fi
    say "installs node-postgres into $folder"
    mkdir -p "$folder"
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" pg@8 >&2 ||
        say "warning: no node-postgres: its example's test says that it is skipped"
}

if [ "$wanted" = test ]; then
    install_schemas
    install_node_postgres
fi
