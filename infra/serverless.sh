#!/bin/sh
# Runs the framework on one stage, region and architecture: infra/serverless.sh <command> [argument …].
set -eu
case ${STAGE:-} in
"" | *[!a-z0-9-]* | [!a-z]* | ????????????????????*)
    echo "switchboard: STAGE is 1 to 19 small letters, digits and '-', a letter first, and not '${STAGE:-}'" >&2
    exit 1
    ;;
esac
arch=$(infra/architecture.sh 2> /dev/null || infra/architecture.sh)
# shellcheck disable=SC2086
exec infra/node_modules/.bin/serverless "$@" --stage "$STAGE" --region "$REGION" --param="architecture=$arch" ${ARGS:-}
