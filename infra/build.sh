#!/bin/sh
# Builds the functions of serverless.yml in the release profile and zips each under a name of its own,
# target/lambda/<architecture>/<handler>.zip: the framework names an object in S3 after its file, and of several zips of
# one name the last would become the code of every function.
set -eu
arch=$(infra/architecture.sh)
folder=target/lambda/$arch
handlers=$(sed -n 's/^ *handler: *//p' serverless.yml)
case $arch in
arm64) target=aarch64-unknown-linux-gnu ;;
x86_64) target=x86_64-unknown-linux-gnu ;;
esac

rm -rf "$folder"
# The target is known to be there; without the check cargo-lambda cannot begin to install one.
# shellcheck disable=SC2046
PATH=$PWD/target/venv/package/bin:$PATH cargo lambda build --release --locked --target $target --skip-target-check \
    --output-format zip --lambda-dir "$folder" $(printf -- '-p %s ' $handlers)
for handler in $handlers; do
    mv "$folder/$handler/bootstrap.zip" "$folder/$handler.zip"
    rmdir "$folder/$handler"
done
