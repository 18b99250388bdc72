"""Lungs of known shape, scans without lungs, and an expert's contours."""

import pathlib

import nibabel
import numpy as np
import pydicom
import pytest

from covid3way.base import MaskGridError, NoLungError, WarningKind
from covid3way.standard.lungs import find_lungs, take_lungs

DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
LEFT, RIGHT = 1, 2
SIZE_MM = (330, 240, 240)
GRID = (2.4, 2.4, 2.5)


def dice(a, b):
  return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def axes(spacing_mm=GRID, size_mm=SIZE_MM):
  """World coordinates (mm, centred) that broadcast to (x, y, z)."""
  counts = [round(n / s) for n, s in zip(size_mm, spacing_mm, strict=True)]
  lines = [(np.arange(n) - n / 2) * s for n, s in zip(counts, spacing_mm, strict=True)]
  return np.meshgrid(*lines, indexing='ij', sparse=True)


def ellipsoid(grid, centre, radii):
  return (
    sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1
  )


def tube(grid, start, end, radius):
  """A cylinder with round ends."""
  start, end = np.array(start, float), np.array(end, float)
  along = end - start
  t = sum((g - s) * a for g, s, a in zip(grid, start, along, strict=True))
  t = np.clip(t / (along @ along), 0, 1)
  rest = (g - s - t * a for g, s, a in zip(grid, start, along, strict=True))
  return sum(r**2 for r in rest) < radius**2


def chest(grid, shift_x=0.0, sides=(LEFT, RIGHT)):
  """(hu, truth): lungs of 1.1 litres each with a vessel, a body, a spine, in air."""
  hu = np.full(np.broadcast_shapes(*(g.shape for g in grid)), -1000, np.float32)
  truth = np.zeros(hu.shape, np.uint8)
  body = ((grid[0] - shift_x) / 150) ** 2 + (grid[1] / 100) ** 2 < 1
  hu[np.broadcast_to(body, hu.shape)] = 40
  spine = (grid[0] - shift_x) ** 2 + (grid[1] - 72) ** 2 < 15**2
  hu[np.broadcast_to(spine, hu.shape)] = 400
  for side in sides:
    x = shift_x + (65 if side == LEFT else -65)
    truth[ellipsoid(grid, (x, 0, 0), (45, 65, 90))] = side
    hu[truth == side] = -850
    hu[tube(grid, (shift_x + np.sign(x) * 25, 0, 0), (x, 20, -40), 4)] = 40
  return hu, truth


def assert_found(hu, truth, spacing_mm=GRID, at_least=0.98):
  labels, warnings = find_lungs(hu, spacing_mm)
  assert labels.shape == hu.shape
  assert labels.dtype == np.uint8
  for side in (LEFT, RIGHT):
    if (truth == side).any():
      assert dice(labels == side, truth == side) > at_least
    else:
      assert not (labels == side).any()
  assert warnings == ()
  return labels


@pytest.mark.parametrize(
  'spacing_mm', [GRID, (1.9, 1.9, 10.0), (0.8, 0.8, 5.0), (1.3, 1.1, 1.4)]
)
def test_two_lungs_on_any_grid(spacing_mm):
  hu, truth = chest(axes(spacing_mm))
  before = hu.copy()
  labels = assert_found(hu, truth, spacing_mm, at_least=0.97)
  assert dice(labels > 0, truth > 0) > 0.98
  np.testing.assert_array_equal(hu, before)
  x = np.arange(hu.shape[0])[:, None, None]
  assert np.average(x * np.ones_like(hu), weights=labels == LEFT) > hu.shape[0] / 2


def test_noise_does_not_matter():
  hu, truth = chest(axes())
  hu += np.random.default_rng(0).normal(0, 40, hu.shape).astype(np.float32)
  assert_found(np.maximum(hu, -1024), truth)


def test_vessels_are_lung_and_mediastinum_is_not():
  grid = axes()
  hu, truth = chest(grid)
  labels, _ = find_lungs(hu, GRID)
  vessel = (truth > 0) & (hu == 40) & ellipsoid(grid, (0, 0, 0), (200, 60, 80))
  assert vessel.sum() > 400
  assert (labels[vessel] > 0).mean() > 0.95
  assert not labels[np.broadcast_to(np.abs(grid[0]) < 14, hu.shape)].any()


def test_lungs_that_touch_in_front_are_split():
  grid = axes()
  hu, truth = chest(grid)
  hu[tube(grid, (-45, -45, 20), (45, -45, 20), 6)] = -850
  assert_found(hu, truth, at_least=0.97)


