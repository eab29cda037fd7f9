#!/usr/bin/env bash
# Measures the built programs: every room, or those that are named (node, demo, content, ...).
# MESHFARM_PROGRAMS names a folder of programs to measure; without it they are built first.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
# shellcheck source=tests/env.sh
. tests/env.sh
need_build_packages
if [ -z "${MESHFARM_PROGRAMS:-}" ]; then
    need_packages povray povray-examples
    build_programs
    export MESHFARM_PROGRAMS="$MESHFARM_BIN"
fi
exec cargo bench --profile release --locked --quiet --package meshfarm-tests --bench rooms -- "$@"
