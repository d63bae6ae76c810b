#!/bin/sh
# Sees on Linux that mimic compiles for Apple's computers, with Metal, and for Windows: nothing is linked or run. What their C compilers
# would do is done by zig, which comes from PyPI with cargo-zigbuild into VENV. Run by `make check-elsewhere`.
set -eu
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q ziglang==0.17.1 cargo-zigbuild==0.24.1
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH

elsewhere() { # a target, and its features
    target=$1
    shift
    rustup target add "$target"
    # The compiler's own warnings: clippy counts bytes, which are others there.
    cargo-zigbuild clippy --locked --target "$target" "$@" --lib --bins -- -D warnings -A clippy::all
}

elsewhere aarch64-apple-darwin --features metal
elsewhere x86_64-pc-windows-gnu
