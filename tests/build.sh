#!/usr/bin/env bash
# The programs, built from a bare clone; prints the folder that holds them.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
# shellcheck source=tests/env.sh
. tests/env.sh
need_build_packages
build_programs >&2
echo "$MESHFARM_BIN"
