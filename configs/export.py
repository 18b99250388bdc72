"""Writes the model directory of a training anew.

  python -m covid3way.main --config=configs/export.py --workdir=runs/model

The workdir is that of the train job, which does the same at its end. Takes each view's
checkpoint of the best validation Dice, chooses the aggregator on the validation scans,
and writes `model/` and `aggregators.csv`, the table of all that were tried.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/export.py:smoke` is the job itself: it has nothing to shorten."""
  return default.pick(
    'export', variant, 'training.cache_gib', 'aggregation', 'prediction.batch_size'
  )
