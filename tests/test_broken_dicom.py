"""Named defects of DICOM exports, alone and in pairs: put right, or refused by name.

Put right means: lungs, left and right, and a lesion lie within one voxel of where they
lie in the clean series, in the world, and HU are those of the chest at that place.

The slow test takes every fourth pair; `PAIRS=1 ./launch/test.sh -m slow
tests/test_broken_dicom.py` takes all.
"""

import functools
import itertools
import os
import shutil

import broken_dicom as broken
import chest_series
import nibabel
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from covid3way import base
from covid3way.base import WarningKind
from covid3way.scans import dicom, nifti
from covid3way.standard.lungs import find_lungs

PAIRS_IN_SAMPLE = 40
EVERY = int(os.environ.get('PAIRS', 4))
_RESAMPLED = {WarningKind.TILT_CORRECTED, WarningKind.SPACING_EVENED}
_MEAN_HU, _MEAN_HU_RESAMPLED = 8.0, 40.0
LESION_ML = 4 / 3 * np.pi * np.prod(chest_series.LESION_RADII_MM) / 1000
PARTS = ('left lung', 'right lung', 'lesion')


def read(path):
  return dicom.read_series(path, scan_id='s1')


def masks_of(scan):
  """Three (x, y, z) bool volumes: air of the left and the right lung, lesion."""
  # The same voxels have the same masks.
  masks = _masks(scan.hu.tobytes(), scan.hu.shape, scan.grid.spacing_mm)
  return dict(zip(PARTS, masks, strict=True))


@functools.lru_cache(maxsize=8)
def _masks(data, shape, spacing_mm):
  hu = np.frombuffer(data, np.float32).reshape(shape)
  lungs, _ = find_lungs(hu, spacing_mm)
  # Without what the finder fills in along the walls, which goes by blocks of voxels.
  left, right = (
    (lungs == side) & (hu < chest_series.LUNG_HU / 2)
    for side in (base.LEFT, base.RIGHT)
  )
  lesion = np.zeros(shape, bool)
  (box,) = ndimage.find_objects(lungs.clip(max=1))
  dense = hu[box] > (chest_series.LUNG_HU + chest_series.LESION_HU) / 2
  # Of what is dense, only the lesion has lung all around.
  lesion[box] = ndimage.binary_fill_holes(~dense) & dense
  return left, right, ndimage.binary_opening(lesion)


def world_of(mask, affine):
  """(voxels, 3) LPS mm."""
  return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]


def diagonal_mm(grid):
  return float(np.linalg.norm(grid.spacing_mm))


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
  return read(broken.write(tmp_path_factory.mktemp('clean')))


@functools.lru_cache(maxsize=1)
def clean_points(clean):
  """Of each part: its points in the world, and a tree of them."""
  places = {k: world_of(m, clean.grid.affine) for k, m in masks_of(clean).items()}
  return {k: (points, KDTree(points)) for k, points in places.items()}


def farthest_mm(points, part, clean):
  """How far a point of either set is from the other set, at most."""
  truth, tree = clean_points(clean)[part]
  there, _ = tree.query(points)
  back, _ = KDTree(points).query(truth)
  return max(there.max(), back.max())


def check_same_chest(scan, clean):
  one_voxel = max(diagonal_mm(scan.grid), diagonal_mm(clean.grid))
  for part, mask in masks_of(scan).items():
    distance = farthest_mm(world_of(mask, scan.grid.affine), part, clean)
    assert distance <= one_voxel, f'{part}: {distance:.1f} mm'
  lungs = masks_of(scan)['left lung'] | masks_of(scan)['right lung']
  truth = chest_series.hu_at(world_of(lungs, scan.grid.affine))
  resampled = {w.kind for w in scan.warnings} & _RESAMPLED
  most = _MEAN_HU_RESAMPLED if resampled else _MEAN_HU
  assert np.abs(scan.hu[lungs] - truth).mean() < most


def check(path, verdict, clean):
  """A verdict: the kinds of all warnings, an error, or several possible errors."""
  if isinstance(verdict, frozenset):
    scan = read(path)
    assert {w.kind for w in scan.warnings} == verdict
    check_same_chest(scan, clean)
    told = repr((scan.warnings, scan.provenance, scan.windows))
  else:
    with pytest.raises(base.Covid3wayError) as caught:
      read(path)
    told, error = str(caught.value), caught.value
    assert type(error) in (verdict if isinstance(verdict, tuple) else (verdict,)), told
    assert told.startswith('s1: ')
    assert error.found
    assert error.remedy
    assert '\n' not in told
  for secret in chest_series.SECRETS:
    assert secret not in told


