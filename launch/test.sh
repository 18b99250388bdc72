#!/usr/bin/env bash
# All tests, set-up included. Arguments go to pytest:
#   ./launch/test.sh                  everything but the tests marked slow
#   ./launch/test.sh -m slow          those
#   ./launch/test.sh tests/test_training.py -k devices
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
marks=(-m "not slow")
[[ " $* " == *" -m "* ]] && marks=()
exec python -m pytest "${marks[@]}" "$@"
