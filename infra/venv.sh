#!/bin/sh
# Makes the Python virtual environment $1 with what the requirements file $2 lists.
set -eu
infra/need.sh python3
python3 -m venv --clear "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2" || {
    rm -rf "$1"
    echo "switchboard: $2 could not be installed: see pip's message above; Debian and Ubuntu need the package python3-venv" >&2
    exit 1
}
