#!/usr/bin/env bash
# make_env.sh DIRECTORY PACKAGE...: a virtual environment with torch 2.13 and one peer.
set -euo pipefail
directory=$1; shift
[ -x "$directory/bin/python" ] && exit 0
python3 -m venv "$directory"
echo "torch==2.13.0" > "$directory/constraints.txt"
"$directory/bin/pip" install --quiet torch==2.13.0
"$directory/bin/pip" install --quiet --constraint "$directory/constraints.txt" "$@"
