"""Trains three U-Nets, one per view, on a store; writes the model directory.

  python -m covid3way.main --config=configs/train.py --workdir=runs/model \
    --config.input=runs/cohort/store

The defaults are meant for accelerators and were not timed; the quickstart's diff trains
on 2 cores in minutes.

Writes, per view, `training/<view>/` with its best and last checkpoint, `metrics.jsonl`,
`progress.png` and TensorBoard events; then `model/` and `aggregators.csv`, the table of
the ways to join the views. After an interruption the same command goes on from the last
checkpoint. SIGTERM is answered by a checkpoint of the step reached (at an epoch's end
once it is validated), one line and exit code 0.
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
