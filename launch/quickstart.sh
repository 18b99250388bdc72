#!/usr/bin/env bash
# The whole method on a phantom cohort, set-up included. Further flags are passed on:
#   ./launch/quickstart.sh            7 minutes on 2 cores, the first set-up included
#   ./launch/quickstart.sh :smoke     the same, tiny, in a minute
set -euo pipefail
variant=""
if [[ "${1:-}" == :* ]]; then variant="$1"; shift; fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m covid3way.main --config="configs/quickstart.py$variant" \
  --workdir="runs/quickstart${variant/:/-}" "$@"
