"""Dice losses: known answers on logits made by hand; what they must not depend on."""

import functools

import jax
import numpy as np
import pytest

from covid3way.training import devices, losses

DICE, GENERALISED = losses.dice_loss, losses.generalised_dice_loss
BOTH = pytest.mark.parametrize('loss', [DICE, GENERALISED])
EVERY = pytest.mark.parametrize(
  'loss', [DICE, GENERALISED, losses.cross_entropy_and_dice]
)


def shared(loss, *arrays, n=1):
  """A loss of a batch that n devices share; it is the same on all of them."""
  share = functools.partial(loss, class_weights=(1, 5))
  mapped = jax.jit(jax.vmap(share, axis_name=devices.AXIS))
  split = [a.reshape(n, len(a) // n, *a.shape[1:]) for a in arrays]
  got = np.asarray(mapped(*split))
  assert (got == got[0]).all()
  return float(got[0])


def logits_of(predicted):
  """Logits of a network that is sure."""
  sure = np.where(predicted, 50.0, -50.0).astype(np.float32)
  return np.stack([-sure, sure], axis=-1)


def drawn(shape=(4, 6, 5), seed=0):
  """Logits, labels and weights at random."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(*shape, 2)).astype(np.float32)
  return logits, rng.integers(0, 2, shape), rng.random(shape) > 0.3


LABELS = np.array([[[0, 1, 0], [0, 0, 1]]])
EVERYWHERE = np.ones(LABELS.shape, bool)


@BOTH
def test_what_is_right_costs_nothing_and_what_is_wrong_all(loss):
  assert shared(loss, logits_of(LABELS), LABELS, EVERYWHERE) == pytest.approx(
    0, abs=1e-6
  )
  wrong = shared(loss, logits_of(1 - LABELS), LABELS, EVERYWHERE)
  # Dice is smoothed by 1: no overlap, six pixels predicted or infected.
  assert wrong == pytest.approx({DICE: 1 - 1 / 7, GENERALISED: 1}[loss], abs=1e-6)


@pytest.mark.parametrize(
  ('loss', 'wanted'),
  [
    # Overlap 1; squares 6 / 4, and 2 infected; smoothed by 1.
    (DICE, 1 - (2 * 1 + 1) / (6 / 4 + 2 + 1)),
    # Classes of 4 and 2: overlaps 2 and 1, sizes 3 + 4 and 3 + 2.
    (GENERALISED, 1 - 2 * (2 / 16 + 1 / 4) / (7 / 16 + 5 / 4)),
  ],
)
def test_what_ignorance_costs(loss, wanted):
  logits = np.zeros((*LABELS.shape, 2), np.float32)
  assert shared(loss, logits, LABELS, EVERYWHERE) == pytest.approx(wanted, rel=1e-5)


def test_the_generalised_dice_weighs_a_small_class_as_much_as_a_large_one():
  labels = (np.arange(1000) < 10).astype(int).reshape(1, 20, 50)
  everywhere, none = np.ones(labels.shape, bool), np.zeros(labels.shape, bool)
  small_missed = shared(GENERALISED, logits_of(none), labels, everywhere)
  large_missed = shared(GENERALISED, logits_of(~none), labels, everywhere)
  # 990 right of 1990, or 10 of 1010; the other class, all wrong, decides.
  assert small_missed == pytest.approx(1 - 2 * 990 / (1990 + 99**2 * 10), abs=1e-6)
  assert large_missed == pytest.approx(1 - 2 * 10 / (1010 + 990 / 99**2), abs=1e-6)
  assert small_missed == pytest.approx(large_missed, abs=1e-4)
  # And exchanging the classes changes nothing, which it does to the plain Dice.
  for loss, same in ((GENERALISED, True), (DICE, False)):
    logits, labels, weights = drawn()
    labels = labels * (np.arange(5) > 2)
    one, other = (
      shared(loss, logits, labels, weights),
      shared(loss, logits[..., ::-1], 1 - labels, weights),
    )
    assert (abs(one - other) < 1e-6) == same


@EVERY
def test_what_does_not_count_changes_nothing(loss):
  logits, labels, _ = drawn()
  cropped = np.zeros(labels.shape, bool)
  cropped[:, 2:5, 1:4] = True
  wanted = shared(loss, logits[:, 2:5, 1:4], labels[:, 2:5, 1:4], cropped[:, 2:5, 1:4])
  absurd = np.where(cropped[..., None], logits, 99 * np.sign(logits))
  mislabelled = np.where(cropped, labels, 1 - labels)
  assert shared(loss, absurd, mislabelled, cropped) == pytest.approx(wanted, rel=1e-5)
  assert shared(loss, absurd, labels, ~cropped) != pytest.approx(wanted, rel=1e-2)


@EVERY
def test_volumes_cost_what_planes_of_the_same_voxels_do(loss):
  logits, labels, weights = drawn((2, 4, 3, 5))
  planes = shared(
    loss,
    logits.reshape(2, 12, 5, 2),
    labels.reshape(2, 12, 5),
    weights.reshape(2, 12, 5),
  )
  assert shared(loss, logits, labels, weights) == pytest.approx(planes, rel=1e-6)


@EVERY
def test_devices_that_share_a_batch_compute_one_loss_of_all_of_it(loss):
  batch = drawn()
  at_once = shared(loss, *batch)
  assert shared(loss, *batch, n=4) == pytest.approx(at_once, rel=1e-5)
  alone = [shared(loss, *(each[i : i + 1] for each in batch)) for i in range(4)]
  assert np.mean(alone) != pytest.approx(at_once, rel=1e-3)


@BOTH
@pytest.mark.parametrize('counted', [True, False])
def test_without_infection_all_is_finite_and_sound_is_right(loss, counted):
  labels = np.zeros((1, 4, 4), int)
  weights = np.full(labels.shape, counted)
  sound = shared(loss, logits_of(labels), labels, weights)
  assert sound == pytest.approx(0, abs=1e-6)
  sick = shared(loss, logits_of(1 - labels), labels, weights)
  assert sick > 0.9 if counted else sick == pytest.approx(0, abs=1e-6)

  def objective(logits):
    return loss(logits, labels, weights, class_weights=(1, 1))

  for logits in (logits_of(labels), np.zeros((1, 4, 4, 2), np.float32)):
    mapped = jax.jit(jax.vmap(jax.grad(objective), axis_name=devices.AXIS))
    gradient = mapped(logits[None])
    assert np.isfinite(gradient).all()
