# shellcheck shell=bash
# What every script of the project needs: where cargo builds, how bindgen finds its headers, and the
# system packages. To be sourced by bash from any folder, with the project's folder in `root`.

# One target folder outside of the clone, so that RocksDB is compiled once for the demo, the tests and the checks.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/meshfarm/target}"

# A rustup that was installed a moment ago is not in the path of the running shell.
if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
fi

fail() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'help: %s\n' "$2" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "root is needed for: $*" "run that as root, or install sudo, and start again"
    fi
}

# Installs those of these Debian packages that are missing; says so, because it takes a while.
need_packages() {
    local package missing=()
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ "${#missing[@]}" = 0 ] || install_packages "${missing[@]}"
}

install_packages() {
    command -v apt-get >/dev/null || fail "these packages are missing: $*" "install them with this system's package tool"
    printf 'installing %s\n' "$*" >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >&2
}

# True when a libclang that bindgen finds by itself is there.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    # Not libclang-cpp, which other programs bring along.
    compgen -G '/usr/lib/llvm-*/lib/libclang[.-][s0-9]*' >/dev/null ||
        compgen -G '/usr/lib/*-linux-gnu/libclang[.-][s0-9]*' >/dev/null
}

# The newest libclang that this system offers: 14 on Debian 12, 19 on Debian 13.
newest_libclang() {
    apt-cache search --names-only '^libclang1-[0-9]+(t64)?$' | cut -d' ' -f1 | sort -V | tail -n 1
}

# What a build needs beside Rust: a C++ compiler and libclang, for RocksDB and its bindings.
need_build_packages() {
    local missing=()
    command -v cargo >/dev/null || fail 'cargo is missing' 'install Rust: https://rustup.rs'
    command -v g++ >/dev/null || missing+=(g++)
    if ! have_libclang; then
        local libclang
        libclang="$(newest_libclang)"
        if [ -z "$libclang" ] && command -v apt-get >/dev/null; then
            as_root apt-get -qq update >&2
            libclang="$(newest_libclang)"
        fi
        missing+=("${libclang:-libclang1}")
    fi
    [ "${#missing[@]}" = 0 ] || install_packages "${missing[@]}"
    # libclang without clang has no headers of its own; those of gcc will do.
    export BINDGEN_EXTRA_CLANG_ARGS="${BINDGEN_EXTRA_CLANG_ARGS:--I$(gcc -print-file-name=include)}"
    need_rocksdb
}

# Cargo compiles RocksDB anew (20 CPU-minutes) whenever another choice of packages or targets gives its
# build script other features. So one command compiles its library, and it is kept.
need_rocksdb() {
    [ -z "${ROCKSDB_LIB_DIR:-}" ] || return 0
    local version folder
    version="$(grep -A1 '^name = "librocksdb-sys"' "$root/Cargo.lock" | sed -n 's/^version = "\([^+"]*\).*/\1/p')"
    folder="${XDG_CACHE_HOME:-$HOME/.cache}/meshfarm/rocksdb-$version-lz4-$(uname -m)"
    if [ ! -f "$folder/librocksdb.a" ]; then
        printf 'compiling RocksDB, once for all: about ten minutes on two cores\n' >&2
        (cd "$root" && cargo build --release --locked --package meshfarm --lib) >&2 || fail 'the build failed'
        mkdir -p "$folder"
        cp "$(ls -t "$CARGO_TARGET_DIR"/release/build/librocksdb-sys-*/out/librocksdb.a | head -n 1)" "$folder/new.a"
        mv "$folder/new.a" "$folder/librocksdb.a"
    fi
    export ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR="$folder"
}

# Builds the programs and the preload library into one folder, and names that folder in MESHFARM_BIN.
# Every call of cargo is --release: another profile would compile RocksDB again.
build_programs() {
    printf 'building (the first time takes some minutes)\n' >&2
    (cd "$root" && cargo build --release --locked --bins &&
        cargo build --profile preload --locked -p meshfarm-preload) || fail 'the build failed'
    MESHFARM_BIN="$CARGO_TARGET_DIR/release"
    cp -f "$CARGO_TARGET_DIR/preload/libmeshfarm_preload.so" "$MESHFARM_BIN/.libmeshfarm_preload.so.new"
    mv -f "$MESHFARM_BIN/.libmeshfarm_preload.so.new" "$MESHFARM_BIN/libmeshfarm_preload.so"
    export MESHFARM_BIN
}
