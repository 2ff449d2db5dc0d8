#!/bin/sh
# Runs the end to end tests on the zipped functions, and writes down the digests of the zips that it tested. The local
# stack and its fixture are debug builds, as in other tests.
set -eu
unpacked=$(tests/unpack.sh)
packaged=$(dirname "$unpacked")
rm -f "$packaged/tested.sha256"
(cd "$packaged" && sha256sum ./*.zip) > "$unpacked/digests"
SWITCHBOARD_BINARIES=$unpacked cargo test --workspace --test e2e
mv "$unpacked/digests" "$packaged/tested.sha256"
cat "$packaged/tested.sha256"
