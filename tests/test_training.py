"""Losses, views and the step: known answers, and 4 devices = 1 device."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT

from covid3way.networks.unet import UNet
from covid3way.training import checkpoints, devices, loop, losses, views


def on_one_device(function, *arrays):
  """Runs a function of one device's share under pmap on one device."""
  mapped = jax.pmap(function, axis_name=devices.AXIS, devices=jax.devices()[:1])
  return jax.tree.map(lambda x: x[0], mapped(*(a[None] for a in arrays)))


evenly = functools.partial(losses.loss, class_weights=(1, 1))


def test_offsets_are_the_papers():
  spacing_mm = (334 / 512, 334 / 512, 1.0)
  offsets_mm = (-5, -2, 0, 2, 5)
  assert views.offsets_voxels(offsets_mm, spacing_mm, 'xy') == (-5, -2, 0, 2, 5)
  assert views.offsets_voxels(offsets_mm, spacing_mm, 'yz') == (-8, -3, 0, 3, 8)
  assert views.offsets_voxels(offsets_mm, spacing_mm, 'xz') == (-8, -3, 0, 3, 8)


@pytest.mark.parametrize('view,shape', [('xy', (4, 5)), ('yz', (5, 6)), ('xz', (4, 6))])
def test_gather_takes_the_slices_it_names(view, shape):
  volume = np.arange(4 * 5 * 6.0).reshape(4, 5, 6)
  axis = views.NORMAL_AXIS[view]
  indices = views.stack_indices([0, 2], (-2, 0, 1), volume.shape[axis])
  stacks = views.gather(jnp.asarray(volume), indices, view)
  assert stacks.shape == (2, *shape, 3)
  for b, central in enumerate((0, 2)):
    for d, offset in enumerate((-2, 0, 1)):
      expected = volume.take(max(central + offset, 0), axis=axis)
      np.testing.assert_array_equal(stacks[b, ..., d], expected)


def test_central_window_holds_what_is_asked_in_multiples_of_the_stride():
  window = views.central_window(
    (290, 334, 20), (128, 128, 192), (334 / 128, 334 / 128, 512 / 192), stride=16
  )
  # 290 mm are 111.1 voxels: 112; 334 mm are all 128; 20 mm are 7.5: 16.
  assert window == (slice(8, 120), slice(0, 128), slice(88, 104))


def test_unet_has_the_released_number_of_parameters():
  shapes = jax.eval_shape(
    lambda: UNet().init(jax.random.key(0), jnp.zeros((1, 16, 16, 5)), train=False)
  )
  count = sum(p.size for p in jax.tree.leaves(shapes['params']))
  assert count == pytest.approx(1.94e6, rel=0.01)


def test_unet_refuses_sizes_it_would_have_to_cut():
  with pytest.raises(ValueError, match=r'\(24, 32\).*multiples of 16'):
    UNet().init(jax.random.key(0), jnp.zeros((1, 24, 32, 5)), train=False)


def test_loss_of_certain_and_of_ignorant_predictions():
  labels = np.array([[[0, 1], [1, 0]]])
  certain = np.where(labels[..., None] == np.arange(2), 50.0, -50.0)
  everywhere = np.ones(labels.shape, bool)
  loss, dice = on_one_device(evenly, certain, labels, everywhere)
  assert (loss, dice) == pytest.approx((0, 1), abs=1e-6)
  # All probabilities 1/2: overlap 1, sizes 2 and 2, smoothed by 1.
  loss, dice = on_one_device(evenly, np.zeros_like(certain), labels, everywhere)
  assert dice == pytest.approx((2 * 1 + 1) / (2 + 2 + 1))
  assert loss == pytest.approx(np.log(2) + 1 - dice)


def test_loss_counts_only_where_it_is_told_to():
  labels = np.array([[[0, 1], [1, 0]]])
  logits = np.zeros((*labels.shape, 2))
  logits[0, 1] = 99  # absurd, but outside
  logits[0, 1, :, 0] = -99
  inside = np.array([[[True, True], [False, False]]])
  loss, dice = on_one_device(evenly, logits, labels, inside)
  # Two pixels of probability 1/2, one of them infected.
  assert dice == pytest.approx((2 * 0.5 + 1) / (1 + 1 + 1))
  assert loss == pytest.approx(np.log(2) + 1 - dice)


def test_class_weights_multiply_the_entropy_of_their_class():
  logits, labels = np.zeros((1, 1, 2, 2)), np.array([[[0, 1]]])
  entropy = functools.partial(losses.cross_entropy, class_weights=(1, 5))
  got = on_one_device(entropy, logits, labels, np.ones(labels.shape, bool))
  assert got == pytest.approx(np.log(2) * (1 + 5) / 2)