def test_lungs_that_cannot_be_split_are_cut_at_the_midline_with_a_warning():
  grid = axes()
  hu, _ = chest(grid)
  hu[ellipsoid(grid, (0, 0, 0), (100, 60, 80))] = -850
  labels, warnings = find_lungs(hu, GRID)
  assert [w.kind for w in warnings] == [WarningKind.LUNGS_NOT_SEPARATED]
  left, right = (np.argwhere(labels == side)[:, 0] for side in (LEFT, RIGHT))
  assert right.max() < left.min()
  assert abs(left.min() - hu.shape[0] / 2) < 8


def airways(grid):
  trachea = tube(grid, (0, 5, 40), (0, 5, 200), 9)
  right, left = (tube(grid, (0, 5, 40), (x, 5, -25), 6.5) for x in (-24, 24))
  return trachea | right | left


@pytest.mark.parametrize('top_mm', [200, 25], ids=['whole', 'from below the carina'])
def test_airways_that_open_into_both_lungs_are_not_lung(top_mm):
  grid = axes()
  keep = grid[2].ravel() < top_mm
  hu, truth = chest(grid)
  hu[airways(grid)] = -1000
  labels = assert_found(hu[:, :, keep], truth[:, :, keep], at_least=0.97)
  outside_lung = (airways(grid) & (np.abs(grid[0]) < 12))[:, :, keep]
  assert outside_lung.sum() > 50
  assert (labels[outside_lung] > 0).mean() < 0.1


@pytest.mark.parametrize(
  'centre', [(-105, 10, 0), (105, -10, 10), (-70, 62, 0)], ids=['right', 'left', 'back']
)
def test_dense_lesion_on_the_chest_wall_is_lung(centre):
  grid = axes()
  hu, truth = chest(grid)
  lesion = ellipsoid(grid, centre, (7.5, 7.5, 7.5)) & (truth > 0)
  hu[lesion] = 30
  labels = assert_found(hu, truth)
  assert lesion.sum() > 60
  assert (labels[lesion] > 0).mean() > 0.75


@pytest.mark.parametrize('wall_mm', [2, 8])
def test_stomach_under_the_diaphragm_is_not_lung(wall_mm):
  grid = axes()
  hu, truth = chest(grid)
  flat = ellipsoid(grid, (60, 0, -75), (35, 30, 35)) & (truth == 0)
  near = ellipsoid(grid, (65, 0, 0), (45 + wall_mm, 65 + wall_mm, 90 + wall_mm))
  stomach = flat & ~near
  assert stomach.sum() * np.prod(GRID) > 20_000
  hu[stomach] = -1000
  labels = assert_found(hu, truth, at_least=0.97)
  assert (labels[stomach] > 0).mean() < 0.03


def test_table_blanket_and_pocket_of_air_are_not_lung():
  grid = axes((2.0, 2.0, 2.5), (440, 330, 240))
  hu, truth = chest(grid)
  x, y = np.broadcast_arrays(grid[0], grid[1])[:2]
  for rows, value in (((y > 102) & (y < 142), 0), ((y > 106) & (y < 138), -880)):
    hu[np.broadcast_to(rows & (np.abs(x) < 200), hu.shape)] = value  # table with foam
  hu[np.broadcast_to((np.abs(y + 108) < 2) & (np.abs(x) < 190), hu.shape)] = -100
  for side in (-1, 1):  # arms that lie on the table enclose air
    hu[tube(grid, (side * 180, 70, -300), (side * 180, 70, 300), 32)] = 40
  assert_found(hu, truth)


def test_body_beyond_the_field_of_view():
  grid = axes((2.0, 2.0, 2.5), (244, 190, 160))
  assert_found(*chest(grid), at_least=0.97)


@pytest.mark.parametrize(
  'radius_mm', [118, 95], ids=['cuts the body', 'cuts the lungs']
)
def test_padding_outside_a_circle(radius_mm):
  grid = axes()
  hu, truth = chest(grid)
  outside = np.broadcast_to(grid[0] ** 2 + grid[1] ** 2 > radius_mm**2, hu.shape)
  hu[outside], truth[outside] = -1024, 0
  assert_found(hu, truth, at_least=0.97)


@pytest.mark.parametrize(
  ('side', 'shift_x'), [(LEFT, 70), (RIGHT, -70), (LEFT, -140), (RIGHT, 140)]
)
def test_a_single_lung_is_named_after_its_side_of_the_spine(side, shift_x):
  assert_found(*chest(axes(), shift_x, sides=(side,)), at_least=0.97)


