#!/bin/sh
# Unpacks the zipped functions into a folder, with the debug builds of the local stack and of fixtures beside them, and prints
# the folder's name. Tests find their binaries there: SWITCHBOARD_BINARIES=$(tests/unpack.sh).
set -eu
arch=$(infra/architecture.sh 2> /dev/null || infra/architecture.sh)
case "$arch $(uname -s) $(uname -m)" in
"x86_64 Linux x86_64" | "arm64 Linux aarch64") ;;
*)
    echo "switchboard: functions for $arch on Linux cannot run on this machine" >&2
    exit 1
    ;;
esac
packaged=target/lambda/$arch
unpacked=$packaged/unpacked
rm -rf "$unpacked"
mkdir -p "$unpacked/examples"
cp target/debug/switchboard-local target/debug/fixture target/debug/answer target/debug/gather "$unpacked"
cp target/debug/examples/put-event target/debug/examples/read-history "$unpacked/examples"
for zip in "$packaged"/*.zip; do
    python3 -m zipfile -e "$zip" "$unpacked"
    mv "$unpacked/bootstrap" "$unpacked/$(basename "$zip" .zip)"
done
chmod +x "$unpacked"/*
echo "$unpacked"
