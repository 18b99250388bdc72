"""What the preprocess job stores beside the signal; and scans that are only padded."""

import numpy as np
import pytest
from conftest import run_job

from covid3way.base import Grid, MaskGridError
from covid3way.scans import nifti, store
from covid3way.standard import space as spaces

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


SPACE = spaces.StandardSpace((32, 32, 48))
# Of lungs on the own grid; a middle between two voxels, or on one.
EVEN = (slice(6, 34), slice(8, 36), slice(6, 30))
ODD = (slice(7, 34), slice(8, 35), slice(5, 30))


def padded(folder, box, *, spacing_mm=SPACING_MM):
  """A store without normalisation: scan `a`, its copy, and another; their HU."""
  rng, grid = np.random.default_rng(0), Grid(SHAPE, np.diag([*spacing_mm, 1.0]))
  lungs, inside = np.zeros((2, *SHAPE), np.uint8)
  inside[box] = 1
  lungs[:20], lungs[20:] = 2 * inside[:20], inside[20:]
  hu = rng.integers(-1000, 300, SHAPE).astype(np.int16)
  write(folder / 'ct.nii.gz', hu, grid)
  write(folder / 'copy.nii.gz', hu, grid)
  write(folder / 'other.nii.gz', np.roll(hu, 1), grid)
  write(folder / 'lungs.nii.gz', lungs, grid)
  write(folder / 'infection.nii.gz', (inside & (hu > 0)).astype(np.uint8), grid)
  masks = 'lungs.nii.gz,infection.nii.gz'
  (folder / 'cohort.csv').write_text(
    'patient_id,scan_id,image,lung_mask,infection_mask,window_level_hu,'
    'window_width_hu,scanner,domain\n'
    f'p,a,ct.nii.gz,{masks},-500,1500,SOMATOM,8-bit\n'
    f'q,b,copy.nii.gz,{masks},,,,\n'
    f'r,c,other.nii.gz,{masks},,,,\n'
  )
  run_job(
    'preprocess',
    folder / 'out',
    input=str(folder / 'cohort.csv'),
    space={'padded_mm': SPACE.spacing_mm},
  )
  groups = store.list_groups(folder / 'out' / 'store')
  return [store.open_group(path) for path in groups], hu


def middles_apart(box):
  """Where the space's first voxel lies on the own grid when middles meet."""
  lungs = [(part.start + part.stop - 1) / 2 for part in box]
  return [m - (n - 1) / 2 for m, n in zip(lungs, SPACE.shape, strict=True)]


def cut_and_padded(volume, first, value):
  """A volume in the space, voxel for voxel."""
  wide = np.pad(volume, 64, constant_values=value)
  starts = [64 + f for f in first]
  return wide[tuple(slice(s, s + n) for s, n in zip(starts, SPACE.shape, strict=True))]


@pytest.mark.parametrize('box', [EVEN, ODD], ids=['even', 'odd'])
@pytest.mark.parametrize('spacing_mm', [SPACING_MM, (3.0, 9.0, 20.0)])
def test_what_is_not_normalised_is_padded_and_cut_voxel_for_voxel(
  tmp_path, box, spacing_mm
):
  (scan, *_), hu = padded(tmp_path, box, spacing_mm=spacing_mm)
  kept = {name: volume.read().result() for name, volume in scan.volumes.items()}
  wanted = middles_apart(box)
  placement = spaces.Placement.from_json(scan.attributes['placement'])
  first = [placement.to_own(axis, 0) for axis in range(3)]
  assert first == np.rint(first).tolist()
  assert np.abs(np.subtract(first, wanted)).max() <= 0.5
  first = [int(f) for f in first]
  # -600 and 1200 HU are the default window, whatever the manifest and its scanner say.
  signal = (cut_and_padded(hu.astype(float), first, -1024) + 600) / 1200
  np.testing.assert_allclose(kept['signal'], signal, atol=1e-3)
  inside = np.zeros(SHAPE, np.uint8)
  inside[box] = 1
  np.testing.assert_array_equal(kept['lungs'] > 0, cut_and_padded(inside, first, 0))
  infection = inside & (hu > 0)
  np.testing.assert_array_equal(kept['infection'], cut_and_padded(infection, first, 0))
  # And back: to exactly the own voxels, with none where the space ends.
  random = np.random.default_rng(1).random(SPACE.shape) > 0.5
  there = np.pad(random, 64)
  starts = [64 - f for f in first]
  expected = there[tuple(slice(s, s + n) for s, n in zip(starts, SHAPE, strict=True))]
  np.testing.assert_array_equal(spaces.return_mask(random, placement), expected)
  # The scan's own grid stays what it is.
  assert scan.grid.spacing_mm == pytest.approx(spacing_mm)


def test_a_window_that_nothing_chose_says_so(tmp_path):
  (a, b, _), _ = padded(tmp_path, EVEN)
  none = {'level_hu': -600.0, 'width_hu': 1200.0, 'source': 'none: not normalised'}
  assert a.attributes['window'] == b.attributes['window'] == none


def test_lung_that_is_cut_off_is_told_in_its_own_volume(tmp_path):
  (scan, *_), _ = padded(
    tmp_path, (slice(2, 38), *EVEN[1:]), spacing_mm=(1.0, 2.0, 5.0)
  )
  # Of 36 voxels along x the space holds 32.
  (told,) = (w for w in scan.attributes['warnings'] if 'outside' in w['message'])
  ml = 4 * 28 * 24 * 1 * 2 * 5 / 1000
  assert told['message'] == f'{ml:.1f} ml of lung lie outside the standard space'


def test_a_scan_is_known_again_by_its_voxels_under_any_name(tmp_path):
  (a, b, c), _ = padded(tmp_path, EVEN)
  hashes = [scan.attributes['voxels_sha256'] for scan in (a, b, c)]
  assert hashes[0] == hashes[1] != hashes[2]
  assert [scan.attributes['domain'] for scan in (a, b, c)] == ['8-bit', '', '']
