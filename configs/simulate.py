"""Simulates the course of one scan's infection over days.

  python -m covid3way.main --config=configs/simulate.py --workdir=runs/course \
    --config.input=DICOM_FOLDER --config.infection_mask=MASK.nii.gz \
    --config.simulation.days=5 --config.simulation.fit=runs/cohort/fits/PATIENT.json

`input` is one scan or a manifest with one line. Without `fit` the law's own W is used;
`--config.simulation.W.growth=0.006` replaces single values of either. Writes, per
output day, `course/<scan_id>-day<day>.zarr` (standard space) and `nifti/day<day>/` with
`ct.nii.gz`, `infection.nii.gz` and `stages.nii.gz` (1 ground glass, 2 consolidation) on
the scan's own grid, where voxels that were never infected keep their bits; and
`course.csv`, `course.gif` and `strip.png`. Five days of a chest of 148 slices took
73 s and 2.0 GiB on 2 cores at 256 x 256 x 384 voxels.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/simulate.py:smoke` simulates a fifth of a day in a coarse space."""
  config = default.pick(
    'simulate',
    variant,
    'input',
    'infection_mask',
    'space.shape',
    'window',
    'simulator',
    'simulation',
  )
  if variant == 'smoke':
    config.space.shape = (48, 48, 64)
    config.simulation.update(days=0.2, every_days=0.1, frames=3)
  return config
