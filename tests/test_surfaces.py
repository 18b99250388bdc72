"""Surface metrics: geometry by hand, then the package surface-distance."""

import itertools

import numpy as np
import pytest
import surface_distance
from scipy import ndimage
from surface_distance import lookup_tables

from covid3way.base import MaskGridError
from covid3way.evaluation import surfaces

# The package calls scipy by names that are going.
pytestmark = pytest.mark.filterwarnings('ignore:Please (use|import):DeprecationWarning')

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (2.5, 0.4, 1.3)]
SHAPE = (13, 11, 9)


def voxels(*points, shape=SHAPE):
  result = np.zeros(shape, bool)
  for point in points:
    result[point] = True
  return result


def box(*ranges):
  return voxels(tuple(slice(*each) for each in ranges))


def lesions(seed):
  rng = np.random.default_rng(seed)
  return ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.2) > 0.12


PAIRS = {
  'scattered': (np.random.default_rng(1).random(SHAPE) < 0.5, lesions(2)),
  'sparse': tuple(np.random.default_rng(3).random((2, *SHAPE)) < 0.02),
  'lesions': (lesions(4), lesions(5)),
  'equal': (lesions(6), lesions(6)),
  'complement': (lesions(7), ~lesions(7)),
  'boxes': (box((2, 7), (3, 8), (1, 5)), box((4, 9), (3, 9), (3, 7))),
  'inside': (box((1, 12), (1, 10), (1, 8)), voxels((6, 5, 4))),
  'full': (np.ones(SHAPE, bool), voxels((0, 0, 0), (12, 10, 8))),
  'opposite corners': (voxels((0, 0, 0)), voxels((12, 10, 8))),
  'sheet and line': (box((3, 4), (0, 11), (0, 9)), box((0, 13), (5, 6), (4, 5))),
}


def test_two_voxels_by_hand():
  one, other = voxels((4, 4, 4)), voxels((6, 4, 4))
  measured = surfaces.between(one, other, (1.5, 1, 1))
  # Of the eight elements around a voxel, four lie one step off, four lie two.
  for distances, areas in zip(measured.distances_mm, measured.areas_mm2, strict=True):
    assert distances.tolist() == [1.5] * 4 + [3.0] * 4
    # An eighth of an octahedron with half axes of 0.75, 0.5 and 0.5 mm.
    eighth = 0.5 * np.linalg.norm([0.5 * 0.5, 0.75 * 0.5, 0.75 * 0.5])
    assert areas == pytest.approx([eighth] * 8, rel=1e-12)
  assert [measured.dice(mm) for mm in (1.49, 1.5, 2.99, 3)] == [0, 0.5, 0.5, 1]
  assert measured.hausdorff_95() == 3


def test_flat_surface_has_the_area_of_its_faces():
  areas = surfaces.element_areas((0.7, 2.0, 5.0))
  slab = np.zeros((2, 2, 2), bool)
  for axis, face_mm2 in enumerate((10.0, 3.5, 1.4)):
    half = slab.copy()
    half[tuple(0 if a == axis else slice(None) for a in range(3))] = True
    (code,) = surfaces.neighbourhoods(half)[1:2, 1, 1]
    assert areas[code] == pytest.approx(face_mm2, rel=1e-12)


@pytest.mark.parametrize('spacing_mm', SPACINGS)
def test_element_areas_are_the_packages(spacing_mm):
  theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
  ours = surfaces.element_areas(spacing_mm)
  np.testing.assert_allclose(ours, theirs, rtol=1e-12)
  assert ours[0] == ours[255] == 0
  np.testing.assert_allclose(ours, ours[::-1], rtol=1e-12)  # In and out swapped.


def test_neighbourhoods_by_hand():
  codes = surfaces.neighbourhoods(np.ones((1, 1, 1), bool))
  # The voxel lies after the first corner along all axes, before the last.
  assert codes.ravel().tolist() == [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize('spacing_mm', SPACINGS)
@pytest.mark.parametrize('name', PAIRS)
def test_equals_surface_distance(name, spacing_mm):
  reference, predicted = PAIRS[name]
  theirs = surface_distance.compute_surface_distances(reference, predicted, spacing_mm)
  for mm in (0.0, 1.0, 2.5, 3.0):
    expected = surface_distance.compute_surface_dice_at_tolerance(theirs, mm)
    found = surfaces.surface_dice(reference, predicted, spacing_mm, mm)
    assert found == pytest.approx(expected, abs=1e-6)
  expected = surface_distance.compute_robust_hausdorff(theirs, 95)
  found = surfaces.hausdorff_95(reference, predicted, spacing_mm)
  assert found == pytest.approx(expected, abs=1e-6)
  ours = surfaces.between(reference, predicted, spacing_mm)
  for side, name in enumerate(('gt', 'pred')):
    distances = theirs[f'distances_{"gt_to_pred" if name == "gt" else "pred_to_gt"}']
    np.testing.assert_allclose(ours.distances_mm[side], distances, atol=1e-6)
    area = theirs[f'surfel_areas_{name}'].sum()
    assert ours.areas_mm2[side].sum() == pytest.approx(area, rel=1e-9)


def test_turned_mirrored_and_moved_masks_measure_the_same():
  reference, predicted = PAIRS['lesions']
  spacing_mm = (2.5, 0.4, 1.3)
  expected = surfaces.between(reference, predicted, spacing_mm)
  for turn in itertools.permutations(range(3)):
    a, b = (
      np.pad(mask.transpose(turn)[::-1], ((3, 0), (0, 5), (1, 1)))
      for mask in (reference, predicted)
    )
    turned = surfaces.between(a, b, tuple(spacing_mm[axis] for axis in turn))
    assert turned.hausdorff_95() == pytest.approx(expected.hausdorff_95(), rel=1e-12)
    assert turned.dice(1) == pytest.approx(expected.dice(1), rel=1e-12)


def test_crop():
  reference, predicted = voxels((3, 4, 5)), voxels((6, 4, 2))
  a, b, where = surfaces.crop(reference.astype(int) * 2, predicted)
  assert where == (slice(3, 7), slice(4, 5), slice(2, 6))
  assert a.dtype == b.dtype == bool
  assert np.argwhere(a).tolist() == [[0, 0, 3]]
  assert np.argwhere(b).tolist() == [[3, 0, 0]]
  assert surfaces.crop(voxels(), voxels())[0].size == 0


def test_masks_on_two_grids():
  with pytest.raises(MaskGridError, match=r'\(13, 11, 1\).*\(13, 11, 9\)'):
    surfaces.hausdorff_95(voxels(), voxels(shape=(13, 11, 1)), (1, 1, 1))
