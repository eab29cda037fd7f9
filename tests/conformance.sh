#!/usr/bin/env bash
# Conformance files of Open Job Description, run on this machine alone and through a mesh of three sites.
set -euo pipefail

usage() {
    cat <<'END'
Checks meshfarm against a folder of conformance files of Open Job Description.

  ./tests/conformance.sh tests/conformance          the files of this project
  ./tests/conformance.sh DIR                        any folder of that shape, such as the standard's own suite

Beneath DIR, at any depth:
  job_templates/*.yaml|json, env_templates/*.yaml|json   accepted by `openjd check`; refused where the name has .invalid.
  jobs/*.test.yaml                                       run by `openjd run`, and judged by what they expect

Each job runs in a session of its own on this machine, and through a mesh of three local sites: oslo, which has no
slots, borrows from lyon and kyoto.

  --alone         not through the mesh
  --mesh          through the mesh only
  --only WORD     only files whose path contains WORD
  --no-build      use the programs that were built last
  -h, --help      this text

Prints a line for each kind with its score, and every failure with its reason. Exit code 1 when anything failed.

The standard's own suite is the folder conformance-tests of github.com/OpenJobDescription/openjd-specifications; its
jobs start `python`, which Debian has in the package python-is-python3.
END
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
# shellcheck source=tests/env.sh
. "$here/env.sh"

ways=(alone mesh) only='' build=yes folder=''
while [ $# -gt 0 ]; do
    case "$1" in
        --alone) ways=(alone) ;;
        --mesh) ways=(mesh) ;;
        --only) only="${2:-}"; shift ;;
        --only=*) only="${1#*=}" ;;
        --no-build) build='' ;;
        -h | --help) usage; exit 0 ;;
        -*) printf 'error: unknown argument %s\n' "$1" >&2; usage >&2; exit 2 ;;
        *) folder="$1" ;;
    esac
    shift || { usage >&2; exit 2; }
done
[ -n "$folder" ] || { usage >&2; exit 2; }
[ -d "$folder" ] || fail "$folder is no folder" "name one that holds job_templates, env_templates or jobs"

# ---- the end, however it comes: every process that was started here is ended by its number ----

pids=() work=''
finish() {
    local status=$? pid
    trap - EXIT INT TERM HUP
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do
        # A node ends within seconds; one that does not is not asked again.
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    [ -z "$work" ] || rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

wait_until() {
    local seconds="$1" what="$2" end
    shift 2
    end=$((SECONDS + seconds))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "after $seconds s still not so: $what"
        sleep 0.1
    done
}

# ---- the programs ----

need_packages python3
python=python3
if ! "$python" -c 'import yaml' 2>/dev/null; then
    need_packages python3-yaml
    python=/usr/bin/python3
fi
if [ -n "$build" ]; then
    need_build_packages
    build_programs
fi
meshfarm="${MESHFARM_BIN:-$CARGO_TARGET_DIR/release}/meshfarm"
[ -x "$meshfarm" ] || fail "there is no $meshfarm" "run without --no-build"
# A short path: that of a socket may have 107 bytes.
work="$(mktemp -d /tmp/mfconf.XXXXXX)"

# ---- three sites ----

at() { local site="$1"; shift; "$meshfarm" --home "$work/$site" "$@"; }
lends() {
    at oslo --json sites | "$python" -c '
import json, sys
up = [s for s in json.load(sys.stdin) if s["connected"] and (s["profile"] or {}).get("lending")]
sys.exit(len(up) != 2)'
}
start_mesh() {
    local site loopback=(--listen /ip4/127.0.0.1/tcp/0 --no-mdns)
    at oslo --quiet init --name oslo --slots 0 --no-lend --where remote "${loopback[@]}"
    for site in lyon kyoto; do
        at "$site" --quiet init --name "$site" --lend 2 --where local "${loopback[@]}"
    done
    for site in oslo lyon kyoto; do
        "$meshfarm" --home "$work/$site" node >"$work/$site.ready" 2>"$work/$site.log" &
        pids+=($!)
    done
    for site in oslo lyon kyoto; do
        wait_until 30 "$site to be ready" test -s "$work/$site.ready"
    done
    at oslo --quiet mesh create conformance
    local ticket
    ticket="$(at oslo --quiet invite --uses 2 --expires 1h)"
    for site in lyon kyoto; do printf '%s\n' "$ticket" | at "$site" --quiet join - >/dev/null; done
    wait_until 60 'lyon and kyoto to say what they offer' lends
}
case " ${ways[*]} " in *' mesh '*) start_mesh >/dev/null ;; esac

# ---- the files ----

"$python" "$here/conformance.py" "$meshfarm" "$work" "$folder" "$only" "${ways[@]}"