def pairs():
  names = itertools.combinations(broken.DEFECTS, 2)
  return [pair for pair in names if broken.combine(*pair)]


def sample_of_pairs():
  """The same ones in every run."""
  all_pairs = pairs()
  order = np.random.default_rng(6).permutation(len(all_pairs))
  return [all_pairs[k] for k in order[:PAIRS_IN_SAMPLE]]


# The clean series, and that the comparison can fail


def test_clean_series_is_the_chest(clean):
  assert clean.warnings == ()
  assert clean.grid.shape == (
    chest_series.COLUMNS,
    chest_series.ROWS,
    chest_series.SLICES,
  )
  check_same_chest(clean, clean)


def test_the_lesion_is_where_it_was_put(clean):
  points = world_of(masks_of(clean)['lesion'], clean.grid.affine)
  np.testing.assert_allclose(points.mean(0), chest_series.LESION_MM, atol=3)
  assert len(points) * clean.grid.voxel_ml == pytest.approx(LESION_ML, rel=0.15)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_the_comparison_sees_a_mirrored_volume(clean, axis):
  mirrored = np.ascontiguousarray(np.flip(clean.hu, axis))
  with pytest.raises(AssertionError, match=r'mm'):
    check_same_chest(base.Scan('s1', mirrored, clean.grid), clean)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_the_comparison_sees_a_shift_of_two_slices(clean, axis):
  affine = clean.grid.native_affine.copy()
  affine[axis, 3] += 2 * chest_series.STEP_MM
  moved = base.Scan('s1', clean.hu, base.Grid(clean.grid.native_shape, affine))
  with pytest.raises(AssertionError, match=r'mm'):
    check_same_chest(moved, clean)


def test_the_comparison_sees_shear(clean):
  affine = clean.grid.native_affine.copy()
  affine[1, 2] = chest_series.STEP_MM * np.tan(np.radians(6))  # about the middle slice
  affine[1, 3] -= affine[1, 2] * (chest_series.SLICES - 1) / 2
  sheared = base.Scan('s1', clean.hu, base.Grid(clean.grid.native_shape, affine))
  with pytest.raises(AssertionError):
    check_same_chest(sheared, clean)


# Defects


def test_there_are_enough_defects_of_either_kind():
  refused = [d for d in broken.DEFECTS.values() if isinstance(d.verdict, type)]
  assert len(broken.DEFECTS) >= 40
  assert len(broken.DEFECTS) - len(refused) >= 40


@pytest.mark.parametrize('name', broken.DEFECTS)
def test_defect(tmp_path, clean, name):
  check(broken.write(tmp_path / 'ct', name), broken.DEFECTS[name].verdict, clean)


@pytest.mark.parametrize(
  'name',
  [
    'tilted_forward',
    'tilted_back',
    'oblique',
    'sagittal',
    'prone',
    'jittered_positions',
    'two_zones_of_spacing',
    'order_shuffled',
  ],
)
def test_a_mask_lies_right_for_who_knows_only_nifti(tmp_path, clean, name):
  """nibabel's affine alone says where the voxels of a written mask are."""
  scan = read(broken.write(tmp_path / 'ct', name))
  for part, mask in masks_of(scan).items():
    path = tmp_path / 'mask.nii.gz'
    nifti.write_volume(path, mask, scan.grid, dtype=np.uint8)
    image = nibabel.load(path)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    points = world_of(np.asarray(image.dataobj) > 0, lps)
    one_voxel = max(np.linalg.norm(image.header.get_zooms()), diagonal_mm(clean.grid))
    assert farthest_mm(points, part, clean) <= one_voxel, part


# Pairs


@pytest.mark.parametrize('pair', sample_of_pairs(), ids='+'.join)
def test_pair_of_defects(tmp_path, clean, pair):
  check(broken.write(tmp_path / 'ct', *pair), broken.verdict_of_pair(*pair), clean)


@pytest.mark.slow
@pytest.mark.parametrize('name', broken.DEFECTS)
def test_pairs(tmp_path, clean, name):
  """Of each defect with those that come later in the table."""
  wrong = []
  mine = [pair for k, pair in enumerate(pairs()) if k % EVERY == 0 and pair[0] == name]
  for first, second in mine:
    path = broken.write(tmp_path / second, first, second)
    try:
      check(path, broken.verdict_of_pair(first, second), clean)
    except (Exception, pytest.fail.Exception) as error:
      wrong.append(f'{second}: {type(error).__name__}: {error}'.splitlines()[0])
    shutil.rmtree(tmp_path / second)
  assert not wrong, '\n'.join(wrong)
