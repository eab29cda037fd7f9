#!/usr/bin/env bash
# Every test of the project, from a bare clone.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/env.sh
install_packages povray povray-examples iproute2
build_programs
cargo test --release --locked "$@"
