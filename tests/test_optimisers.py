"""Schedules and optimisers: values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covid3way.training import optimisers


@pytest.mark.parametrize(
  ('warmup_steps', 'values'),
  [
    (0, {0: 0.1, 25: 0.1 * 0.75**0.9, 50: 0.1 * 0.5**0.9, 100: 0, 120: 0}),
    # A line up to step 20, then the fall over the 80 that are left.
    (20, {0: 0, 5: 0.025, 20: 0.1, 40: 0.1 * 0.75**0.9, 60: 0.1 * 0.5**0.9, 100: 0}),
  ],
)
def test_poly_known_values(warmup_steps, values):
  rate = optimisers.poly(0.1, 100, warmup_steps)
  got = [float(rate(step)) for step in values]
  assert got == pytest.approx(list(values.values()), abs=1e-7)


@pytest.mark.parametrize(
  ('optimiser', 'momentum'),
  [(optimisers.momentum_sgd, 0.9), (optimisers.heavy_momentum_sgd, 0.99)],
)
def test_momentum_keeps_its_share_of_the_step_before(optimiser, momentum):
  made = optimiser(optimisers.poly(0.1, 10, 0))
  weight = jnp.float32(1.0)
  state = made.init(weight)
  first, state = made.update(jnp.float32(2.0), state, weight)
  second, _ = made.update(jnp.float32(-1.0), state, weight)
  assert float(first) == pytest.approx(-0.1 * 2)
  assert float(second) == pytest.approx(-0.1 * 0.9**0.9 * (momentum * 2 - 1))


def updates(losses, *, weight_decay=0.0, clip_norm=0.0):
  """What Adam takes from a weight per step, of a gradient that stays the same."""
  made = optimisers.make(
    optimisers.adam_halved_on_plateau,
    optimisers.constant(0.1, len(losses), 0),
    clip_norm=clip_norm,
    weight_decay=weight_decay,
  )
  weight = jnp.float32(3.0)

  def step(state, loss):
    update, state = made.update(jnp.float32(2.0), state, weight, value=loss)
    return state, update

  return -np.asarray(jax.lax.scan(step, made.init(weight), jnp.asarray(losses))[1])


# The first mean of 100 steps is the best so far; ten more may be no better.
@pytest.mark.parametrize(
  'losses',
  [
    np.full(2300, 0.5),
    np.tile([0.2, 0.8], 1150),
    np.linspace(0.5, 0.6, 2300),
    0.5 * (1 - 1e-9 * np.arange(2300)),
  ],
  ids=['constant', 'noise', 'rises', 'falls too little'],
)
@pytest.mark.parametrize('clip_norm', [0.0, 1.0])
def test_steps_are_halved_after_a_plateau_and_not_before(losses, clip_norm):
  got = updates(losses.astype(np.float32), clip_norm=clip_norm)
  np.testing.assert_allclose(got[:1099], 0.1, rtol=1e-3)
  np.testing.assert_allclose(got[1100:2099], 0.05, rtol=1e-3)
  np.testing.assert_allclose(got[2100:], 0.025, rtol=1e-3)


def test_a_loss_that_falls_leaves_the_steps_as_they_are():
  losses = 0.5 * 0.99 ** (np.arange(2300) // 100)
  np.testing.assert_allclose(updates(losses.astype(np.float32)), 0.1, rtol=1e-3)
  # One better mean within ten begins the count anew.
  losses = np.where(np.arange(1800) < 800, 0.5, 0.4)
  np.testing.assert_allclose(updates(losses.astype(np.float32)), 0.1, rtol=1e-3)


def test_its_decay_is_part_of_the_gradient():
  """L2, as its authors have it, not decoupled: Adam makes a full step of it."""
  made = optimisers.adam_halved_on_plateau(optax.constant_schedule(0.1), 0.5)
  weights = jnp.array([3.0, -0.2])
  update, _ = made.update(
    jnp.array([0.0, 0.1]), made.init(weights), weights, value=jnp.float32(1)
  )
  # Gradients 1.5 and 0: of the latter nothing is left but a rounding error.
  assert update[0] == pytest.approx(-0.1, rel=1e-4)
  still = made.update(
    jnp.array([-1.5, 0.1]), made.init(weights), weights, value=jnp.float32(1)
  )[0]
  assert np.abs(still).max() < 1e-4
