#!/usr/bin/env bash
# Measures the built programs: every room, or those that are named (node, demo, content, ...).
# MESHFARM_PROGRAMS names a folder of programs to measure instead of building them.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/env.sh
install_packages povray povray-examples
[ -n "${MESHFARM_PROGRAMS:-}" ] || build_programs
exec cargo bench --profile release --locked --quiet --package meshfarm-tests --bench rooms -- "$@"
