#!/usr/bin/env bash
# Runs other people's test suites on a server itself and through the proxy before such a server, and compares.
#
#   scripts/suites.sh [asyncpg] [psycopg2] [regress]    all of them if none is named
#
# Suites are fetched into .deps/suites (or $MILLRACE_SUITES) by pip and apt; nothing is installed beside that. Each run has
# a throw-away server of its own. It takes about ten minutes, so `make test` does not run it. docs/proxy-suites.md says
# what comes of it; crates/proxy-tests/tests/suites/expected.txt lists the differences that are known, and why they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${MILLRACE_SUITES:-.deps/suites}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
here=$PWD/crates/proxy-tests/tests/suites
serve=${CARGO_TARGET_DIR:-$PWD/target}/debug/examples/serve
postgres=15
bin=/usr/lib/postgresql/$postgres/bin
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(asyncpg psycopg2 regress)

say() { printf 'suites: %s\n' "$*"; }
fail() {
    printf 'suites: %s\n' "$1" >&2
    exit 1
}

pinned() { sed -n "s/^$1==//p" "$here/requirements.txt"; }

# The drivers and pytest.
install_python() {
    ! cmp -s "$here/requirements.txt" "$folder/venv/requirements.txt" || return 0
    say "installing drivers and pytest"
    rm -rf "$folder/venv"
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$folder/venv/requirements.txt"
}

# fetch_tests NAME VERSION: the folder `tests` of a source distribution.
fetch_tests() {
    local to=$folder/$1-$2
    [ ! -d "$to/tests" ] || return 0
    say "fetching the tests of $1 $2"
    rm -rf "$to"
    mkdir -p "$to"
    "$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest "$to" "$1==$2"
    tar -xzf "$to/$1-$2.tar.gz" -C "$to" --strip-components=1 "$1-$2/tests"
}

# PostgreSQL's regression tests, from Debian's source package, and the library that they load, of the server's headers.
fetch_regress() {
    local version to=$folder/regress parts=$folder/apt/parts file
    version=$(dpkg-query --show --showformat '${Version}' "postgresql-$postgres") || fail "PostgreSQL $postgres is not installed"
    ! [ "$version" = "$(cat "$to/.version" 2>/dev/null)" ] || return 0
    say "fetching the regression tests of PostgreSQL $version"
    rm -rf "$to" "$folder/apt"
    mkdir -p "$to/lib" "$parts" "$folder/apt/lists/partial"
    # this system's own sources, for source packages, beside its lists
    for file in /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$file" ] || sed 's/^Types:.*/Types: deb-src/' "$file" >"$parts/${file##*/}"
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ ! -e "$file" ] || sed 's/^deb /deb-src /' "$file" >"$parts/${file##*/}.list"
    done
    local source=(apt-get -qq -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$parts"
        -o "Dir::State::lists=$folder/apt/lists" -o APT::Sandbox::User=root)
    "${source[@]}" update
    (cd "$folder/apt" && {
        "${source[@]}" source --download-only --tar-only "postgresql-$postgres=$version" ||
            "${source[@]}" source --download-only --tar-only "postgresql-$postgres"
        apt-get -qq -o APT::Sandbox::User=root download "postgresql-server-dev-$postgres=$version"
    })
    tar -xf "$folder"/apt/*.orig.tar.* -C "$to" --strip-components=4 --wildcards '*/src/test/regress'
    dpkg -x "$folder"/apt/postgresql-server-dev-*.deb "$folder/apt/dev"
    cc -shared -fPIC -O1 -I "$folder/apt/dev/usr/include/postgresql/$postgres/server" -o "$to/lib/regress.so" "$to/regress.c"
    cp "$bin/../lib/refint.so" "$bin/../lib/autoinc.so" "$to/lib/"
    echo "$version" >"$to/.version"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# with_server SETTINGS MODE COMMAND...: runs the command with PGPORT and PGPASSWORD of a new server, or of a proxy before it.
with_server() {
    local settings=$1 mode=$2 key value
    shift 2
    coproc SERVER { exec "$serve" "new$settings" "$mode" 60 2>"$work/serve.log"; }
    local input=${SERVER[1]} output=${SERVER[0]} pid=$SERVER_PID
    PGPORT=
    while read -r key value <&"$output"; do
        case $key in
            proxy) PGPORT=$value ;;
            password) PGPASSWORD=$value ;;
        esac
        [ "$key" != password ] || break
    done
    [ -n "$PGPORT" ] || fail "there is no server: $(cat "$work/serve.log")"
    export PGHOST=127.0.0.1 PGPORT PGUSER=postgres PGDATABASE=postgres PGPASSWORD
    # its tests may fail: what counts is the difference
    "$@" >"$work/output.log" 2>&1 || true
    exec {input}>&-
    wait "$pid" || fail "the server or the proxy ended badly: $(cat "$work/serve.log")"
}

