"""Writes a phantom cohort: DICOM series, reference masks and `manifest.csv`.

  python -m covid3way.main --config=configs/phantom.py --workdir=runs/phantom

Two patients of the default size took 64 s and 3.1 GiB on 2 cores; the 40 of the default
were not timed.

No real scan may be shipped, so this is what the tests and the quickstart work on.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/phantom.py:smoke` writes two small, coarse patients."""
  config = default.pick('phantom', variant, 'phantom')
  if variant == 'smoke':
    config.phantom.update(patients=2, matrix=64, anatomy_spacing_mm=5.0)
  return config
