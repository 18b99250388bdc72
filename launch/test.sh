#!/usr/bin/env bash
# All tests, set-up included. Arguments go to pytest:
#   ./launch/test.sh                  everything but the tests marked slow or slurm
#   ./launch/test.sh -m slow          those that take minutes
#   ./launch/test.sh -m slurm         those on a real Slurm: Debian's slurm-wlm, munge
#   ./launch/test.sh tests/test_training.py -k devices
# What needs other people's programs (Slurm, dicom3tools, tests/requirements.txt) is
# skipped without them, or fails where the environment has CI=true.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
marks=(-m "not slow and not slurm")
[[ " $* " == *" -m "* ]] && marks=()
# Two at a time: most of a test is compiling or waiting on one core.
exec python -m pytest -n 2 --dist loadgroup "${marks[@]}" "$@"
