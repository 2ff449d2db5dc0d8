#!/bin/sh
# Prints the architecture to build for: $ARCH if it is set, else arm64, else x86_64 where Rust cannot build for arm64.
# It installs nothing, because a toolchain is its owner's business.
set -eu

fail() {
    echo "switchboard: $*" >&2
    exit 1
}

can_build() {
    [ -d "$(rustc --print target-libdir --target "$1-unknown-linux-gnu")" ]
}

infra/need.sh cargo
case ${ARCH:-} in
"" | arm64) arch=arm64 triple=aarch64 ;;
x86_64) arch=x86_64 triple=x86_64 ;;
*) fail "ARCH is arm64 or x86_64, and not '$ARCH'" ;;
esac
install="rustup target add $triple-unknown-linux-gnu"
if ! can_build $triple; then
    [ -z "${ARCH:-}" ] || fail "Rust cannot build for $arch yet: run '$install', or choose the other ARCH"
    can_build x86_64 || fail "Rust cannot build for Lambda yet: run '$install'"
    arch=x86_64
    echo "switchboard: building for x86_64; for arm64, which costs less, run '$install' first" >&2
fi
echo "$arch"
