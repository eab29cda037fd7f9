#!/usr/bin/env bash
# The programs, built from a bare clone; prints the folder that holds them.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/env.sh
build_programs
echo "$CARGO_TARGET_DIR/release"
