"""Writes a phantom cohort: serial DICOM scans, reference masks and `manifest.csv`.

  python -m covid3way.main --config=configs/phantom.py --workdir=runs/phantom

Per patient `dayNN/` for each time point and `truth.json`, with the W that its disease
follows. Ten patients with 35 scans of 192 x 192 pixels and a 2 mm anatomy took
2 minutes on 2 cores, two full-size ones with two scans each 1 min 44 s; the 40 of the
default were not timed.

`configs/phantom.py:coarse` is the cohort of the README's cross-validation: 27 patients,
the fewest of which all eight scanners of the paper's Table I have one, with 40 scans of
128 x 128 pixels; 2 min 40 s on one core.

No real scan may be shipped, so this is what the tests and the quickstart work on.
"""

from configs import default


def get_config(variant: str = ''):
  """`:coarse`, see above; `:smoke` writes two small, coarse patients."""
  config = default.pick('phantom', '' if variant == 'coarse' else variant, 'phantom')
  if variant == 'coarse':
    config.phantom.update(
      patients=27, time_points=(1, 2), matrix=128, anatomy_spacing_mm=2.4
    )
  if variant == 'smoke':
    config.phantom.update(patients=2, matrix=64, anatomy_spacing_mm=5.0)
  return config
