"""Sub-volume prediction: identity, constants, seams, coverage, what is left out."""

import numpy as np
import pytest

from covid3way.segmentation.sub_volumes import sub_volume_map

SHAPE = (21, 16, 9)
PATCH = (8, 6, 4)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def same(batch):
  return np.clip(batch, 0, 1)


def corner():
  """A region far from most sub-volumes."""
  region = np.zeros(SHAPE, np.uint8)
  region[1:5, 2:6, 3:6] = 2
  return region


@pytest.mark.parametrize('patch', [PATCH, (30, 6, 12), SHAPE, (1, 1, 1)])
@pytest.mark.parametrize('overlap', [0.0, 0.5, 0.7])
def test_what_is_predicted_as_it_is_comes_back_inside_and_0_outside(
  rng, patch, overlap
):
  signal, region = rng.random(SHAPE).astype(np.float16), rng.random(SHAPE) > 0.5
  got = sub_volume_map(same, signal, region, patch=patch, overlap=overlap, batch_size=5)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, np.where(region, signal, 0), atol=1e-6)


def test_a_constant_stays_one_everywhere(rng):
  def predict(batch):
    return np.full(batch.shape, 0.25, np.float32)

  signal, region = rng.random(SHAPE), np.ones(SHAPE, bool)
  got = sub_volume_map(predict, signal, region, patch=PATCH, batch_size=3)
  np.testing.assert_allclose(got, 0.25, atol=1e-6)


def test_predictions_that_disagree_meet_without_a_seam():
  """Each sub-volume has its own answer: along x these blend in small steps."""

  def predict(batch):
    return np.broadcast_to(batch[:, :1] >= 12, batch.shape)  # Where it starts.

  signal = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 4, 4))
  region, patch = np.ones(signal.shape, bool), (16, 4, 4)
  got = sub_volume_map(predict, signal, region, patch=patch, batch_size=1)[:, 0, 0]
  # Sub-volumes start at 0, 8, 16 and 24: from the 16th voxel to the 24th they blend.
  np.testing.assert_allclose(got[:16], 0, atol=1e-6)
  np.testing.assert_allclose(got[24:], 1, atol=1e-6)
  blend = np.sin(np.pi * (np.arange(8) + 0.5) / 16) ** 2
  np.testing.assert_allclose(got[16:24], blend, atol=1e-6)
  seam = sub_volume_map(predict, signal, region, patch=patch, overlap=0.0, batch_size=1)
  assert np.abs(np.diff(seam[:, 0, 0])).max() > 2 * np.abs(np.diff(got)).max()


def test_only_sub_volumes_that_touch_the_region_are_computed_in_full_batches():
  places = []

  def predict(batch):
    assert batch.shape == (4, *PATCH) and batch.dtype == np.float32
    places.extend(batch[:, 0, 0, 0])
    return np.zeros(batch.shape)

  signal = np.arange(np.prod(SHAPE)).reshape(SHAPE)
  sub_volume_map(predict, signal, corner(), patch=PATCH, batch_size=4)
  # Starts along x: 0, 3, 6, 10, 13; along y: 0, 2, 5, 8, 10 (from 2.5, 7.5); z: 0,
  # 2, 3, 5. The region ends at 5, 6, 6 and begins at 1, 2, 3.
  wanted = {signal[x, y, z] for x in (0, 3) for y in (0, 2, 5) for z in (0, 2, 3, 5)}
  assert set(places) == wanted
  assert len(places) == len(wanted)
  assert sub_volume_map(
    predict, signal, np.zeros(SHAPE), patch=PATCH, batch_size=4
  ).shape == SHAPE and len(places) == len(wanted)


def test_a_smaller_volume_is_filled_up_with_its_far_sides():
  seen = []

  def predict(batch):
    seen.append(batch[0])
    return batch

  signal = np.arange(6.0).reshape(1, 2, 3)
  got = sub_volume_map(predict, signal, signal >= 0, patch=(2, 4, 3), batch_size=1)
  np.testing.assert_array_equal(
    seen, [np.pad(signal, ((0, 1), (0, 2), (0, 0)), mode='edge')]
  )
  np.testing.assert_allclose(got, signal, rtol=1e-6)


@pytest.mark.parametrize(
  'options',
  [{'patch': (4, 4)}, {'region': np.ones((3, 3, 3))}, {'overlap': 1.0}],
)
def test_what_does_not_fit_is_refused(options):
  options = {'region': np.ones(SHAPE), 'patch': PATCH} | options
  with pytest.raises(ValueError, match=r'patch|overlap'):
    sub_volume_map(same, np.zeros(SHAPE), batch_size=1, **options)
