#!/bin/sh
# Builds the functions of serverless.yml in the release profile and zips each as
# target/lambda/<architecture>/<handler>.zip. The names must differ: the framework names an object in S3 after its file,
# so with equal names the last zip would become the code of every function.
set -eu
arch=$(infra/architecture.sh)
folder=target/lambda/$arch
handlers=$(sed -n 's/^ *handler: *//p' serverless.yml)
case $arch in
arm64) target=aarch64-unknown-linux-gnu ;;
x86_64) target=x86_64-unknown-linux-gnu ;;
esac

rm -f "$folder"/*.zip
# Cargo.toml says which packages these are. The target is installed, and without its own check cargo-lambda cannot start to
# install another.
PATH=$PWD/target/venv/package/bin:$PATH cargo lambda build --release --locked --target $target --skip-target-check \
    --output-format zip --lambda-dir "$folder"
for handler in $handlers; do
    mv "$folder/$handler/bootstrap.zip" "$folder/$handler.zip"
    rmdir "$folder/$handler"
done