def water(grid):
  hu = chest(grid, sides=())[0]
  hu[hu > -500] = 0
  return hu


def abdomen(grid):
  hu = chest(grid, sides=())[0]
  for x in (-90, -30, 40, 90):
    hu[ellipsoid(grid, (x, -30, x / 2), (28, 22, 60))] = -1000
  return hu


def air_as_lung(grid):
  return np.where(ellipsoid(grid, (0, 0, 0), (20, 20, 20)), -850, water(grid))


@pytest.mark.parametrize(
  'hu',
  [
    water(axes()),
    abdomen(axes()),
    air_as_lung(axes()),
    np.full((40, 40, 40), -1000, np.float32),
    np.full((40, 40, 40), 40, np.float32),
    np.full((3, 3, 1), -850, np.float32),
    np.zeros((0, 4, 4), np.float32),
    np.zeros((4, 4), np.float32),
  ],
  ids=['water', 'abdomen', 'small', 'air', 'tissue', 'tiny', 'empty', '2-D'],
)
def test_no_lung_is_an_error_that_says_what_is_allowed(hu):
  with pytest.raises(NoLungError) as error:
    find_lungs(hu, GRID, scan_id='s7')
  assert error.value.subject == 's7'
  assert 'ml' in str(error.value) or 'shape' in str(error.value)


def read_dicom(folder):
  slices = [pydicom.dcmread(path) for path in sorted(folder.glob('*.dcm'))]
  slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
  first, last = slices[0], slices[-1]
  assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
  hu = [
    s.pixel_array.T * np.float32(s.RescaleSlope) + np.float32(s.RescaleIntercept)
    for s in slices
  ]
  extent = last.ImagePositionPatient[2] - first.ImagePositionPatient[2]
  rows, columns = first.PixelSpacing
  spacing_mm = (float(columns), float(rows), float(extent) / (len(slices) - 1))
  return np.maximum(np.stack(hu, -1), -1024).astype(np.float32), spacing_mm


def test_agrees_with_the_contours_of_an_expert():
  folder = DATA / 'lung1-003'
  if not folder.is_dir():
    pytest.skip(f'no real CT at hand: {folder.name} is not beside the repository')
  hu, spacing_mm = read_dicom(folder / 'ct')
  reference = nibabel.as_closest_canonical(nibabel.load(folder / 'lungs.nii.gz'))
  expert = np.asarray(reference.dataobj)[::-1, ::-1]  # RAS -> LPS
  labels, warnings = find_lungs(hu, spacing_mm)
  assert warnings == ()
  assert dice(labels > 0, expert > 0) > 0.96
  assert dice(labels == LEFT, expert == LEFT) > 0.95
  assert dice(labels == RIGHT, expert == RIGHT) > 0.96


def test_a_given_mask_keeps_its_sides():
  mask = np.zeros((20, 10, 10), np.uint8)
  # The left lung is the smaller one, and reaches beyond the middle.
  mask[9:12, 2:8, 2:8], mask[1:9, 2:8, 2:8] = LEFT, RIGHT
  labels, warnings = take_lungs(mask, (5.0, 5.0, 5.0))
  np.testing.assert_array_equal(labels, mask)
  assert warnings == ()


@pytest.mark.parametrize('bridge', [False, True])
def test_a_given_mask_without_sides_is_told_apart(bridge):
  grid = axes()
  left = ellipsoid(grid, (75, 0, 0), (55, 80, 100))
  right = ellipsoid(grid, (-75, 0, 0), (60, 80, 100))
  given = left | right
  if bridge:
    given |= tube(grid, (-75, -30, 20), (75, -30, 20), 8)
  labels, warnings = take_lungs(given.astype(np.uint8), GRID)
  np.testing.assert_array_equal(labels > 0, given)
  assert dice(labels == LEFT, left) > 0.98 and dice(labels == RIGHT, right) > 0.98
  assert warnings == ()


def test_a_given_mask_that_is_empty_is_an_error():
  with pytest.raises(NoLungError, match=r'^p7: .*empty'):
    take_lungs(np.zeros((4, 4, 4), np.uint8), (1.0, 1.0, 1.0), scan_id='p7')


def test_a_given_mask_with_its_sides_exchanged_is_an_error():
  mask = np.zeros((10, 6, 6), np.uint8)
  mask[1:4], mask[6:9] = LEFT, RIGHT
  with pytest.raises(MaskGridError, match=r'^p7: .*label 1, left, lies to the right'):
    take_lungs(mask, (5.0, 5.0, 5.0), scan_id='p7')
