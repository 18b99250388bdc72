"""Windows of slices: the same values as whole slices, for a part of the work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import hurried

from covid3way.networks import inference
from covid3way.networks.unet import UNet
from covid3way.segmentation import windows
from covid3way.segmentation.aggregators import plain
from covid3way.segmentation.maps import probability_map
from covid3way.segmentation.model import Model, ModelSpec
from covid3way.training.step import fresh_variables
from covid3way.training.views import NORMAL_AXIS


def lively(network, channels, seed=0):
  """Variables whose every part counts: statistics, biases, a head that decides."""
  shape = network.stride, network.stride, channels
  variables = fresh_variables(network, jax.random.key(seed), shape)
  rng = np.random.default_rng(seed)

  def drawn(path, leaf):
    name = jax.tree_util.keystr(path)
    value = np.asarray(leaf, np.float32)
    if 'var' in name or 'scale' in name:
      return rng.uniform(0.5, 2, value.shape).astype(np.float32)
    if 'mean' in name or 'bias' in name:
      return rng.normal(0, 0.2, value.shape).astype(np.float32)
    return value

  return jax.tree_util.tree_map_with_path(drawn, variables)


def whole(network, variables, stacks):
  logits = hurried(functools.partial(network.apply, train=False))(variables, stacks)
  return np.asarray(jax.nn.softmax(logits)[..., 1])


def known_variables(network):
  return lively(network, 2)


FEW, MANY = (3, 4, 6), (4, 32, 40)  # Channels; from 32 on convolutions are in tiles.
EVERYWHERE = (0, 0), (96, 64)
CUT = (4, 52), (60, 12)  # The margin is cut off on three sides.


@pytest.fixture(scope='module', params=[FEW, MANY], ids=['few', 'many'])
def known(request):
  """A network of three levels, what it finds in whole slices, and itself folded."""
  network = UNet(request.param)
  variables = known_variables(network)
  stacks = np.random.default_rng(1).normal(size=(2, 96, 64, 2)).astype(np.float32)
  return (
    network,
    stacks,
    whole(network, variables, stacks),
    inference.fold(network, variables),
  )


@pytest.mark.parametrize(
  ('known', 'start', 'size'),
  [
    (FEW, *EVERYWHERE),
    (FEW, (36, 24), (16, 8)),  # Far from all borders.
    (FEW, (0, 0), (8, 8)),
    (FEW, (88, 56), (8, 8)),
    (FEW, *CUT),
    (MANY, *EVERYWHERE),
    (MANY, *CUT),
  ],
  indirect=['known'],
)
def test_a_window_has_the_values_of_the_whole_slice(known, start, size):
  network, stacks, expected, folded = known
  where = inference.boxes(start, size, stacks.shape[1:3], network.stride)
  cut = tuple(slice(a, a + n) for a, n in zip(where.down, where.down_size, strict=True))
  got = inference.probabilities(folded, stacks[:, *cut], where)
  there = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
  assert got.shape == (2, *size) and np.ptp(expected[:, *there]) > 0.1
  np.testing.assert_allclose(got, expected[:, *there], atol=3e-5)


def test_bfloat16_moves_no_probability_by_more_than_three_hundredths(known):
  network, stacks, expected, _ = known
  folded = inference.fold(network, known_variables(network), 'bfloat16')
  where = inference.boxes((0, 0), (96, 64), (96, 64), network.stride)
  got = inference.probabilities(folded, stacks, where)
  apart = np.abs(np.asarray(got) - expected)
  assert got.dtype == np.float32 and 1e-4 < apart.max() < 0.03


def test_pixels_matter_as_far_as_the_margin_reaches_and_no_further():
  """They have a gradient, where no ReLU hides it; as many levels as released."""
  network = UNet((2, 2, 2, 2, 2))
  variables = jax.tree.map(jnp.abs, lively(network, 1))
  statistics = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
  variables |= {'batch_stats': jax.tree.map(lambda zero: zero + 1, statistics)}

  def one(signal):
    logits = network.apply(variables, signal[None, :, :, None], train=False)
    return logits[0, 160:176, 160:176, 1].sum()

  # Largest at the border, or a maximum would hide the outermost pixels.
  away = jnp.abs(jnp.arange(336) - 167.5)
  signal = 300 + jnp.maximum(away[:, None], away)
  matters = np.flatnonzero(np.abs(hurried(jax.grad(one))(signal)).sum(axis=0))
  assert inference.margin_pixels(network.stride) == 96
  assert (160 - matters[0], matters[-1] - 175) == (94, 94)


@pytest.mark.parametrize('sides', [(512, 512), (128, 192), (48, 32)])
def test_windows_come_in_few_sizes_and_one_holds_everything(sides):
  known = windows.sizes(sides, 16)
  assert sides in known and len(known) <= 10
  assert not np.mod(known, 16).any()
  assert (np.array(known) > 0).all() and (np.array(known) <= sides).all()
  costs = [windows._cost(size, sides, 16) for size in known]
  assert costs == sorted(costs)


@pytest.mark.parametrize('axis', range(3))
@pytest.mark.parametrize('batch_size', [1, 3])
def test_windows_hold_all_of_the_lungs_once(axis, batch_size):
  rng = np.random.default_rng(2)
  lungs = np.zeros((64, 48, 80), np.uint8)
  lungs[5:30, 10:30, 20:66] = rng.integers(0, 3, (25, 20, 46))
  lungs[40:61, 3:33, 18:60] = 1
  lungs[33, 47, 79] = 2  # A corner.
  slices, held, seen = np.moveaxis(lungs, axis, 0), np.zeros_like(lungs), []
  for indices, where in windows.over(lungs, axis, 8, batch_size):
    assert len(indices) <= batch_size
    seen += indices.tolist()
    (top, left), (height, width) = where.window, where.window_size
    assert not (np.array(where.window) % 8).any()
    at = indices, slice(top, top + height), slice(left, left + width)
    np.moveaxis(held, axis, 0)[at] = slices[at]
  np.testing.assert_array_equal(held, lungs)
  assert seen == sorted(set(seen))


@pytest.fixture(scope='module')
def lungs():
  """Two, of other sizes and heights, far from each other."""
  lungs = np.zeros((64, 48, 96), np.uint8)
  lungs[10:22, 12:30, 20:50] = 1
  lungs[34:50, 8:33, 24:61] = 2
  return lungs


@pytest.mark.parametrize('view', NORMAL_AXIS)
def test_the_map_within_the_lungs_is_that_of_whole_slices(view, lungs, monkeypatch):
  """Bit for bit, and what Flax computes of them, up to rounding."""
  spec = ModelSpec('infection', lungs.shape, (-20.0, 0.0, 20.0), (4, 8, 8))
  network, inside = spec.network_of(view), lungs > 0
  variables = lively(network, 3)
  model = Model(spec, {view: variables}, plain((view,)))
  signal = np.random.default_rng(0).normal(size=lungs.shape).astype(np.float32)
  got = probability_map(model, view, jnp.asarray(signal), lungs, batch_size=4)
  assert np.ptp(got[inside]) > 50
  computed = np.count_nonzero(got)
  monkeypatch.setattr(windows, '_EIGHTHS', ((8, 8),))
  of_whole = probability_map(model, view, jnp.asarray(signal), lungs, batch_size=4)
  assert computed < 0.7 * np.count_nonzero(of_whole)
  np.testing.assert_array_equal(got[inside], of_whole[inside])
  axis, n = NORMAL_AXIS[view], lungs.shape[NORMAL_AXIS[view]]
  slices, steps = np.moveaxis(signal, axis, 0), spec.offsets_voxels(view)
  stacks = np.stack([slices[np.clip(np.arange(n) + s, 0, n - 1)] for s in steps], -1)
  expected = np.moveaxis(whole(network, variables, stacks), 0, axis)
  np.testing.assert_allclose(got[inside] / 255, expected[inside], atol=0.51 / 255)
