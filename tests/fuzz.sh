#!/usr/bin/env bash
# Feeds hostile bytes to what reads them. usage: tests/fuzz.sh [TARGET|all] [SECONDS] | seeds | build
#
# TARGET is a file of tests/fuzz/targets; all of them when absent, for 10 seconds each after their seeds. What is
# found is kept in the target folder (inputs that reach new code in fuzz/TARGET, the one that failed in fuzz/failed);
# a failed input becomes a seed when its defect is mended. `seeds` writes the first seeds anew; `build` only builds.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tests/env.sh
. "$root/tests/env.sh"
fuzz="$root/tests/fuzz"
machine="$(rustc -vV | sed -n 's/^host: //p')"
found="$CARGO_TARGET_DIR/fuzz"
command -v g++ >/dev/null || need_packages g++

# What cargo-fuzz would set: coverage for libFuzzer, and the address sanitizer. Both need flags that the stable
# compiler takes only when asked so.
build() {
    local passes='-Cpasses=sancov-module' flag
    for flag in level=4 inline-8bit-counters pc-table trace-compares; do
        passes="$passes -Cllvm-args=-sanitizer-coverage-$flag"
    done
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address $passes" \
        cargo build --release --locked --manifest-path "$fuzz/Cargo.toml" --target "$machine" "$@" >&2 ||
        fail 'the build failed'
}

# One target: everything that was ever found, the committed seeds, and then new inputs. No input may take a second
# of a fast machine, hold much memory, or claim a large piece of it at once.
run() {
    local target="$1" seconds="$2" seeds=() log
    mkdir -p "$found/$target" "$found/failed"
    [ ! -d "$fuzz/corpus/$target" ] || seeds=("$fuzz/corpus/$target")
    log="$found/$target.log"
    if ! nice "$CARGO_TARGET_DIR/$machine/release/$target" "$found/$target" "${seeds[@]}" \
        "-max_total_time=$seconds" -max_len=4096 -len_control=0 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=64 \
        "-artifact_prefix=$found/failed/$target-" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        fail "$target failed; the whole log is $log" "the input stands in $found/failed"
    fi
    printf '%-10s %s\n' "$target" "$(grep -E '^#[0-9]+.DONE' "$log" | tr -s ' \t' ' ')"
}

case "${1:-all}" in
build) build ;;
seeds)
    build --bin seeds
    "$CARGO_TARGET_DIR/$machine/release/seeds"
    ;;
all)
    build
    for file in "$fuzz"/targets/*.rs; do
        run "$(basename "$file" .rs)" "${2:-10}"
    done
    ;;
*)
    [ -f "$fuzz/targets/$1.rs" ] || fail "there is no target $1" "$(cd "$fuzz/targets" && echo *.rs)"
    build --bin "$1"
    run "$1" "${2:-60}"
    ;;
esac
