"""Trains three U-Nets, one per view, on a store; writes the model directory.

  python -m covid3way.main --config=configs/train.py --workdir=runs/model \
    --config.input=runs/cohort/store

Another method, with its published settings:

  python -m covid3way.main --config=configs/train.py:method=unet_3d ...

`method` is one of three_way, unet_2d, h_dense_unet, mpunet, unet_3d and vnet_3d.
`features` of the three-way method are those of the released networks (1.94 million
parameters each); (20, 40, 80, 160, 320) are about those of the paper (2.9 million).

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
  """`configs/train.py:smoke` trains two tiny epochs, `:method=NAME` another method."""
  method = variant.removeprefix('method=') if variant.startswith('method=') else ''
  if method and method not in default.METHODS:
    known = ', '.join(default.METHODS)
    raise ValueError(f'there is no method {method!r}, only {known}')
  config = default.pick(
    'train',
    '' if method else variant,
    'input',
    'training',
    'aggregation',
    'prediction.batch_size',
  )
  if method:
    config.training.update(default.METHODS[method], method=method)
  if variant == 'smoke':
    config.training.update(default.SMOKE_TRAINING)
  return config