@pytest.mark.parametrize('counted', [True, False])
def test_empty_batch_has_dice_one_and_a_finite_gradient(counted):
  labels = np.zeros((1, 2, 2), int)
  logits = np.stack([np.full((1, 2, 2), 60.0), np.zeros((1, 2, 2))], -1)
  weights = np.full(labels.shape, counted)
  gradient = on_one_device(
    jax.grad(lambda x, y, w: evenly(x, y, w)[0]),
    logits.astype(np.float32),
    labels,
    weights,
  )
  assert on_one_device(evenly, logits, labels, weights)[1] == pytest.approx(1)
  assert np.isfinite(gradient).all()


def test_shard_refuses_what_does_not_divide():
  with pytest.raises(ValueError, match='6 cannot be shared by 4'):
    devices.shard({'stacks': np.zeros((6, 2))}, 4)


NETWORK, ADAM = UNet(features=(4, 8)), optax.adam(1e-2)


def batch_at(number):
  """Stacks whose label is whether the middle slice is above 0."""
  stacks = np.random.default_rng(number).normal(size=(4, 16, 16, 3))
  labels = (stacks[..., 1] > 0).astype(np.int32)
  weights = np.ones(labels.shape, bool)
  return {'stacks': stacks.astype(np.float32), 'labels': labels, 'weights': weights}


def fresh():
  return loop.init_state(NETWORK, ADAM, jax.random.key(0), batch_at(0)['stacks'])


def train(state, batch_at=batch_at, **options):
  """States and figures of a training on one device."""
  return list(
    loop.train(
      state,
      batch_at,
      network=NETWORK,
      optimiser=ADAM,
      class_weights=(1, 1),
      validation=[batch_at(999)],
      on_devices=jax.devices()[:1],
      what='xy',
      **options,
    )
  )


def test_training_learns_a_threshold():
  """A network of two levels learns `signal > 0` far better than at its start."""
  (_, first), (_, second) = train(fresh(), epochs=2, steps_per_epoch=40)
  assert second.loss < first.loss
  assert second.validation_dice > 0.9


def test_a_loss_that_is_not_finite_stops_the_training():
  bad = batch_at(0)
  bad['stacks'][:] = np.nan
  with pytest.raises(FloatingPointError, match='xy: the loss of epoch 1 is nan'):
    train(fresh(), lambda _: bad, epochs=1, steps_per_epoch=1)


def test_stopped_within_an_epoch_it_goes_on_as_if_it_had_not_been(tmp_path):
  """Weights, optimiser and the epoch's mean loss, through a checkpoint."""
  long = {'epochs': 3, 'steps_per_epoch': 5}
  whole, asked = train(fresh(), **long), iter(range(1, 99))
  *first, (state, none) = train(fresh(), stop=lambda: next(asked) >= 8, **long)
  assert none is None and int(state.step) == 7 and len(first) == 1
  checkpoints.keep(tmp_path, state, [])
  state, _ = checkpoints.restore(tmp_path, fresh())
  rest = train(state, **long)
  assert [epoch for _, epoch in first + rest] == [epoch for _, epoch in whole]
  jax.tree.map(np.testing.assert_array_equal, rest[-1][0], whole[-1][0])


_FOUR_DEVICES = """
import json
import jax, numpy as np, optax
from covid3way.networks.unet import UNet
from covid3way.training import devices, loop

rng = np.random.default_rng(0)
batches = []
for _ in range(3):
  stacks = rng.normal(size=(8, 16, 16, 5)).astype(np.float32)
  labels = (stacks[..., 2] > .5).astype(np.int32)
  # Unlike shares: one device's pixels must not weigh more than another's.
  weights = rng.random(labels.shape) < rng.random((8, 1, 1))
  batches.append({'stacks': stacks, 'labels': labels, 'weights': weights})
network, optimiser = UNet(features=(4, 8, 16)), optax.sgd(0.1, momentum=0.9)
results = {}
for n in (1, 4):
  state = loop.init_state(network, optimiser, jax.random.key(0), stacks)
  step = devices.parallel(loop.make_step(network, optimiser, (1, 3)), jax.devices()[:n])
  for batch in batches:
    state = step(state, devices.shard(batch, n))
  results[n] = jax.tree.map(np.asarray, state)
difference = lambda part: max(
  float(np.abs(a - b).max())
  for a, b in zip(*(jax.tree.leaves(part(results[n])) for n in (1, 4)))
)
moved = loop.init_state(network, optimiser, jax.random.key(0), stacks)
print(json.dumps({
  'devices': jax.device_count(),
  'params': difference(lambda s: s.variables['params']),
  'batch_stats': difference(lambda s: s.variables['batch_stats']),
  'metrics': difference(lambda s: s.sums),
  'moved': max(float(np.abs(a - b).max()) for a, b in zip(
    jax.tree.leaves(moved.variables), jax.tree.leaves(results[4].variables))),
}))
"""


def test_four_devices_equal_one_batch_statistics_included():
  environment = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', _FOUR_DEVICES],
    cwd=ROOT,
    env={'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu'} | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout)
  assert result['devices'] == 4
  assert result['moved'] > 1e-2
  for part in ('params', 'batch_stats', 'metrics'):
    assert result[part] < 1e-5, result
