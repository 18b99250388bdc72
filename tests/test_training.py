"""Losses, views and the step: known answers, and 4 devices = 1 device."""

import functools
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covid3way import progress
from covid3way.base import ConfigError, ModelError, TrainingError
from covid3way.networks.unet import UNet
from covid3way.training import (
  checkpoints,
  devices,
  loop,
  losses,
  optimisers,
  views,
)
from covid3way.training import step as steps
from covid3way.training.distort import Distortion


def on_one_device(function, *arrays):
  """Runs a function of one device's share under pmap on one device."""
  mapped = jax.pmap(function, axis_name=devices.AXIS, devices=jax.devices()[:1])
  return jax.tree.map(lambda x: x[0], mapped(*(a[None] for a in arrays)))


evenly = functools.partial(losses.cross_entropy_and_dice, class_weights=(1, 1))


def both(*arrays):
  return on_one_device(evenly, *arrays), on_one_device(losses.soft_dice, *arrays)


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
    (290, 334, 20),
    (128, 128, 192),
    (334 / 128, 334 / 128, 512 / 192),
    strides=(16,) * 3,
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
  loss, dice = both(certain, labels, everywhere)
  assert (loss, dice) == pytest.approx((0, 1), abs=1e-6)
  # All probabilities 1/2: overlap 1, sizes 2 and 2, smoothed by 1.
  loss, dice = both(np.zeros_like(certain), labels, everywhere)
  assert dice == pytest.approx((2 * 1 + 1) / (2 + 2 + 1))
  assert loss == pytest.approx(np.log(2) + 1 - dice)


def test_loss_counts_only_where_it_is_told_to():
  labels = np.array([[[0, 1], [1, 0]]])
  logits = np.zeros((*labels.shape, 2))
  logits[0, 1] = 99  # absurd, but outside
  logits[0, 1, :, 0] = -99
  inside = np.array([[[True, True], [False, False]]])
  loss, dice = both(logits, labels, inside)
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
    jax.grad(evenly),
    logits.astype(np.float32),
    labels,
    weights,
  )
  assert both(logits, labels, weights)[1] == pytest.approx(1)
  assert np.isfinite(gradient).all()


STILL = Distortion(False, 0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)


def recipe(**options):
  rate = options.pop('rate', 1e-2)
  schedule = optimisers.constant(rate, 0, 0)
  optimiser = options.pop('optimiser', optax.adam)
  known = {
    'network': UNet(features=(4, 8)),
    'optimiser': optimisers.make(
      optimiser,
      schedule,
      clip_norm=options.pop('clip_norm', 0.0),
      weight_decay=options.pop('weight_decay', 0.0),
    ),
    'schedule': schedule,
    'loss': losses.cross_entropy_and_dice,
    'class_weights': (1, 1),
    'distortion': STILL,
  }
  return steps.Recipe(**known | options)


PLAIN = recipe()


def batch_at(number):
  """Stacks whose label is whether the middle slice is above 0."""
  stacks = np.random.default_rng(number).normal(size=(4, 16, 16, 3))
  labels = stacks[..., 1] > 0
  return {
    'stacks': stacks.astype(np.float16),
    'labels': labels,
    'weights': np.ones(labels.shape, bool),
    'seeds': np.arange(4, dtype=np.uint32) + 4 * number,
    'pixels_mm': np.ones((4, 2), np.float32),
  }


VALIDATION = [batch_at(999)]


def fresh(how=PLAIN):
  variables = steps.fresh_variables(how.network, jax.random.key(0), (2, 2, 3))
  return steps.init_state(how, variables)


def train(state, how=PLAIN, batch_at=batch_at, **options):
  """States and figures of a training on one device."""
  return [
    (state, epoch)
    for state, epoch, _ in loop.train(
      state,
      how,
      lambda numbers: map(batch_at, numbers),
      validation=VALIDATION,
      on_devices=jax.devices()[:1],
      now=progress.Doing('xy'),
      **options,
    )
  ]


def test_training_learns_a_threshold():
  """A network of two levels learns `signal > 0` far better than at its start."""
  (_, first), (_, second) = train(fresh(), epochs=2, steps_per_epoch=40)
  assert second.loss < first.loss
  assert second.validation_dice > 0.9
  assert (second.epoch, second.step, second.learning_rate) == (
    2, 80, pytest.approx(1e-2)
  )  # fmt: skip


def test_a_step_is_compiled_once_whatever_it_begins_with(caplog):
  """A fresh state, one that steps made, one out of a checkpoint."""
  step = devices.parallel(steps.make_step(PLAIN), jax.devices()[:1])
  batch = batch_at(0) | {'stop': np.zeros(4, bool)}
  begins = fresh(), jax.tree.map(np.asarray, jax.device_get(fresh()))
  with jax.log_compiles():
    for state in begins:
      state = devices.placed(state, jax.devices()[:1])
      for _ in range(3):
        state, _ = step(state, batch)
  compiled = [r for r in caplog.messages if 'XLA compilation of jit(_fun)' in r]
  assert len(compiled) == 1, caplog.messages


