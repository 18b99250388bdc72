"""What the preprocess job stores beside the signal."""

import numpy as np
import pytest
from conftest import run_job

from covid3way.base import Grid, MaskGridError
from covid3way.scans import nifti, store

SHAPE, SPACING_MM = (40, 44, 36), (7.0, 7.0, 8.0)
GRID = Grid(SHAPE, np.diag([*SPACING_MM, 1.0]))


def write(path, volume, grid=GRID):
  nifti.write_volume(path, volume, grid, dtype=volume.dtype)


@pytest.fixture
def cohort(tmp_path):
  """Two scans of two boxes of lung; the first says where its lungs are susceptible."""
  lungs = np.zeros(SHAPE, np.uint8)
  lungs[6:18, 8:36, 6:30], lungs[22:34, 8:36, 6:30] = 2, 1
  susceptible = (lungs > 0).astype(np.uint8)
  susceptible[10:14, 14:20] = 0  # a thick tube along z
  write(tmp_path / 'ct.nii.gz', np.where(lungs, -840, 40).astype(np.int16))
  write(tmp_path / 'lungs.nii.gz', lungs)
  write(tmp_path / 'susceptible.nii.gz', susceptible)
  (tmp_path / 'cohort.csv').write_text(
    'patient_id,scan_id,image,lung_mask,susceptible_mask\n'
    'p,a,ct.nii.gz,lungs.nii.gz,susceptible.nii.gz\n'
    'p,b,ct.nii.gz,lungs.nii.gz,\n'
  )
  return tmp_path


def test_a_susceptible_mask_is_stored_where_it_is_given(cohort):
  run_job('preprocess', cohort / 'out', input=str(cohort / 'cohort.csv'))
  a, b = (store.open_group(p) for p in store.list_groups(cohort / 'out' / 'store'))
  assert set(a.volumes) == {'signal', 'lungs', 'susceptible'}
  assert set(b.volumes) == {'signal', 'lungs'}
  assert a.attributes['scan_id'] == 'a' and a.attributes['placement']
  susceptible, lungs = (
    a.volumes[name].read().result() for name in ('susceptible', 'lungs')
  )
  assert set(np.unique(susceptible)) == {0, 1}
  assert not susceptible[lungs == 0].any()
  tube = (4 * 6) / (12 * 28)  # of a lung's section; only the first has one
  assert susceptible.sum() / (lungs > 0).sum() == pytest.approx(1 - tube / 2, abs=0.02)
  left, right = (susceptible[lungs == side].mean() for side in (1, 2))
  assert left == 1 and right == pytest.approx(1 - tube, abs=0.03)


def test_a_susceptible_mask_on_another_grid_is_told(cohort):
  other = Grid((10, 10, 10), np.eye(4))
  write(cohort / 'susceptible.nii.gz', np.ones((10, 10, 10), np.uint8), other)
  manifest = cohort / 'cohort.csv'
  manifest.write_text(''.join(manifest.read_text().splitlines(keepends=True)[:2]))
  with pytest.raises(MaskGridError, match=r'a: mask susceptible\.nii\.gz'):
    run_job('preprocess', cohort / 'out', input=str(manifest))
  assert not list((cohort / 'out').rglob('*.zarr'))
