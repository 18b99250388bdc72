"""Trains three U-Nets, one per view, on a store; writes the model directory.

  python -m covid3way.main --config=configs/train.py --workdir=runs/model \
    --config.input=runs/cohort/store

The defaults are meant for accelerators and were not timed; the quickstart's diff trains
on 2 cores in minutes.

Writes `model/` and, per view, `training/<view>/metrics.jsonl` and its last checkpoint,
from which the same command goes on after an interruption. SIGTERM is answered by a
checkpoint of the step reached (at an epoch's end once it is validated), one line and
exit code 0.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/train.py:smoke` trains two tiny epochs."""
  config = default.pick(
    'train', variant, 'input', 'training', 'aggregation', 'prediction.batch_size'
  )
  if variant == 'smoke':
    config.training.update(default.SMOKE_TRAINING)
  return config
