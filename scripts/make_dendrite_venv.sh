#!/usr/bin/env bash
# Makes the virtual environment with today's validators' client, bittensor 10.5.0, or that of the version given (9.12.2), and
# prints its python.
#
# The tests of wire/dendrite.py are judged by these real clients. They cannot share an environment with bittensor 11.
# Kept in $STORYFI_LITE_CACHE or ~/.cache/storyfi-lite; done once, about half a minute; does nothing the second time.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
version="${1:-10.5.0}"
venv="${STORYFI_LITE_CACHE:-$HOME/.cache/storyfi-lite}/dendrite-${version%.*}"
python="$venv/bin/python"
if ! [ -f "$venv/complete" ]; then
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    # 9.12 names no upper bound for its substrate library, whose version 2 it cannot import.
    pins=(); [[ $version == 9.* ]] && pins=("async-substrate-interface<2")
    "$python" -m pip install --quiet --disable-pip-version-check "bittensor==$version" "${pins[@]}" >&2
    touch "$venv/complete"
fi
echo "$python"