def test_the_pace_counts_images_and_waiting():
  def slow(number):
    time.sleep(0.05)
    return batch_at(number)

  ((*_, pace),) = loop.train(
    fresh(),
    PLAIN,
    lambda numbers: map(slow, numbers),
    epochs=1,
    steps_per_epoch=20,
    validation=[],
    on_devices=jax.devices()[:1],
    now=progress.Doing('xy'),
  )
  assert pace.images_per_s == pytest.approx(80 / pace.seconds)
  assert 1 <= pace.waiting_share * pace.seconds < 1.5


def test_what_is_no_longer_finite_names_its_step():
  def batch(number):
    known = batch_at(number)
    if number >= 7:
      known['stacks'][:] = np.nan
    return known

  with pytest.raises(TrainingError, match='xy: step 7 is the first that is'):
    train(fresh(), batch_at=batch, epochs=2, steps_per_epoch=5)


def test_stopped_within_an_epoch_it_goes_on_as_if_it_had_not_been(tmp_path):
  """Weights, optimiser, average and the epoch's mean loss, through a checkpoint."""
  how, long = recipe(average=0.9), {'epochs': 3, 'steps_per_epoch': 5}
  whole, asked = train(fresh(how), how, **long), iter(range(1, 99))
  stopped = train(fresh(how), how, stop=lambda: next(asked) >= 7, **long)
  *first, (state, none) = stopped
  # The eighth step runs before what the seventh said is looked at.
  assert none is None and int(state.step) == 8 and len(first) == 1
  with checkpoints.keeping(tmp_path) as keeper:
    keeper.keep(state, [])
  with checkpoints.keeping(tmp_path) as keeper:
    state, _ = keeper.last(fresh(how))
  rest = train(state, how, **long)
  assert [epoch for _, epoch in first + rest] == [epoch for _, epoch in whole]
  jax.tree.map(np.testing.assert_array_equal, rest[-1][0], whole[-1][0])


def test_the_best_and_the_last_state_are_kept(tmp_path):
  states = [state for state, _ in train(fresh(), epochs=4, steps_per_epoch=1)]
  rows = [
    {'step': step, 'validation_dice': dice}
    for step, dice in ((1, 0.5), (2, 0.8), (3, 0.7), (4, 0.6))
  ]
  with checkpoints.keeping(tmp_path) as keeper:
    for number, state in enumerate(states, start=1):
      keeper.keep(state, rows[:number])
  assert {p.name for p in tmp_path.iterdir()} == {'step_2', 'step_4'}
  with checkpoints.keeping(tmp_path) as keeper:
    last, figures = keeper.last(fresh())
  assert int(last.step) == 4 and figures == rows
  variables, figures = checkpoints.best(tmp_path)
  assert figures == rows
  jax.tree.map(np.testing.assert_array_equal, variables, states[1].variables)


def test_a_best_state_that_is_lost_is_told(tmp_path):
  state, figures, dice = fresh(), [], (0.3, 0.9, 0.9, 0.5)
  with checkpoints.keeping(tmp_path) as keeper:
    for step, each in enumerate(dice, start=1):
      figures.append({'step': step, 'validation_dice': each})
      keeper.keep(state.replace(step=np.int32(step)), figures)
  kept = {p.name for p in tmp_path.iterdir()}
  assert len(kept) == 2 and 'step_4' in kept  # Of two as good one is enough.
  checkpoints.best(tmp_path)
  (lost,) = kept - {'step_4'}
  shutil.rmtree(tmp_path / lost)
  remedy = r'the best checkpoint \(validation Dice 0.900\) is absent; .* begins anew'
  with pytest.raises(ModelError, match=remedy):
    checkpoints.best(tmp_path)
  with checkpoints.keeping(tmp_path) as keeper:
    with pytest.raises(ModelError, match=remedy):
      keeper.last(state)
  shutil.rmtree(tmp_path / 'step_4')  # As the remedy says.
  with checkpoints.keeping(tmp_path) as keeper:
    assert keeper.last(state)[1] == []


def test_nothing_kept_is_an_error(tmp_path):
  with pytest.raises(ModelError, match='no checkpoint of a training'):
    checkpoints.best(tmp_path)


def one_step(how, batch=None):
  """The state before and after a step on one device."""
  step = devices.parallel(steps.make_step(how), jax.devices()[:1])
  state, batch = fresh(how), batch or batch_at(0)
  after, metrics = step(state, batch | {'stop': np.zeros(len(batch['labels']), bool)})
  return state, after, metrics


def moved(before, after):
  return jax.tree.map(
    lambda a, b: np.asarray(b) - np.asarray(a),
    before.variables['params'],
    after.variables['params'],
  )


def norm(tree):
  return float(np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(tree))))


