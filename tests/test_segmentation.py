"""Aggregation, probability maps and quantification: known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covid3way.segmentation import aggregators, quantify, three_way
from covid3way.segmentation.maps import probability_map
from covid3way.segmentation.model import Model, ModelSpec
from covid3way.training import views

SUM = aggregators.plain(('xy', 'yz', 'xz'))


def test_aggregate_is_the_sum_over_two():
  maps = {
    'xy': np.array([255, 255, 170, 171, 0], np.uint8).reshape(5, 1, 1),
    'yz': np.array([255, 255, 170, 171, 0], np.uint8).reshape(5, 1, 1),
    'xz': np.array([1, 0, 170, 171, 0], np.uint8).reshape(5, 1, 1),
  }
  lungs = np.ones((5, 1, 1), np.uint8)
  probability, mask = three_way.aggregate(maps, lungs, SUM)
  # 510 / 255 is 2, and 2 is not above 2.
  assert mask.ravel().tolist() == [True, False, False, True, False]
  np.testing.assert_allclose(
    probability.ravel(), np.array([511, 510, 510, 513, 0]) / 765, atol=5e-4
  )


def test_aggregate_ends_at_the_lungs():
  maps = {v: np.full((2, 1, 1), 200, np.uint8) for v in ('xy', 'yz', 'xz')}
  lungs = np.array([1, 0], np.uint8).reshape(2, 1, 1)
  probability, mask = three_way.aggregate(maps, lungs, SUM)
  assert mask.ravel().tolist() == [True, False]
  assert probability.ravel()[1] == 0


@pytest.fixture(scope='module')
def model():
  """Three small untrained networks, each its own."""
  spec = ModelSpec('infection', (32, 32, 48), (-30.0, 0.0, 30.0), (4, 8))
  stacks = jnp.zeros((1, 16, 16, 3))
  variables = {
    view: spec.network.init(jax.random.key(i), stacks, train=False)
    for i, view in enumerate(views.NORMAL_AXIS)
  }
  return Model(spec, variables, SUM)


@pytest.mark.parametrize('view', views.NORMAL_AXIS)
def test_probability_map_equals_slice_by_slice_evaluation(model, view):
  """Each view through its own network, each slice where it belongs."""
  rng = np.random.default_rng(0)
  signal = rng.normal(size=model.spec.space_shape).astype(np.float32)
  lungs = np.zeros(signal.shape, np.uint8)
  lungs[8:20, 5:25, 10:41] = 1
  got = probability_map(model, view, signal, lungs, batch_size=8)
  axis = views.NORMAL_AXIS[view]
  offsets = [round(mm / model.spec.space.spacing_mm[axis]) for mm in (-30, 0, 30)]
  n = signal.shape[axis]
  for index in range(n):
    crossing = lungs.take(index, axis=axis).any()
    plane = got.take(index, axis=axis)
    if not crossing:
      assert not plane.any()
      continue
    if index % 5:
      continue
    stack = np.stack(
      [signal.take(np.clip(index + o, 0, n - 1), axis=axis) for o in offsets], -1
    )
    logits = model.spec.network.apply(model.variables[view], stack[None], train=False)
    expected = jax.nn.softmax(logits)[0, ..., 1]
    np.testing.assert_allclose(plane / 255, expected, atol=0.6 / 255)


def test_quantify_known_answers():
  lungs = np.zeros((4, 2, 9), np.uint8)
  lungs[2:, :, :] = quantify.LEFT
  lungs[:2, :, :] = quantify.RIGHT
  infection = np.zeros_like(lungs, bool)
  infection[2:, :, :3] = True  # left, lower third: 12 voxels
  infection[0, 0, 8] = True  # right, upper third: 1 voxel
  numbers = quantify.quantify(infection, lungs, voxel_ml=0.5)
  assert numbers['infected_percent'] == pytest.approx(100 * 13 / 72, abs=1e-4)
  assert (numbers['infection_ml'], numbers['lung_ml']) == (6.5, 36.0)
  left, right = numbers['per_lung']['left'], numbers['per_lung']['right']
  assert (left['infection_ml'], right['infection_ml']) == (6.0, 0.5)
  assert left['infected_percent'] == pytest.approx(100 * 12 / 36, abs=1e-4)
  thirds = numbers['per_third']
  assert [thirds[n]['infection_ml'] for n in ('upper', 'middle', 'lower')] == [
    0.5,
    0,
    6.0,
  ]


def test_infection_outside_the_lungs_does_not_count():
  lungs = np.zeros((2, 2, 3), np.uint8)
  lungs[0] = quantify.RIGHT
  numbers = quantify.quantify(np.ones_like(lungs, bool), lungs, voxel_ml=1.0)
  assert numbers['infected_percent'] == 100
  assert numbers['infection_ml'] == 6
  assert numbers['per_lung']['left']['infected_percent'] is None


def test_no_lung_has_no_thirds():
  with pytest.raises(ValueError, match='empty'):
    quantify.thirds(np.zeros((2, 2, 2), bool))