run_asyncpg() {
    local to=$work/asyncpg
    rm -rf "$to" && mkdir "$to" && cp -r "$folder/asyncpg-$(pinned asyncpg)/tests" "$to/"
    (cd "$to" && with_server ,jit=off,log_connections=on "$1" timeout 900 "$folder/venv/bin/python" -m pytest -q \
        -p no:cacheprovider --import-mode=importlib --junitxml="$work/asyncpg.$1.xml" tests)
}

run_psycopg2() {
    local to=$work/psycopg2
    rm -rf "$to" && mkdir "$to" && cp -r "$folder/psycopg2-$(pinned psycopg2-binary)/tests" "$to/"
    (cd "$to" && with_server ,jit=off "$1" bash -c '
        export PSYCOPG2_TESTDB=$PGDATABASE PSYCOPG2_TESTDB_HOST=$PGHOST PSYCOPG2_TESTDB_PORT=$PGPORT
        export PSYCOPG2_TESTDB_USER=$PGUSER PSYCOPG2_TESTDB_PASSWORD=$PGPASSWORD
        exec timeout 900 "$@"' bash "$folder/venv/bin/python" -m pytest -q \
        -p no:cacheprovider --junitxml="$work/psycopg2.$1.xml" tests)
}

run_regress() {
    local to=$work/regress
    # the server reads and writes there, as another user
    rm -rf "$to" && cp -r "$folder/regress" "$to" && mkdir -p "$to/results" "$to/testtablespace" && chmod -R a+rwX "$to"
    (cd "$to" && with_server ,max_prepared_transactions=2 "$1" bash -c '
        umask 0
        exec timeout 900 "$1/../lib/pgxs/src/test/regress/pg_regress" --bindir="$1" --dlpath="$PWD/lib" --inputdir=. --outputdir=. \
            --max-concurrent-tests=20 --schedule=parallel_schedule --host="$PGHOST" --port="$PGPORT" --user="$PGUSER"' bash "$bin")
    cp "$work/output.log" "$work/regress.$1.out"
}

install_python
say "building the proxy"
cargo build --quiet --package millrace-proxy-tests --example serve
for suite in "${suites[@]}"; do
    # a pool in transaction mode gives a regression test's statements to any server: the tests are of one session
    modes=(direct transaction session)
    case $suite in
        asyncpg) fetch_tests asyncpg "$(pinned asyncpg)" ;;
        psycopg2) fetch_tests psycopg2 "$(pinned psycopg2-binary)" ;;
        regress)
            fetch_regress
            modes=(direct session)
            ;;
        *) fail "unknown suite \`$suite\`: one of asyncpg, psycopg2, regress" ;;
    esac
    for mode in "${modes[@]}"; do
        say "$suite, $mode"
        "run_$suite" "$mode"
        [ -z "${MILLRACE_SUITES_KEEP:-}" ] || cp -r "$work"/. "$MILLRACE_SUITES_KEEP/"
    done
done
python3 "$here/compare.py" "$work" "$here/expected.txt" "${suites[@]}"
