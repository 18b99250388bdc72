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
    step: batches seen, which is the number of the next one.
    sums: of the metrics, over the batches of the epoch so far.
  """

  variables: Any
  opt_state: Any
  step: jax.Array
  sums: dict[str, jax.Array]


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
  return TrainState(
    variables, optimiser.init(variables['params']), jnp.int32(0), _no_sums()
  )


def _no_sums() -> dict[str, jax.Array]:
  return {name: jnp.float32(0) for name in ('loss', 'dice')}


def make_step(
  network: UNet,
  optimiser: optax.GradientTransformation,
  class_weights: Sequence[float],
) -> Callable[[TrainState, Batch], TrainState]:
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
    metrics = {'loss': loss, 'dice': dice}
    return TrainState(
      {'params': params, 'batch_stats': batch_stats},
      opt_state,
      state.step + 1,
      jax.tree.map(jnp.add, state.sums, metrics),
    )

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
  batch_at: Callable[[int], Batch],
  *,
  network: UNet,
  optimiser: optax.GradientTransformation,
  class_weights: Sequence[float],
  epochs: int,
  steps_per_epoch: int,
  validation: Sequence[Batch],
  on_devices: Sequence[jax.Device],
  what: str,
  stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[TrainState, Epoch | None]]:
  """Trains; yields the state and its figures after each epoch.

  All that a step depends on is in the state, its number included: from a kept state
  training goes on bit by bit as if it had never been interrupted.

  Args:
    state: to begin with, or to go on from.
    batch_at: number of a step -> its batch, a multiple of the number of devices long.
    network: whose variables the state holds.
    optimiser: whose state it holds.
    class_weights: of cross-entropy.
    epochs: to have run in the end.
    steps_per_epoch: batches per epoch.
    validation: batches to measure Dice on after each epoch.
    on_devices: to run on.
    what: words for the progress bar.
    stop: asked after every step; when it is time, the state as it is is yielded, with
      None for figures unless an epoch ended, and nothing more.

  Raises:
    FloatingPointError: the loss is no longer finite.
  """
  step = devices.parallel(make_step(network, optimiser, class_weights), on_devices)
  evaluate = make_evaluate(network)
  for number in range(int(state.step) // steps_per_epoch, epochs):
    end = (number + 1) * steps_per_epoch
    todo, epoch = range(int(state.step), end), number + 1
    for at in progress.track(todo, what=f'{what}, epoch {epoch}'):
      state = step(state, devices.shard(batch_at(at), len(on_devices)))
      if stop() and at + 1 < end:
        yield state, None
        return
    means = {name: float(sum_) / steps_per_epoch for name, sum_ in state.sums.items()}
    if not np.isfinite(means['loss']):
      raise FloatingPointError(f'{what}: the loss of epoch {epoch} is {means["loss"]}')
    held_out = validation_dice(evaluate, state.variables, validation)
    state = state.replace(sums=_no_sums())
    yield state, Epoch(epoch, means['loss'], means['dice'], held_out)
    if stop():
      return
