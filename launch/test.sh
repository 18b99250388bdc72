#!/usr/bin/env bash
# All tests, set-up included. Arguments go to pytest:
#   ./launch/test.sh                  everything but the tests marked slow
#   ./launch/test.sh -m slow          those
#   ./launch/test.sh tests/test_training.py -k devices
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
marks=(-m "not slow")
[[ " $* " == *" -m "* ]] && marks=()
# Two at a time: most of a test is compiling or waiting on one core.
exec python -m pytest -n 2 --dist loadgroup "${marks[@]}" "$@"
