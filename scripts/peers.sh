#!/usr/bin/env bash
# Installs what `millrace bench` compares with and the platform itself never needs, names each thing, and touches
# nothing that is present.
#
#   scripts/peers.sh failover   Patroni (Python, into .deps/patroni), etcd and HAProxy (Debian)
#   scripts/peers.sh proxy      PgBouncer (Debian)
#   scripts/peers.sh backup     pgBackRest (Debian)
#   scripts/peers.sh            all of them
#
# No service of Debian's is left running: the benchmarks run programs of their own on free ports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

patroni_version=4.1.5

say() { printf 'peers: %s\n' "$*"; }
fail() {
    printf 'peers: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'peers: hint: %s\n' "$2" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

# apt_install WHAT SERVICE PACKAGE...: a service that comes with the package is stopped, and does not start by itself.
apt_install() {
    local what=$1 service=$2
    shift 2
    have apt-get || fail "$what is missing" "install it with this system's package manager (on Debian: $*), then repeat"
    [ "$(id -u)" = 0 ] || have sudo || fail "$what is missing, and only root can install it" "as root: apt-get install $*"
    say "installing $what ($*)"
    as_root apt-get -qq update || fail "apt-get update failed" "check the network and /etc/apt/sources.list"
    as_root env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get -qq install -y --no-install-recommends \
        "$@" </dev/null >/dev/null || fail "could not install $*"
    # Debian starts what it installs; without systemd there is nothing to stop
    if [ -n "$service" ] && [ -d /run/systemd/system ]; then as_root systemctl disable --quiet --now "$service"; fi
}

install_failover() {
    have etcd || apt_install "etcd" etcd.service etcd-server
    have haproxy || apt_install "HAProxy" haproxy.service haproxy
    local folder=.deps/patroni
    if [ "$("$folder/bin/patroni" --version 2>/dev/null)" != "patroni $patroni_version" ]; then
        # the system's own interpreter: servers' users can reach it, which those in a home folder they often cannot
        local python=/usr/bin/python3
        "$python" -c 'import ensurepip' 2>/dev/null || apt_install "Python's virtual environments" "" python3-venv
        say "installing Patroni $patroni_version into $folder"
        mkdir -p .deps
        "$python" -m venv --clear "$folder" || fail "could not make $folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check "patroni[etcd3,psycopg3]==$patroni_version" psycopg-binary ||
            fail "could not install Patroni" "check the network and pip's settings"
    fi
}

install_proxy() {
    have pgbouncer || apt_install "PgBouncer" pgbouncer.service pgbouncer
}

install_backup() {
    have pgbackrest || apt_install "pgBackRest" "" pgbackrest
}

case ${1:-all} in
    backup) install_backup ;;
    failover) install_failover ;;
    proxy) install_proxy ;;
    all)
        install_failover
        install_proxy
        install_backup
        ;;
    *) fail "there is no part called $1" "backup, failover, proxy, or nothing for all of them" ;;
esac
