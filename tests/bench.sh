#!/usr/bin/env bash
# Measures the built programs: every room, or those that are named (node, demo, content, ...).
# MESHFARM_PROGRAMS names a folder of programs to measure; without it they are built first.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${MESHFARM_PROGRAMS:-}" ]; then
  . tests/env.sh
  install_packages povray povray-examples
  build_programs
fi
exec cargo bench --profile release --locked --quiet --package meshfarm-tests --bench rooms -- "$@"
