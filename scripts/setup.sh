#!/usr/bin/env bash
# Installs what is missing, names each thing, asks nothing, and touches nothing that is present.
#
#   scripts/setup.sh up      what `make up` needs: C toolchain, Node.js, PostgreSQL, libduckdb, browser bundle
#   scripts/setup.sh test    that, and what the tests need: Chromium, etcd, libfaketime, mkfs.xfs, drivers of PostgreSQL (Python, Node.js, Java), Azurite,
#                            cargo-nextest
#   scripts/setup.sh web     the browser bundle alone
#
# Written for Debian 12; elsewhere it says what is missing. With everything present it takes well under a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stage=${1:-test}
postgres_version=15

duckdb_version=1.5.6-r.1
duckdb_package=@duckdb/node-bindings-linux-x64@$duckdb_version
duckdb_archive_sha256=1b9f82478539bb9a1d1df44bd103121a12ae52142c07158dc52b97d2ec1d69ff
duckdb_library_sha256=3f4962cdd266eab2b479a5b5a4a6d063d279b2954ae814ed00385d553b747633

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'setup: hint: %s\n' "$2" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

# apt_install WHAT PACKAGE...: names the thing, then installs its packages.
apt_updated=
apt_install() {
    local what=$1
    shift
    have apt-get || fail "$what is missing" "install it with this system's package manager (on Debian: $*), then repeat"
    [ "$(id -u)" = 0 ] || have sudo || fail "$what is missing, and only root can install it" "as root: apt-get install $*"
    say "installing $what ($*)"
    if [ -z "$apt_updated" ]; then
        as_root apt-get -qq update || fail "apt-get update failed" "check the network and /etc/apt/sources.list"
        apt_updated=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get -qq install -y --no-install-recommends \
        -o Dpkg::Options::=--force-confold "$@" </dev/null >/dev/null || fail "could not install $*"
}

# The first number of a version, or 0.
major() { "$@" 2>/dev/null | sed -n '1s/^[^0-9]*\([0-9][0-9]*\).*/\1/p' | grep . || echo 0; }

check_rust() {
    have cargo || fail "there is no Rust toolchain" "install one from https://rustup.rs, then repeat"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "Rust $found is older than $wanted" "rustup update stable"
}

# PostgreSQL's grammar, compiled into the proxy, is described to Rust by libclang.
has_libclang() {
    local library
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    for library in /usr/lib/*/libclang-[0-9]*.so* /usr/lib/*/libclang.so* /usr/lib/llvm-*/lib/libclang[.-][0-9s]*; do
        if [ -e "$library" ]; then
            # its own headers, or a compiler that knows where they are
            have clang || compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
            return
        fi
    done
    return 1
}

# A protoc from elsewhere (`PROTOC`, or of its own folder) brings them along.
has_protobuf_types() {
    [ -z "${PROTOC:-}" ] && [ -z "${PROTOC_INCLUDE:-}" ] || return 0
    [ -e "$(dirname "$(command -v protoc || echo /usr/bin/protoc)")/../include/google/protobuf/descriptor.proto" ]
}

