"""Writes a phantom cohort: serial DICOM scans, reference masks and `manifest.csv`.

  python -m covid3way.main --config=configs/phantom.py --workdir=runs/phantom

Per patient `dayNN/` for each time point and `truth.json`, with the W that its disease
follows. Ten patients with 35 scans of 192 x 192 pixels and a 2 mm anatomy took
2 minutes on 2 cores, two full-size ones with two scans each 1 min 44 s; the 40 of the
default were not timed.

No real scan may be shipped, so this is what the tests and the quickstart work on.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/phantom.py:smoke` writes two small, coarse patients."""
  config = default.pick('phantom', variant, 'phantom')
  if variant == 'smoke':
    config.phantom.update(patients=2, matrix=64, anatomy_spacing_mm=5.0)
  return config
