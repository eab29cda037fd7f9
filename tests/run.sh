#!/usr/bin/env bash
# Every test of the project, from a bare clone. Arguments go to cargo test.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
# shellcheck source=tests/env.sh
. tests/env.sh
need_build_packages
need_packages povray povray-examples iproute2 util-linux python3 python3-yaml binutils gcc musl-tools rsync
# Large, and not everywhere to be had: without it the tests of Blender do nothing, and say so.
(need_packages blender) || printf 'Blender cannot be installed: it is not tested\n' >&2
build_programs >&2
cargo test --release --locked "$@"
cargo test --release --locked --package meshfarm-preload "$@"
