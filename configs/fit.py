"""Fits the progression law to every pair of serial scans of a cohort.

  python -m covid3way.main --config=configs/fit.py --workdir=runs/cohort \
    --config.input=MANIFEST.csv

Each scan is cast into `store/` first unless the preprocess job did so in the same
workdir. A patient's scans need an infection mask and, when there are several, a day,
the earliest first. Writes `fits/<patient>.json` and `.png` per patient, and
`fit_report.json` and `.csv`: how well the law fitted to two time points foretells the
third. A second run skips what is finished.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/fit.py:smoke` casts to a coarse space and hardly searches."""
  config = default.pick(
    'fit', variant, 'input', 'space', 'window', 'simulator.law', 'fit'
  )
  if variant == 'smoke':
    config.space.shape = (48, 48, 64)
    config.fit.update(iterations=3, restarts=0)
  return config
