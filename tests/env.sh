#!/usr/bin/env bash
# Sourced by every script here: the system packages that are missing, one cache for everything compiled, and
# RocksDB compiled exactly once.

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else
    say "run this as root once, or install sudo: it needs $*"
    return 1
  fi
}

# The packages of our arguments that are not installed.
missing_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if [ "${#missing[@]}" -gt 0 ]; then
    say "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  fi
}

# RocksDB's bindings are made with libclang: any version that is there, or Debian's smallest package of it.
libclang_package() {
  if ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang-*.so* >/dev/null 2>&1; then return; fi
  { apt-cache --names-only search '^libclang1-[0-9]+$' || true; } | sort -V | tail -n 1 | cut -d' ' -f1
}

if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
command -v cargo >/dev/null || { say "Rust is missing: https://rustup.rs"; return 1; }

if command -v dpkg-query >/dev/null; then
  install_packages g++ make
  clang=$(libclang_package)
  if [ -z "$clang" ] && ! ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang-*.so* >/dev/null 2>&1; then
    as_root apt-get update -qq >&2
    clang=$(libclang_package)
  fi
  [ -z "$clang" ] || install_packages "$clang"
fi

meshfarm_cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshfarm
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$meshfarm_cache/target}
BINDGEN_EXTRA_CLANG_ARGS=-I$(gcc -print-file-name=include)
export BINDGEN_EXTRA_CLANG_ARGS

# Cargo compiles RocksDB anew (20 CPU-minutes) whenever a different choice of packages or targets gives its
# build script other features. So its library is compiled by one command and kept.
rocksdb_version=$(grep -A1 '^name = "librocksdb-sys"' Cargo.lock | sed -n 's/^version = "\(.*\)"/\1/p')
rocksdb_folder=$meshfarm_cache/rocksdb-${rocksdb_version%%+*}-lz4-$(rustc -vV | sed -n 's/^host: //p')
if [ ! -f "$rocksdb_folder/librocksdb.a" ]; then
  say "compiling RocksDB, once for all: about ten minutes on two cores"
  cargo build --release --locked --package meshfarm --lib >&2
  rocksdb_library=$(ls -t "$CARGO_TARGET_DIR"/release/build/librocksdb-sys-*/out/librocksdb.a | head -n 1)
  mkdir -p "$rocksdb_folder"
  cp "$rocksdb_library" "$rocksdb_folder/librocksdb.a.part"
  mv "$rocksdb_folder/librocksdb.a.part" "$rocksdb_folder/librocksdb.a"
fi
export ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR=$rocksdb_folder

# The programs, and the preload library beside them. It has a profile of its own because it has no std.
build_programs() {
  cargo build --release --locked --bins >&2
  cargo build --profile preload --locked --package meshfarm-preload >&2
  cp "$CARGO_TARGET_DIR/preload/libmeshfarm_preload.so" "$CARGO_TARGET_DIR/release/"
}
