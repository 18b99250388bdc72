"""Oblique planes: where they lie, what is read there, the way back, and the fusion."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from covid3way.scans import store
from covid3way.segmentation import oblique_map
from covid3way.training.oblique import ObliquePlanes, find_planes
from covid3way.training.planes import SIDE_MM, PlaneGrid, unit_vectors
from covid3way.training.slices import Masks

SHAPE, SPACING_MM = (20, 24, 28), (12.0, 10.0, 16.0)
GRID = PlaneGrid(SHAPE, SPACING_MM, views=4, stride=8)
WHOLE = tuple(slice(0, n) for n in SHAPE)
MIDDLE = (np.array(SHAPE)[:, None] - 1) / 2
EVERY_VOXEL = np.indices(SHAPE).reshape(3, -1)


def apart_degrees(vectors):
  """Angle of the two nearest lines."""
  cosines = np.abs(vectors @ vectors.T) - np.eye(len(vectors))
  return np.degrees(np.arccos(cosines.max()))


@pytest.mark.parametrize('n', [1, 3, 6, 9])
def test_directions_are_of_unit_length_and_always_the_same(n):
  vectors = unit_vectors(n)
  assert vectors.shape == (n, 3)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-12)
  unit_vectors.cache_clear()
  np.testing.assert_array_equal(unit_vectors(n), vectors)


# The best there is: 90, and 63.4 of the diagonals of an icosahedron.
@pytest.mark.parametrize(('n', 'degrees'), [(3, 80), (6, 43)])
def test_directions_are_far_apart(n, degrees):
  assert apart_degrees(unit_vectors(n)) > degrees


def test_frames_are_right_handed_and_end_with_the_normal():
  for frame, normal in zip(GRID.frames, unit_vectors(4), strict=True):
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(frame), 1)
    np.testing.assert_array_equal(frame[2], normal)


def test_planes_fill_a_cube_of_the_coarsest_spacing_in_multiples_of_the_stride():
  assert (GRID.pixel_mm, GRID.side) == (16.0, 24)
  fine = PlaneGrid((512,) * 3, (334 / 512, 334 / 512, 1.0), views=6, stride=16)
  assert (fine.pixel_mm, fine.side) == (1.0, 384)
  # Nine strides of 16 pixels of 512 / 192 mm, and no tenth for an error of rounding.
  coarse = PlaneGrid((128, 128, 192), (334 / 128, 334 / 128, 512 / 192), 6, 16)
  assert coarse.side == 144
  coarser = PlaneGrid((64, 64, 96), (334 / 64, 334 / 64, 512 / 96), 6, 16)
  assert coarser.side == 80 and 64 * coarser.pixel_mm < SIDE_MM


@pytest.mark.parametrize('view', range(4))
def test_pixels_are_isotropic_and_planes_a_pixel_apart(view):
  at_mm = GRID.voxels(view, np.arange(24)) * np.array(SPACING_MM)[:, None, None, None]
  normal, steps = unit_vectors(4)[view], []
  for axis in (1, 2, 3):
    step = np.diff(at_mm, axis=axis)
    np.testing.assert_allclose(np.linalg.norm(step, axis=0), 16, atol=1e-3)
    steps.append(step.reshape(3, -1)[:, 0])
  np.testing.assert_allclose(steps[2] / 16, normal, atol=1e-5)
  np.testing.assert_allclose(np.dot(steps[0], steps[1]), 0, atol=1e-2)


@pytest.mark.parametrize('view', range(4))
def test_the_way_to_voxels_and_back(view):
  numbers = np.array([3, 11, 20])
  at = GRID.voxels(view, numbers)
  assert at.shape == (3, 24, 24, 3) and at.dtype == np.float32
  wanted = np.stack(np.meshgrid(range(24), range(24), numbers, indexing='ij'))
  back = GRID.pixels(view, at.reshape(3, -1))
  np.testing.assert_allclose(back, wanted.reshape(3, -1), atol=1e-4)


@pytest.mark.parametrize('view', range(4))
def test_the_middle_plane_goes_through_the_middle_of_the_volume(view):
  odd = PlaneGrid(SHAPE, (12.0, 10.0, 17.0), views=4, stride=1)
  assert odd.side == 23
  at = odd.voxels(view, np.array([11]))[:, 11, 11]
  np.testing.assert_allclose(at, MIDDLE, atol=1e-5)
  np.testing.assert_allclose(GRID.pixels(view, MIDDLE), 11.5)  # Between two of 24.


@pytest.fixture(scope='module')
def scan(tmp_path_factory):
  """A scan whose signal is linear in x, y and z, with a random mask."""
  rng = np.random.default_rng(0)
  lungs = np.zeros(SHAPE, np.uint8)
  lungs[3:9, 5:20, 6:22], lungs[12:17, 5:20, 6:22] = 2, 1
  infection = (lungs > 0) & (rng.random(SHAPE) > 0.99)
  volumes = {'signal': linear(np.indices(SHAPE)), 'lungs': lungs}
  path = store.group_path(tmp_path_factory.mktemp('store'), 's')
  store.write_group(path, volumes | {'infection': infection}, {})
  return store.open_group(path)


def linear(at):
  """In steps that float16 holds exactly."""
  return at[0] / 8 - at[1] / 16 + at[2] / 32


def masks(region='lungs', window=WHOLE):
  return Masks('infection', region, window)


@pytest.mark.parametrize('region', ['lungs', 'all'])
@pytest.mark.parametrize('window', [WHOLE, (slice(8, 20), slice(0, 16), slice(4, 20))])
def test_planes_are_those_that_brute_force_finds(scan, region, window):
  found = find_planes(scan, masks(region, window), GRID)
  inside = np.zeros(SHAPE, bool)
  inside[window] = True
  target, lungs = (
    (scan.volumes[name].read().result() > 0) & inside for name in ('infection', 'lungs')
  )
  foreground, background = [], []
  for view, normal in enumerate(unit_vectors(4)):
    for plane in range(24):
      # Voxels nearer to this plane than to its neighbours.
      from_middle_mm = (EVERY_VOXEL - MIDDLE) * np.array(SPACING_MM)[:, None]
      distance_mm = normal @ from_middle_mm - 16 * (plane - 11.5)
      near = (np.abs(distance_mm) < 8).reshape(SHAPE)
      if (near & target).any():
        foreground.append(24 * view + plane)
      elif (near & (lungs if region == 'lungs' else inside)).any():
        background.append(24 * view + plane)
  assert found.foreground.tolist() == foreground
  assert found.background.tolist() == background
  assert 0 < len(foreground) < len(foreground + background) < 4 * 24


@pytest.mark.parametrize('region', ['lungs', 'all'])
def test_what_is_read_is_the_signal_at_the_planes_points(scan, region):
  planes = ObliquePlanes([scan], [None], masks=masks(region), grid=GRID)
  chosen = [(view, plane) for view in range(4) for plane in (8, 12)]
  got = planes.read(np.array([(0, 24 * view + plane) for view, plane in chosen]))
  volumes = {name: each.read().result() for name, each in scan.volumes.items()}
  for row, (view, plane) in enumerate(chosen):
    at = GRID.voxels(view, np.array([plane]))[..., 0]
    inside = ((at >= 0) & (at <= np.reshape(SHAPE, (3, 1, 1)) - 1)).all(axis=0)
    assert 0.1 < inside.mean() < 0.9
    expected, signal = linear(at), got['stacks'][row, ..., 0]
    np.testing.assert_allclose(signal[inside], expected[inside], atol=2e-3)
    nearest = tuple(np.rint(at[:, inside]).astype(int))
    wanted = volumes['infection'][nearest] > 0
    np.testing.assert_array_equal(got['labels'][row][inside], wanted)
    counted = volumes['lungs'][nearest] > 0 if region == 'lungs' else True
    np.testing.assert_array_equal(got['weights'][row][inside], counted)
    assert not got['weights'][row][~inside].any()
  assert got['labels'].any()
  forms = {name: (each.shape, each.dtype.name) for name, each in got.items()}
  assert forms == {
    'stacks': ((8, 24, 24, 1), 'float16'),
    'labels': ((8, 24, 24), 'bool'),
    'weights': ((8, 24, 24), 'bool'),
    'pixels_mm': ((8, 2), 'float32'),
  }
  assert (got['pixels_mm'] == 16).all()


def within_reach(view):
  """Voxels that lie among the pixels of a view's planes."""
  at = GRID.pixels(view, EVERY_VOXEL)
  return ((at >= 0) & (at <= GRID.side - 1)).all(axis=0).reshape(SHAPE)


