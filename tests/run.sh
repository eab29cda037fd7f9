#!/usr/bin/env bash
# Every test of the project, from a bare clone. Arguments go to cargo test.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
# shellcheck source=tests/env.sh
. tests/env.sh
need_build_packages
need_packages povray povray-examples iproute2 util-linux python3 binutils gcc musl-tools rsync blender
build_programs >&2
cargo test --release --locked "$@"
cargo test --release --locked --package meshfarm-preload "$@"
