"""Training one U-Net on the slice stacks of one view."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from covid3way import progress
from covid3way.networks.unet import UNet
from covid3way.training import devices, losses

Batch = dict[str, np.ndarray]


@flax.struct.dataclass
class TrainState:
  """What training carries from step to step.

  Attributes:
    variables: `params` and `batch_stats` of the network.
    opt_state: of the optimiser.
  """

  variables: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Epoch:
  """What one epoch gave: mean loss and Dice of training, Dice of validation."""

  epoch: int
  loss: float
  dice: float
  validation_dice: float


def init_state(
  network: UNet, optimiser: optax.GradientTransformation, key: jax.Array, stacks
) -> TrainState:
  """Fresh weights for stacks (b, h, w, d) of a given size."""
  variables = jax.jit(network.init, static_argnames='train')(
    key, jnp.zeros_like(stacks[:1]), train=False
  )
  return TrainState(variables, optimiser.init(variables['params']))


def make_step(
  network: UNet,
  optimiser: optax.GradientTransformation,
  class_weights: Sequence[float],
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """One optimiser step on one device's share of a batch."""
  network = network.clone(axis_name=devices.AXIS)

  def step(state, batch):
    def objective(params):
      logits, updates = network.apply(
        state.variables | {'params': params},
        batch['stacks'],
        train=True,
        mutable=['batch_stats'],
      )
      loss, dice = losses.loss(
        logits, batch['labels'], batch['weights'], class_weights=class_weights
      )
      return loss, (dice, updates['batch_stats'])

    params = state.variables['params']
    (loss, (dice, batch_stats)), gradient = jax.value_and_grad(objective, has_aux=True)(
      params
    )
    update, opt_state = optimiser.update(
      devices.mean(gradient), state.opt_state, params
    )
    params = optax.apply_updates(params, update)
    state = TrainState({'params': params, 'batch_stats': batch_stats}, opt_state)
    return state, {'loss': loss, 'dice': dice}

  return step


def make_evaluate(network: UNet):
  """Counts of one batch (on one device) from which Dice is made."""

  @jax.jit
  def evaluate(variables, batch):
    logits = network.apply(variables, batch['stacks'], train=False)
    predicted = (logits.argmax(-1) == 1) & batch['weights']
    wanted = (batch['labels'] == 1) & batch['weights']
    return (predicted & wanted).sum(), predicted.sum() + wanted.sum()

  return evaluate


def validation_dice(evaluate, variables, batches: Sequence[Batch]) -> float:
  """Dice of class 1 over all given batches; NaN when there are none."""
  counts = np.array([evaluate(variables, batch) for batch in batches]).reshape(-1, 2)
  overlap, size = counts.sum(axis=0, dtype=float)
  return 2 * overlap / size if size else float('nan')


def train(
  state: TrainState,
  batches: Iterator[Batch],
  *,
  network: UNet,
  optimiser: optax.GradientTransformation,
  class_weights: Sequence[float],
  epochs: Sequence[int],
  steps_per_epoch: int,
  validation: Sequence[Batch],
  on_devices: Sequence[jax.Device],
  what: str,
) -> Iterator[tuple[TrainState, Epoch]]:
  """Trains; yields the state and its figures after each epoch.

  Args:
    state: to begin with.
    batches: training batches, a multiple of the number of devices long.
    network: whose variables the state holds.
    optimiser: whose state it holds.
    class_weights: of cross-entropy.
    epochs: numbers of the epochs to run.
    steps_per_epoch: batches per epoch.
    validation: batches to measure Dice on after each epoch.
    on_devices: to run on.
    what: words for the progress bar.

  Raises:
    FloatingPointError: the loss is no longer finite.
  """
  step = devices.parallel(make_step(network, optimiser, class_weights), on_devices)
  evaluate = make_evaluate(network)
  for epoch in epochs:
    losses_, dices = [], []
    for _ in progress.track(range(steps_per_epoch), what=f'{what}, epoch {epoch}'):
      state, metrics = step(state, devices.shard(next(batches), len(on_devices)))
      losses_.append(metrics['loss'])
      dices.append(metrics['dice'])
    loss = float(np.mean(losses_))
    if not np.isfinite(loss):
      raise FloatingPointError(f'{what}: the loss of epoch {epoch} is {loss}')
    held_out = validation_dice(evaluate, state.variables, validation)
    yield state, Epoch(epoch, loss, float(np.mean(dices)), held_out)