def seen_of(signal, region, predict=lambda planes: planes, batch_size=5):
  shapes = set()

  def counted(planes):
    shapes.add((planes.shape, planes.dtype.name))
    return predict(planes)

  seen = oblique_map.seen_from(counted, GRID, signal, region, batch_size=batch_size)
  assert shapes == {((batch_size, 24, 24), 'float32')}
  assert seen.shape == (4, np.count_nonzero(region)) and seen.dtype == np.float32
  return seen


def test_there_and_back_a_linear_signal_is_the_same_at_every_voxel():
  """From planes of which all pixels around the voxel lie within the volume."""
  signal, region = linear(np.indices(SHAPE)), np.zeros(SHAPE, np.uint8)
  region[3:-3, 3:-3, 6:-6] = 1
  assert all(within_reach(view)[region > 0].all() for view in range(4))
  expected = np.broadcast_to(signal[region > 0], (4, region.sum()))
  np.testing.assert_allclose(seen_of(signal, region), expected, atol=1e-5)


@pytest.mark.parametrize('batch_size', [1, 24])
def test_what_planes_do_not_reach_is_0_and_all_else_is_seen(batch_size):
  signal, region = np.ones(SHAPE, np.float16), np.ones(SHAPE, bool)
  seen = seen_of(signal, region, batch_size=batch_size).reshape(4, *SHAPE)
  for view in range(4):
    reached = within_reach(view)
    assert 0.7 < reached.mean() < 1
    np.testing.assert_allclose(seen[view][reached], 1, atol=1e-5)
    assert not seen[view][~reached].any()


