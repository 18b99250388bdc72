"""Distortion of slice stacks and volumes: known answers, then all together."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import ndimage

from covid3way.training import distort as distorting
from covid3way.training.distort import Distortion, distort

STILL = Distortion(False, 0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)
SHAPE = (24, 20)


def only(**options):
  return dataclasses.replace(STILL, elastic_nodes=3, **options)


def stack_of(rng):
  return rng.normal(size=(*SHAPE, 3)).astype(np.float32)


def apply(how, seed, stack, label, weight=None, pixel_mm=(1.0, 1.0)):
  weight = np.ones_like(label) if weight is None else weight
  done = jax.jit(distort, static_argnums=4)(
    jax.random.key(seed), stack, label, weight, how, np.array(pixel_mm)
  )
  return [np.asarray(each) for each in done]


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_nothing_to_distort_changes_nothing(rng):
  stack, label = stack_of(rng), rng.random(SHAPE) > 0.5
  got = apply(STILL, 0, stack, label)
  for one, other in zip(got, (stack, label, np.ones(SHAPE, bool)), strict=True):
    np.testing.assert_array_equal(one, other)


def test_all_eight_mirror_images_come_each_as_often(rng):
  stack, label = stack_of(rng), rng.random(SHAPE) > 0.5
  seen = {}
  for seed in range(160):
    got, mask, _ = apply(only(flips=True), seed, stack, label)
    for number in range(8):
      h, w, d = (1 - 2 * (number >> bit & 1) for bit in range(3))
      if np.array_equal(got, stack[::h, ::w, ::d]):
        np.testing.assert_array_equal(mask, label[::h, ::w])
        seen[number] = seen.get(number, 0) + 1
  assert sum(seen.values()) == 160
  # 20 each, give or take 4 times 4.2.
  assert len(seen) == 8 and max(seen.values()) < 37 and min(seen.values()) > 3


def disc(centre, radius, pixel_mm):
  y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
  return ((y - centre[0]) * pixel_mm[0]) ** 2 + (
    (x - centre[1]) * pixel_mm[1]
  ) ** 2 < radius**2


def centre_mm(mask, pixel_mm):
  """Of a mask, from the middle of the plane."""
  at = np.argwhere(mask).mean(axis=0) - (np.array(SHAPE) - 1) / 2
  return at * pixel_mm


@pytest.mark.parametrize('pixel_mm', [(1.0, 1.0), (1.0, 0.5)])
def test_a_rotation_keeps_distances_in_mm_and_areas(pixel_mm):
  label = disc((15, 12), 2.4, pixel_mm)
  start, angles = centre_mm(label, pixel_mm), []
  for seed in range(20):
    _, mask, _ = apply(
      only(rotation_degrees=30.0), seed, label[..., None] * 1.0, label, None, pixel_mm
    )
    end = centre_mm(mask, pixel_mm)
    assert np.hypot(*end) == pytest.approx(np.hypot(*start), abs=0.4)
    assert mask.sum() == pytest.approx(label.sum(), rel=0.2)
    turned = np.arctan2(end[1], end[0]) - np.arctan2(start[1], start[0])
    angles.append(np.rad2deg(turned))
  assert max(angles) > 15 and min(angles) < -15
  assert max(map(abs, angles)) < 33


def test_a_zoom_multiplies_areas():
  label = disc((11.5, 9.5), 5.0, (1, 1))
  areas = [
    apply(only(zoom=0.2), seed, label[..., None] * 1.0, label)[1].sum()
    for seed in range(30)
  ]
  ratios = np.array(areas) / label.sum()
  assert ratios.min() > 0.9 * np.exp(-0.4) and ratios.max() < 1.1 * np.exp(0.4)
  assert ratios.min() < 0.85 and ratios.max() > 1.2


def test_a_displacement_has_the_wanted_size_and_is_smooth():
  """Read off ramps, whose value is the place that it came from."""
  y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing='ij')
  inner, moved, steps = np.s_[6:-6, 6:-6], [], []
  for seed in range(40):
    got, _, _ = apply(
      only(elastic_mm=1.5), seed, np.stack([y, x], -1), y > 3, None, (1.0, 1.0)
    )
    shift = (got - np.stack([y, x], -1))[inner]
    moved.append(shift)
    steps.append(np.abs(np.diff(shift, axis=0)).max())
  # Between the nodes of a cubic the field is somewhat smaller than at them.
  assert 0.7 < np.std(moved) < 1.5
  assert max(steps) < 1.5


@pytest.mark.parametrize('how', [{'gain': 0.2}, {'shift': 0.2}, {'noise': 0.2}])
def test_signals_vary_as_much_as_they_are_told_to_and_labels_not_at_all(how):
  label, stack = np.zeros(SHAPE, bool), np.ones((*SHAPE, 3), np.float32)
  means, spreads = [], []
  for seed in range(100):
    got, mask, weight = apply(only(**how), seed, stack, label)
    assert not mask.any() and weight.all()
    means.append(got.mean())
    spreads.append(got.std())
  if 'noise' in how:
    assert np.mean(spreads) == pytest.approx(0.2, rel=0.02)
    assert np.std(means) < 0.02
  else:
    assert np.std(means) == pytest.approx(0.2, rel=0.25)
    assert max(spreads) < 1e-6


def test_nothing_is_counted_where_the_plane_was_left():
  how = only(rotation_degrees=45.0)
  stack, everywhere = np.ones((*SHAPE, 1), np.float32), np.ones(SHAPE, bool)
  for seed in range(10):
    got, mask, weight = apply(how, seed, stack, everywhere)
    np.testing.assert_array_equal(mask, weight)
    np.testing.assert_allclose(got, 1, atol=1e-6)  # The edge's value, not air.
  assert not weight.all() and weight[12, 10]


def test_values_come_from_where_scipy_takes_them(rng):
  """All distortions of place at once, against scipy at the same places."""
  how = only(rotation_degrees=20.0, zoom=0.1, elastic_mm=1.0)
  stack, label = stack_of(rng), rng.random(SHAPE) > 0.5
  ramps = [np.broadcast_to(r, SHAPE) for r in np.ogrid[: SHAPE[0], : SHAPE[1]]]
  # Ramps that go on beyond the plane: what they give is the place itself.
  place = distorting._coordinates(
    jax.random.split(jax.random.key(3), 3)[1], SHAPE, how, np.ones(2)
  )
  got, mask, weight = apply(how, 3, np.stack([*ramps, stack[..., 0]], -1), label)
  place = [np.asarray(p) for p in place]
  inside = [(p >= 0) & (p <= n - 1) for p, n in zip(place, SHAPE, strict=True)]
  inside = inside[0] & inside[1]
  for axis in range(2):
    np.testing.assert_allclose(got[inside, axis], place[axis][inside], atol=1e-4)
  linear = ndimage.map_coordinates(stack[..., 0], place, order=1, mode='nearest')
  np.testing.assert_allclose(got[..., 2], linear, atol=1e-5)
  nearest = ndimage.map_coordinates(label.astype(np.uint8), np.round(place), order=0)
  np.testing.assert_array_equal(mask, nearest > 0)
  np.testing.assert_array_equal(weight[inside], True)


SIDES = (12, 10, 8)
VOXEL_MM = (1.0, 0.8, 1.5)


def volume_of(rng):
  return rng.normal(size=(*SIDES, 1)).astype(np.float32)


def test_a_volume_has_its_eight_mirror_images_each_as_often(rng):
  volume, label = volume_of(rng), rng.random(SIDES) > 0.5
  seen = {}
  for seed in range(160):
    got, mask, _ = apply(only(flips=True), seed, volume, label, None, VOXEL_MM)
    for number in range(8):
      mirror = tuple(np.s_[:: 1 - 2 * (number >> bit & 1)] for bit in range(3))
      if np.array_equal(got, volume[mirror]):
        np.testing.assert_array_equal(mask, label[mirror])
        seen[number] = seen.get(number, 0) + 1
  assert sum(seen.values()) == 160
  assert len(seen) == 8 and max(seen.values()) < 37 and min(seen.values()) > 3


def places_of(how, seed):
  """Where the values of a volume come from, (3, x, y, z) mm from its middle."""
  draw = jax.jit(distorting._coordinates, static_argnums=(1, 2))
  place = draw(jax.random.key(seed), SIDES, how, np.array(VOXEL_MM))
  return from_middle(np.stack(place))


def from_middle(place):
  middle = (np.array(SIDES) - 1) / 2
  return (place - middle[:, None, None, None]) * np.reshape(VOXEL_MM, (3, 1, 1, 1))


def matrix_of(place):
  """The linear map that took each voxel to its place."""
  old = from_middle(np.indices(SIDES)).reshape(3, -1)
  found, residual, _, _ = np.linalg.lstsq(old.T, place.reshape(3, -1).T, rcond=None)
  assert residual.max() < 1e-5
  return found.T


def test_a_volume_turns_in_each_of_its_planes_as_often_and_as_far_as_told():
  angles = {axis: [] for axis in range(3)}
  for seed in range(90):
    matrix = matrix_of(places_of(only(rotation_degrees=30.0), seed))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(matrix) > 0
    moved = np.abs(matrix - np.eye(3)).sum(axis=1)
    axis = int(moved.argmin())
    assert moved[axis] < 1e-5
    i, j = (a for a in range(3) if a != axis)
    angles[axis].append(np.rad2deg(np.arctan2(matrix[j, i], matrix[i, i])))
  for each in angles.values():
    assert 14 < len(each) < 46  # 30, give or take 3.5 times 4.5.
    assert 20 < max(each) < 30.01 and -30.01 < min(each) < -20


def test_a_volume_grows_alike_along_all_sides():
  for seed in range(5):
    matrix = matrix_of(places_of(only(zoom=0.2), seed))
    np.testing.assert_allclose(matrix, matrix[0, 0] * np.eye(3), atol=1e-5)
    assert 1e-3 < abs(np.log(matrix[0, 0])) < 0.2


def test_values_of_a_volume_come_from_where_scipy_takes_them(rng):
  how = only(rotation_degrees=20.0, zoom=0.1, elastic_mm=1.0)
  volume, label = volume_of(rng), rng.random(SIDES) > 0.5
  place = distorting._coordinates(
    jax.random.split(jax.random.key(3), 3)[1], SIDES, how, np.array(VOXEL_MM)
  )
  got, mask, weight = apply(how, 3, volume, label, None, VOXEL_MM)
  linear = ndimage.map_coordinates(volume[..., 0], place, order=1, mode='nearest')
  np.testing.assert_allclose(got[..., 0], linear, atol=1e-5)
  place = np.round(place)
  nearest = ndimage.map_coordinates(label.astype(np.uint8), place, order=0)
  np.testing.assert_array_equal(mask, nearest > 0)
  sides = np.reshape(SIDES, (3, 1, 1, 1))
  np.testing.assert_array_equal(weight, ((place >= 0) & (place < sides)).all(axis=0))
  assert 0.4 < weight.mean() < 0.99
