#!/usr/bin/env bash
# The big volume: every scenario with many seeds, then the large ones once. Failures are kept and shrunk.
# SEEDS (1..500) says which seeds, JOBS (2) how many runs at a time, OUT (./nightly) where failures go.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
seeds="${SEEDS:-1..500}" jobs="${JOBS:-2}" out="${OUT:-nightly}"
cargo build --release --locked --quiet --package meshfarm-simulator
sim="${CARGO_TARGET_DIR:-target}/release/meshfarm-sim"
status=0
"$sim" sweep simulator/scenarios --seeds "$seeds" --jobs "$jobs" --keep-going --out "$out" || status=$?
for scenario in simulator/scenarios/large/*.toml; do
    "$sim" run "$scenario" --twice || status=$?
done
for failed in "$out"/*/; do
    [ -f "$failed/result.json" ] || continue
    "$sim" shrink "$failed" --to "${failed%/}.small.toml" || true
done
exit "$status"