def test_only_planes_around_the_region_are_computed():
  region, planes = np.zeros(SHAPE, bool), []
  region[10, 12, 14] = True

  def predict(stack):
    planes.extend(stack)
    return np.ones(stack.shape)

  np.testing.assert_allclose(
    seen_of(np.ones(SHAPE), region, predict, batch_size=2), 1, atol=1e-5
  )
  assert len(planes) == 4 * 2


def test_no_region_is_seen_by_nobody():
  def never(planes):
    raise AssertionError

  nothing = np.zeros(SHAPE)
  seen = oblique_map.seen_from(never, GRID, nothing, nothing, batch_size=2)
  assert seen.shape == (4, 0)


def test_fused_known_answers():
  seen = np.array([[0.0, 1.0, 0.5], [0.0, 1.0, 0.0]], np.float32)
  fusion = {'weights': np.array([2.0, 1.0], np.float32), 'bias': np.float32(-1)}
  expected = 1 / (1 + np.exp([1.0, -2.0, 0.0]))
  got = oblique_map.fused(seen, fusion)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert got.dtype == np.float32


def test_scores_beyond_all_measure_are_0_and_1():
  fusion = {'weights': np.array([400.0], np.float32), 'bias': np.float32(-200)}
  got = oblique_map.fused(np.array([[0.0, 0.5, 1.0]], np.float32), fusion)
  np.testing.assert_allclose(got, [0, 0.5, 1], atol=1e-12)


@pytest.fixture(scope='module')
def views():
  """What three views see of voxels, the second better than the third; and the truth."""
  rng = np.random.default_rng(0)
  infected = rng.random(4000) > 0.7
  noise = np.stack([rng.random(4000) for _ in range(3)])
  told = np.array([0.0, 0.6, 0.3])[:, None]
  seen = (told * infected + (1 - told) * noise).astype(np.float32)
  return seen, infected, rng.uniform(0, 2, 4000)


def test_the_fusion_trusts_the_views_that_know(views):
  weights = oblique_map.fit_fusion(*views)['weights']
  assert abs(weights[0]) < 0.5 < 5 * 0.5 < weights[2] < weights[1]


def test_the_fusion_is_a_logistic_regression_of_weighted_voxels(views):
  seen, infected, weights = views
  reference = LogisticRegression(max_iter=1000).fit(seen.T, infected, weights)
  fusion = oblique_map.fit_fusion(seen, infected, weights)
  expected = reference.predict_proba(seen.T)[:, 1]
  np.testing.assert_allclose(oblique_map.fused(seen, fusion), expected, atol=1e-5)
  evenly = oblique_map.fit_fusion(seen, infected, np.ones(4000))
  assert np.abs(oblique_map.fused(seen, evenly) - expected).max() > 1e-4


@pytest.mark.parametrize('all_alike', [True, False])
def test_where_all_voxels_are_alike_all_views_count_the_same(all_alike):
  seen = np.array([[0.1, 0.9, 0.2, 0.0], [0.9, 0.1, 0.9, 0.4]], np.float32)
  fusion = oblique_map.fit_fusion(seen, np.full(4, all_alike), np.ones(4))
  got = oblique_map.fused(seen, fusion)
  # Means of 0.5, 0.5, 0.55 and 0.2.
  np.testing.assert_allclose(got[:2], 0.5, rtol=1e-6)
  assert got[3] < 0.5 < got[2]