install_toolchain() {
    local packages=()
    have cc || packages+=(gcc)
    [ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
    has_libclang || packages+=(libclang1-14 libclang-common-14-dev)
    # etcd's protocol is described to Rust by protoc; Debian keeps the types that every protocol knows apart
    have protoc || [ -n "${PROTOC:-}" ] || packages+=(protobuf-compiler)
    has_protobuf_types || packages+=(libprotobuf-dev)
    [ ${#packages[@]} = 0 ] || apt_install "the C toolchain" "${packages[@]}"
}

install_node() {
    if ! have node; then
        if have npm; then apt_install "Node.js" nodejs; else apt_install "Node.js and npm" nodejs npm; fi
    elif ! have npm; then
        apt_install "npm" npm
    fi
    [ "$(major node --version)" -ge 18 ] || fail "Node.js $(node --version) is older than 18" "install a newer one from https://nodejs.org"
}

install_postgres() {
    local bin
    for bin in /usr/lib/postgresql/*/bin/initdb; do
        [ ! -x "$bin" ] || [ "$(major "${bin%/initdb}/postgres" --version)" -lt 14 ] || return 0
    done
    # the platform makes its own servers: no cluster of Debian's beside them
    if ! have pg_createcluster; then
        apt_install "PostgreSQL's ground" postgresql-common
    fi
    as_root sed -i 's/^#\?[[:space:]]*create_main_cluster[[:space:]]*=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    apt_install "PostgreSQL $postgres_version" "postgresql-$postgres_version"
}

install_duckdb() {
    local folder=.deps/duckdb stamp download
    stamp=$folder/.version
    [ ! -e "$folder/libduckdb.so" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$duckdb_library_sha256" ] || return 0
    if [ -e "$folder/libduckdb.so" ] && echo "$duckdb_library_sha256  $folder/libduckdb.so" | sha256sum --check --status; then
        echo "$duckdb_library_sha256" >"$stamp"
        return 0
    fi
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) ;;
        *) fail "there is no prebuilt libduckdb ${duckdb_version%%-*} for $(uname -s) on $(uname -m)" \
            "Millrace builds on Linux x86_64; elsewhere build libduckdb.so from DuckDB's source into $folder and write $duckdb_library_sha256 into $stamp" ;;
    esac
    say "downloading libduckdb ${duckdb_version%%-*} (23 MB)"
    mkdir -p "$folder"
    download=$(mktemp -d "$folder/download.XXXXXX")
    # shellcheck disable=SC2064 # the folder is known now
    trap "rm -rf '$download'" EXIT
    (cd "$download" && npm pack --loglevel=error "$duckdb_package" >/dev/null) || fail "could not download $duckdb_package" "check the network and npm's registry setting"
    local archive=("$download"/*.tgz)
    echo "$duckdb_archive_sha256  ${archive[0]}" | sha256sum --check --status ||
        fail "what was downloaded as $duckdb_package is not what was expected (sha256 differs)" "do not use it; check npm's registry setting"
    tar -xzf "${archive[0]}" -C "$download" package/libduckdb.so
    echo "$duckdb_library_sha256  $download/package/libduckdb.so" | sha256sum --check --status || fail "libduckdb.so is damaged" "repeat"
    mv "$download/package/libduckdb.so" "$folder/libduckdb.so"
    echo "$duckdb_library_sha256" >"$stamp"
}

build_web() {
    [ -e web/package.json ] || return 0
    local installed=web/node_modules/.package-lock.json
    if [ ! -e "$installed" ] || [ web/package-lock.json -nt "$installed" ]; then
        say "installing the browser bundle's packages"
        (cd web && npm ci --loglevel=error --no-fund --no-audit </dev/null >/dev/null) || fail "npm ci failed in web/"
        touch "$installed"
    fi
    local newer=
    if [ -e web/dist/charts.js.br ]; then
        newer=$(find web/src web/build.mjs web/package-lock.json web/tsconfig.json -newer web/dist/charts.js.br -print -quit)
    else
        newer=web/src
    fi
    if [ -n "$newer" ]; then
        say "building the browser bundle"
        (cd web && npm run --silent build </dev/null >/dev/null) || fail "the browser bundle does not build" "see: cd web && npm run build"
    fi
}

install_chromium() {
    have chromium || have google-chrome || have chromium-browser || apt_install "Chromium, for browser tests" chromium
}

# A program for tests; what Debian starts of it is stopped.
install_ip() {
    have ip || [ -x /usr/sbin/ip ] || apt_install "ip, for tests of hosts that are cut off" iproute2
}

install_xfs() {
    have mkfs.xfs || [ -x /usr/sbin/mkfs.xfs ] || apt_install "mkfs.xfs, for tests of copies that share blocks" xfsprogs
}

install_etcd() {
    have etcd && return
    apt_install "etcd, for tests of clusters on many hosts" etcd-server
    if [ -d /run/systemd/system ]; then as_root systemctl disable --quiet --now etcd.service; fi
}

install_faketime() {
    local library
    for library in /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib/faketime/libfaketimeMT.so.1; do
        [ ! -e "$library" ] || return 0
    done
    apt_install "libfaketime, to set the clock back in a test" libfaketime
}

install_python() {
    local requirements=crates/endpoint/tests/python/requirements.txt venv=.deps/venv
    [ -e "$requirements" ] || return 0
    [ ! -x $venv/bin/python ] || ! cmp -s "$requirements" $venv/requirements.txt || return 0
    local python=python3
    [ ! -x /usr/bin/python3 ] || python=/usr/bin/python3
    if ! have "$python" || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install "Python, for driver tests" python3 python3-venv
        python=/usr/bin/python3
    fi
    say "installing Python drivers of PostgreSQL, for tests"
    rm -rf $venv
    "$python" -m venv $venv
    $venv/bin/pip install --quiet --disable-pip-version-check --requirement "$requirements" || fail "pip could not install $requirements"
    cp "$requirements" $venv/requirements.txt
}

# install_node_packages FOLDER WHAT: what the folder's package-lock.json names.
install_node_packages() {
    local folder=$1 what=$2
    local installed=$folder/node_modules/.package-lock.json
    [ -e "$folder/package.json" ] || return 0
    if [ ! -e "$installed" ] || [ "$folder/package-lock.json" -nt "$installed" ]; then
        say "installing $what"
        (cd "$folder" && npm ci --loglevel=error --no-fund --no-audit </dev/null >/dev/null) || fail "npm ci failed in $folder"
        touch "$installed"
    fi
}

# A single source file is run as it is: Debian's runtime has the compiler, and no JDK is needed.
install_java() {
    local packages=()
    have java || packages+=(default-jre-headless)
    [ -e /usr/share/java/postgresql.jar ] || packages+=(libpostgresql-jdbc-java)
    [ ${#packages[@]} = 0 ] || apt_install "Java's driver of PostgreSQL, for tests (52 MB with the runtime)" "${packages[@]}"
    [ "$(java -version 2>&1 | major cat)" -ge 17 ] || fail "Java is older than 17" "put a newer java first in PATH, or: apt-get install default-jre-headless"
}

install_nextest() {
    have cargo-nextest || {
        say "installing cargo-nextest, the test runner (compiled here: some minutes)"
        cargo install --quiet --locked --debug cargo-nextest || fail "could not install cargo-nextest"
    }
}

case $stage in
    web)
        install_node
        build_web
        ;;
    up | test)
        check_rust
        install_toolchain
        install_node
        install_postgres
        install_duckdb
        build_web
        if [ "$stage" = test ]; then
            install_chromium
            install_etcd
            install_ip
            install_xfs
            install_faketime
            install_python
            install_node_packages crates/proxy-tests/tests/node "Node.js drivers of PostgreSQL, for tests"
            install_node_packages crates/backup/tests/azurite "Azurite, an emulator of Azure's storage, for tests (190 MB)"
            install_java
            install_nextest
        fi
        ;;
    *) fail "unknown stage \`$stage\`" "one of: up, test, web" ;;
esac
