"""Sub-volumes: they cover the window, are told apart, and read as they were stored."""

import dataclasses
import itertools

import numpy as np
import pytest

from covid3way.base import DamagedFileError
from covid3way.scans import store
from covid3way.training import pipeline
from covid3way.training.slices import Masks
from covid3way.training.volumes import SubVolumes, corners, find_sub_volumes

SHAPE, PATCH = (16, 12, 20), (4, 6, 8)
WINDOW = (slice(2, 13), slice(0, 12), slice(1, 20))


def along(window, side, n):
  """Where sub-volumes begin along one axis."""
  found = corners((slice(*window),) * 3, (side,) * 3, (n,) * 3)
  assert all(np.array_equal(each, found[0]) for each in found)
  return found[0].tolist()


@pytest.mark.parametrize(
  ('window', 'side', 'n', 'wanted'),
  [
    ((2, 14), 4, 16, [2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ((0, 24), 8, 24, [0, 2, 4, 6, 8, 10, 12, 14, 16]),
    ((0, 16), 16, 16, [0]),
    ((3, 11), 8, 16, [3]),
    # Narrower than a sub-volume: around the window's middle, within the volume.
    ((6, 10), 8, 16, [4]),
    ((0, 3), 8, 16, [0]),
    ((14, 16), 8, 16, [8]),
    ((5, 9), 16, 16, [0]),
  ],
)
def test_corners_known_answers(window, side, n, wanted):
  assert along(window, side, n) == wanted


@pytest.mark.parametrize('seed', range(20))
def test_corners_go_from_end_to_end_in_steps_of_a_quarter_at_most(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(8, 600))
  start, stop = np.sort(rng.choice(n + 1, 2, replace=False)).tolist()
  side = int(rng.integers(1, stop - start + 1))
  found = along((start, stop), side, n)
  assert (found[0], found[-1] + side) == (start, stop)
  steps = np.diff(found)
  # Whole voxels: of a side that is no multiple of 4 some steps are rounded up.
  assert steps.size == 0 or 0 < steps.min() <= steps.max() <= -(-side // 4)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  """Two scans whose signal is a code of scan and place; lesions are small and few."""
  folder, rng = tmp_path_factory.mktemp('store'), np.random.default_rng(0)
  x, y, z = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing='ij')
  for number in range(2):
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[2:6, 2:9, 3:17], lungs[9:12, 2:9, 3:12] = 2, 1
    infection = (lungs > 0) & (rng.random(SHAPE) > 0.996)
    assert 0 < infection.sum() < 5
    signal = number + x / 64 + y / 1024 + z / 256
    volumes = {'signal': signal, 'lungs': lungs, 'infection': infection}
    store.write_group(store.group_path(folder, f's{number}'), volumes, {})
  return [store.open_group(path) for path in store.list_groups(folder)]


def sub_volumes(scans, region='lungs', window=WINDOW, patch=PATCH):
  masks = Masks('infection', region, window)
  found = [find_sub_volumes(scan, masks, patch) for scan in scans]
  return SubVolumes(scans, found, masks=masks, patch=patch, spacing_mm=(0.5, 1.0, 2.0))


def boxes(window=WINDOW, patch=PATCH):
  """All sub-volumes, in the order of their numbers."""
  begin = itertools.product(*corners(window, patch, SHAPE))
  return [
    tuple(slice(b, b + p) for b, p in zip(at, patch, strict=True)) for at in begin
  ]


def stored(scan):
  return {name: volume.read().result() for name, volume in scan.volumes.items()}


@pytest.mark.parametrize('region', ['lungs', 'all'])
@pytest.mark.parametrize('window', [WINDOW, (slice(6, 9), slice(0, 12), slice(12, 20))])
def test_candidates_are_those_that_brute_force_finds(scans, region, window):
  for scan, found in zip(
    scans, sub_volumes(scans, region, window).candidates, strict=True
  ):
    known, foreground, background = stored(scan), [], []
    for number, box in enumerate(boxes(window)):
      if known['infection'][box].any():
        foreground.append(number)
      elif region == 'all' or known['lungs'][box].any():
        background.append(number)
    assert found.foreground.tolist() == foreground
    assert found.background.tolist() == background


@pytest.mark.parametrize('region', ['lungs', 'all'])
def test_what_is_read_is_exactly_what_was_stored(scans, region):
  known, all_boxes = sub_volumes(scans, region), boxes()
  chosen = np.array([[1, 0], [0, 17], [1, len(all_boxes) - 1]])
  got = known.read(chosen)
  for row, (number, index) in enumerate(chosen):
    volumes, box = stored(scans[number]), all_boxes[index]
    np.testing.assert_array_equal(got['stacks'][row, ..., 0], volumes['signal'][box])
    np.testing.assert_array_equal(got['labels'][row], volumes['infection'][box] == 1)
    counted = volumes['lungs'][box] > 0 if region == 'lungs' else np.ones(PATCH)
    np.testing.assert_array_equal(got['weights'][row], counted)
  forms = {name: (each.shape, each.dtype.name) for name, each in got.items()}
  assert forms == {
    'stacks': ((3, *PATCH, 1), 'float16'),
    'labels': ((3, *PATCH), 'bool'),
    'weights': ((3, *PATCH), 'bool'),
    'pixels_mm': ((3, 3), 'float32'),
  }
  assert got['pixels_mm'].tolist() == [[0.5, 1.0, 2.0]] * 3


def test_a_sub_volume_as_large_as_the_volume_is_all_of_it(scans):
  known = sub_volumes(scans, window=tuple(slice(0, n) for n in SHAPE), patch=SHAPE)
  assert [c.foreground.tolist() for c in known.candidates] == [[0], [0]]
  got = known.read(np.array([[0, 0]]))['stacks'][0, ..., 0]
  np.testing.assert_array_equal(got, stored(scans[0])['signal'])


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_a_sampler_draws_target_as_often_as_told(scans, share):
  how = pipeline.Sampling(
    batch_size=4,
    foreground_share=share,
    simulated_ratio=0.0,
    open_slabs=2,
    stacks_per_slab=2,
    seed=0,
  )
  known = sub_volumes(scans)
  sampler = pipeline.Sampler(known, how)
  rows = np.concatenate([sampler.draw(number, range(4))[0] for number in range(300)])
  foreground = [index in known.candidates[scan].foreground for scan, index in rows]
  assert np.mean(foreground) == pytest.approx(share, abs=0.08 * (0 < share < 1))
  assert rows[:, 0].mean() == pytest.approx(0.5, abs=0.1)
  # And they are what they are said to be.
  batch = sampler.batch(0, range(4))
  holds = batch['labels'].any(axis=(1, 2, 3))
  np.testing.assert_array_equal(holds, foreground[:4])
  assert (holds | batch['weights'].any(axis=(1, 2, 3))).all()


def test_a_scan_that_cannot_be_read_is_named(scans):
  lost = {k: v for k, v in scans[0].volumes.items() if k != 'lungs'}
  broken = dataclasses.replace(scans[0], volumes=lost)
  known = sub_volumes(scans)
  known.scans = [broken, scans[1]]
  with pytest.raises(DamagedFileError, match='s0: cannot be read from the store'):
    known.read(np.array([[0, 0]]))
