#!/usr/bin/env bash
# Makes the virtual environment with today's validators' client, bittensor 10.5.0, and prints its python.
#
# The tests of wire/dendrite.py are judged by this real client. It cannot share an environment with bittensor 11.
# Kept in $STORYFI_LITE_CACHE or ~/.cache/storyfi-lite; done once, about half a minute; does nothing the second time.
set -euo pipefail
venv="${STORYFI_LITE_CACHE:-$HOME/.cache/storyfi-lite}/dendrite-10.5"
python="$venv/bin/python"
if ! [ -f "$venv/complete" ]; then
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check bittensor==10.5.0 >&2
    touch "$venv/complete"
fi
echo "$python"
