#!/bin/sh
# Runs the end to end tests on the zipped functions, and writes down the digests of the zips that it tested. The local
# stack and its fixture are debug builds, as in other tests.
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
rm -rf "$unpacked" "$packaged/tested.sha256"
mkdir -p "$unpacked/examples"
cp target/debug/switchboard-local target/debug/fixture target/debug/answer target/debug/gather "$unpacked"
cp target/debug/examples/put-event target/debug/examples/read-history "$unpacked/examples"
for zip in "$packaged"/*.zip; do
    python3 -m zipfile -e "$zip" "$unpacked"
    mv "$unpacked/bootstrap" "$unpacked/$(basename "$zip" .zip)"
done
chmod +x "$unpacked"/*
(cd "$packaged" && sha256sum ./*.zip) > "$unpacked/digests"
SWITCHBOARD_BINARIES=$unpacked cargo test --workspace --test e2e
mv "$unpacked/digests" "$packaged/tested.sha256"
cat "$packaged/tested.sha256"
