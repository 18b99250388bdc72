"""Simulates training scans from serial scans and the law fitted to them.

  python -m covid3way.main --config=configs/augment.py --workdir=runs/cohort \
    --config.input=MANIFEST.csv

Works in the workdir of the fit job. Adds `store/<scan_id>-sim-<transition>.zarr`, scans
like the others with their infection masks, on which the train job then trains too, and
writes `augmented.csv`, the manifest with their lines. `--config.augmentation.ratio=2`
is the paper's 200 %: two simulated scans per scan; with 0.5 there is one for each scan
with a chance of one half. A second run skips what is finished.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/augment.py:smoke` simulates a few transitions."""
  config = default.pick('augment', variant, 'input', 'simulator', 'augmentation')
  if variant == 'smoke':
    config.augmentation.steps = 20
  return config
