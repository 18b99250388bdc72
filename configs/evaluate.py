"""Compares predicted masks with references; a row per scan and evaluation.

  python -m covid3way.main --config=configs/evaluate.py --workdir=runs/evaluation \
    --config.input=manifest.csv --config.predictions=runs/results

`input` is a manifest with infection masks, and lung masks if there are any.
`predictions` is the workdir of a predict job, or a folder of `<scan_id>.nii.gz`, from
whatever program. Writes `evaluation.csv` and nnU-Net's `summary.json`. A missing or
misplaced mask has a row that says so.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/evaluate.py:smoke` evaluates in a small standard space."""
  config = default.pick(
    'evaluate', variant, 'input', 'predictions', 'space.shape', 'evaluation'
  )
  if variant == 'smoke':
    config.space.shape = (64, 64, 96)
  return config
