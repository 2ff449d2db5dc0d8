#!/bin/sh
# Stops with one line when a program that a make target needs is missing.
case $1 in
npm) what="Node.js 20.19 or later with npm, from nodejs.org or your package manager" ;;
python3) what="Python 3.9 or later with pip and venv, from python.org or your package manager" ;;
cargo) what="Rust, from rustup.rs" ;;
esac
command -v "$1" > /dev/null || { echo "switchboard: $1 is missing: install $what" >&2; exit 1; }