def test_norms_are_of_the_gradient_the_update_and_the_parameters():
  before, after, metrics = one_step(recipe(optimiser=optax.sgd, rate=0.5))
  update = moved(before, after)
  assert metrics['update_norm'] == pytest.approx(norm(update), rel=1e-3)
  assert metrics['gradient_norm'] == pytest.approx(2 * norm(update), rel=1e-3)
  params = after.variables['params']
  assert metrics['parameter_norm'] == pytest.approx(norm(params), rel=1e-5)


def test_a_gradient_is_clipped_to_the_norm_that_is_told():
  _, _, free = one_step(recipe(optimiser=optax.sgd, rate=1.0))
  _, _, clipped = one_step(recipe(optimiser=optax.sgd, rate=1.0, clip_norm=0.25))
  assert free['update_norm'] > 0.3
  assert float(clipped['update_norm']) == pytest.approx(0.25, rel=1e-4)
  assert float(clipped['gradient_norm']) == pytest.approx(
    float(free['gradient_norm']), rel=1e-5
  )


def test_weight_decay_pulls_weights_to_zero():
  (before, after, _), (_, decayed, _) = (
    one_step(recipe(optimiser=optax.adamw, weight_decay=w)) for w in (1e-12, 0.5)
  )
  pull = jax.tree.map(lambda a, b: b - a, moved(before, after), moved(before, decayed))
  jax.tree.map(
    lambda x, p: np.testing.assert_allclose(x, -0.5 * 1e-2 * p, atol=1e-6),
    pull,
    before.variables['params'],
  )


def test_an_optimiser_without_weight_decay_says_so():
  with pytest.raises(ConfigError, match=r'weight_decay: 0\.1 with adam'):
    recipe(weight_decay=0.1)


def test_no_weight_decay_is_none_whatever_an_optimiser_does_by_itself():
  """Adam with decoupled decay (1e-4 by its own default) is then Adam."""
  (_, plain, _), (_, without, _) = (
    one_step(recipe(optimiser=each)) for each in (optax.adam, optax.adamw)
  )
  close = functools.partial(np.testing.assert_allclose, atol=1e-9)
  jax.tree.map(close, without.variables, plain.variables)


@pytest.mark.parametrize('schedule', [optimisers.constant, optimisers.cosine])
def test_schedules_rise_and_then_stay_or_fall(schedule):
  rate = schedule(0.1, 100, 10)
  assert [float(rate(s)) for s in (0, 5, 10)] == pytest.approx([0, 0.05, 0.1])
  falls = schedule is optimisers.cosine
  assert float(rate(100)) == pytest.approx(0 if falls else 0.1, abs=1e-8)
  assert float(schedule(0.1, 100, 0)(0)) == pytest.approx(0.1)


def test_the_average_follows_the_variables():
  how = recipe(average=0.9)
  before, after, _ = one_step(how)
  # The first step weighs 0.9 however slow the average is to be.
  expected = jax.tree.map(
    lambda a, b: 0.1 * a + 0.9 * b, before.variables, after.variables
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, after.averaged, expected)
  assert after.result is after.averaged
  assert one_step(PLAIN)[1].averaged is None


def test_parts_of_a_batch_give_their_mean_gradient():
  """Two parts of equal stacks: batch statistics and Dice are those of either."""
  batch = batch_at(0)
  twice = {k: np.concatenate([v[:2], v[:2]]) for k, v in batch.items()}
  sgd = {'optimiser': optax.sgd, 'rate': 1.0}
  _, at_once, known = one_step(recipe(**sgd), {k: v[:2] for k, v in batch.items()})
  _, in_parts, metrics = one_step(recipe(**sgd, parts=2), twice)
  for name in ('loss', 'gradient_norm', 'update_norm'):
    assert float(metrics[name]) == pytest.approx(float(known[name]), rel=1e-4)
  close = functools.partial(np.testing.assert_allclose, atol=1e-4)
  jax.tree.map(
    close, in_parts.variables['params'], at_once.variables['params']
  )  # fmt: skip


def test_half_precision_computes_in_it_and_keeps_the_rest_in_single():
  half = recipe(network=UNet(features=(4, 8), dtype=jnp.bfloat16))
  text = jax.jit(
    lambda v, x: half.network.apply(v, x, train=False)
  ).lower(fresh().variables, batch_at(0)['stacks']).as_text()  # fmt: skip
  convolutions = [line for line in text.splitlines() if 'convolution' in line]
  assert convolutions and all('xbf16' in line for line in convolutions)
  _, after, metrics = one_step(half)
  _, exact, known = one_step(PLAIN)
  for leaf in jax.tree.leaves((after.variables, after.opt_state)):
    assert leaf.dtype in (jnp.float32, jnp.int32)
  assert metrics['loss'].dtype == jnp.float32
  assert 0 < abs(metrics['loss'] - known['loss']) < 0.02
  del exact
