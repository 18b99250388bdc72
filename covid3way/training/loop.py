"""Training one U-Net on the slice stacks of one view."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from covid3way import progress
from covid3way.base import TrainingError
from covid3way.networks.unet import UNet
from covid3way.training import devices, losses
from covid3way.training.distort import Distortion, distort

Batch = dict[str, np.ndarray]
_MEANS = ('loss', 'dice', 'gradient_norm', 'update_norm', 'parameter_norm')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a step is made.

  Attributes:
    network: with the precision that it computes in.
    optimiser: of its parameters.
    schedule: of the optimiser's learning rate.
    loss: of logits, labels and weights, with `class_weights`; see `losses`.
    class_weights: of cross-entropy: other, target.
    distortion: of each stack.
    pixel_mm: size of a pixel of the view.
    average: decay of the moving average of the variables, per step; 0: none is kept.
    parts: of a device's share of a batch that are computed one after the other, for
      batches that do not fit. Batch statistics and Dice are then those of each part.
  """

  network: UNet
  optimiser: optax.GradientTransformation
  schedule: optax.Schedule
  loss: Callable[..., jax.Array]
  class_weights: tuple[float, ...]
  distortion: Distortion
  pixel_mm: tuple[float, float]
  average: float = 0.0
  parts: int = 1


@flax.struct.dataclass
class TrainState:
  """What training carries from step to step.

  Attributes:
    variables: `params` and `batch_stats` of the network.
    averaged: their moving average over the steps; None where none is kept.
    opt_state: of the optimiser.
    step: batches seen, which is the number of the next one.
    sums: of the metrics, over the batches of the epoch so far.
  """

  variables: Any
  averaged: Any
  opt_state: Any
  step: jax.Array
  sums: dict[str, jax.Array]

  @property
  def result(self) -> Any:
    """The variables to predict with."""
    return self.variables if self.averaged is None else self.averaged


@dataclasses.dataclass(frozen=True)
class Epoch:
  """What one epoch gave: means of its steps, and Dice of validation at its end."""

  epoch: int
  step: int
  loss: float
  dice: float
  gradient_norm: float
  update_norm: float
  parameter_norm: float
  learning_rate: float
  validation_dice: float


@dataclasses.dataclass(frozen=True)
class Pace:
  """How fast an epoch went, since the last start of the program.

  Attributes:
    images_per_s: slice stacks trained on, all devices together.
    waiting_share: of the time spent waiting for data.
    seconds: of the steps, validation not counted.
  """

  images_per_s: float
  waiting_share: float
  seconds: float


def init_state(recipe: Recipe, key: jax.Array, stacks: Any) -> TrainState:
  """Fresh weights for stacks (b, h, w, d) of a given size."""
  variables = jax.jit(recipe.network.init, static_argnames='train')(
    key, jnp.zeros(stacks[:1].shape), train=False
  )
  return TrainState(
    variables,
    variables if recipe.average else None,
    recipe.optimiser.init(variables['params']),
    jnp.int32(0),
    _no_sums(),
  )


def _no_sums() -> dict[str, jax.Array]:
  return {name: jnp.float32(0) for name in _MEANS}


def make_step(recipe: Recipe) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
  """One optimiser step on one device's share of a batch.

  The batch has `stacks`, `labels`, `weights`, `seeds` and `stop`, see `pipeline`; the
  step returns its metrics, too, among them how many rows said `stop`.
  """
  network = recipe.network.clone(axis_name=devices.AXIS)

  def step(state, batch):
    params = state.variables['params']
    batch_stats, (gradient, metrics) = _gradient(
      recipe, network, state.variables, _distorted(batch, recipe)
    )
    gradient = devices.mean(gradient)
    update, opt_state = recipe.optimiser.update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, update)
    variables = {'params': params, 'batch_stats': batch_stats}
    metrics |= {
      'gradient_norm': optax.tree.norm(gradient),
      'update_norm': optax.tree.norm(update),
      'parameter_norm': optax.tree.norm(params),
    }
    after = TrainState(
      variables,
      _averaged(state, variables, recipe.average),
      opt_state,
      state.step + 1,
      {name: state.sums[name] + metrics[name] for name in _MEANS},
    )
    return after, metrics | {'stop': devices.total(batch['stop'].sum())}

  return step


def _distorted(batch: Batch, recipe: Recipe) -> Batch:
  def one(seed, stack, label, weight):
    key = jax.random.key(seed)
    stack = stack.astype(jnp.float32)
    return distort(key, stack, label, weight, recipe.distortion, recipe.pixel_mm)

  names = ('stacks', 'labels', 'weights')
  distorted = jax.vmap(one)(batch['seeds'], *(batch[name] for name in names))
  return dict(zip(names, distorted, strict=True))


def _gradient(recipe: Recipe, network: UNet, variables: Any, batch: Batch):
  """New batch statistics, and the gradient and metrics, averaged over the parts."""

  def objective(params, batch_stats, batch):
    logits, updates = network.apply(
      {'params': params, 'batch_stats': batch_stats},
      batch['stacks'],
      train=True,
      mutable=['batch_stats'],
    )
    known = logits, batch['labels'].astype(jnp.int32), batch['weights']
    loss = recipe.loss(*known, class_weights=recipe.class_weights)
    metrics = {'loss': loss, 'dice': losses.soft_dice(*known)}
    return loss, (metrics, updates['batch_stats'])

  def part(batch_stats, batch):
    gradient, (metrics, batch_stats) = jax.grad(objective, has_aux=True)(
      variables['params'], batch_stats, batch
    )
    return batch_stats, (gradient, metrics)

  if recipe.parts == 1:
    return part(variables['batch_stats'], batch)
  split = jax.tree.map(lambda x: x.reshape(recipe.parts, -1, *x.shape[1:]), batch)
  batch_stats, each = jax.lax.scan(part, variables['batch_stats'], split)
  return batch_stats, jax.tree.map(lambda x: x.mean(axis=0), each)


def _averaged(state: TrainState, variables: Any, decay: float) -> Any:
  if not decay:
    return None
  # At the start the average follows quickly, or it would remember fresh weights.
  share = jnp.maximum(1 - decay, 9.0 / (10.0 + state.step))
  return optax.incremental_update(variables, state.averaged, share)


def make_evaluate(network: UNet) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
  """Counts of a batch from which Dice is made: one device's share, summed over all."""

  def evaluate(variables, batch):
    logits = network.apply(variables, batch['stacks'], train=False)
    predicted = (logits.argmax(-1) == 1) & batch['weights']
    wanted = batch['labels'] & batch['weights']
    counts = (predicted & wanted).sum(), predicted.sum() + wanted.sum()
    return devices.total(counts)

  return evaluate


def validation_dice(evaluate, variables: Any, batches: Sequence[Batch]) -> float:
  """Dice of class 1 over all given batches; NaN when there are none."""
  counts = np.array([evaluate(variables, batch) for batch in batches]).reshape(-1, 2)
  overlap, size = counts.sum(axis=0, dtype=float)
  return 2 * overlap / size if size else float('nan')


def train(
  state: TrainState,
  recipe: Recipe,
  batches_of: Callable[[range], Iterator[Batch]],
  *,
  epochs: int,
  steps_per_epoch: int,
  validation: Sequence[Batch],
  on_devices: Sequence[jax.Device],
  what: str,
  stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[TrainState, Epoch | None, Pace]]:
  """Trains; yields the state, its figures and its pace after each epoch.

  All that a step depends on is in the state, its number included: from a kept state
  training goes on bit by bit as if it had never been interrupted.

  Args:
    state: to begin with, or to go on from.
    recipe: of a step.
    batches_of: numbers of steps -> this process's rows of their batches.
    epochs: to have run in the end.
    steps_per_epoch: batches per epoch.
    validation: this process's rows of batches to measure Dice on after each epoch.
    on_devices: to run on.
    what: words for the progress bar.
    stop: asked before every step; when it is time for any process, the state as it is
      is yielded, with None for figures unless an epoch ended, and nothing more.

  Raises:
    TrainingError: the loss or a norm is no longer finite.
  """
  step = devices.parallel(make_step(recipe), on_devices)
  evaluate = devices.parallel(make_evaluate(recipe.network), on_devices)
  for epoch in range(int(state.step) // steps_per_epoch + 1, epochs + 1):
    numbers = range(int(state.step), epoch * steps_per_epoch)
    state, pace, stopped = _steps(
      step, state, batches_of(numbers), numbers, f'{what}, epoch {epoch}', stop
    )
    if int(state.step) < epoch * steps_per_epoch:
      yield state, None, pace
      return
    means = {name: float(sum_) / steps_per_epoch for name, sum_ in state.sums.items()}
    rate = float(recipe.schedule(state.step - 1))
    dice = validation_dice(evaluate, state.result, validation)
    state = state.replace(sums=_no_sums())
    at = {'epoch': epoch, 'step': int(state.step), 'learning_rate': rate}
    yield state, Epoch(**at, **means, validation_dice=dice), pace
    if stopped:
      return


def _steps(
  step, state: TrainState, batches: Iterator[Batch], numbers: range, what: str, stop
) -> tuple[TrainState, Pace, bool]:
  """Steps until the epoch ends or any process wants to stop."""
  start, waited, images, before, stopped = time.monotonic(), 0.0, 0, None, False
  with progress.beating(what) as now:
    for number in progress.track(numbers, what=what):
      now.is_(f'step {number}: waiting for its batch')
      asked = time.monotonic()
      batch = next(batches)
      waited += time.monotonic() - asked
      now.is_(f'step {number}: computing')
      rows = len(batch['labels'])
      state, metrics = step(state, batch | {'stop': np.full(rows, stop())})
      images += rows * jax.process_count()
      # The step before is looked at while this one runs.
      stopped = before is not None and _is_last(before, number - 1, what)
      before = metrics
      if stopped:
        break
    if before is not None:
      stopped |= _is_last(before, number, what)
  seconds = time.monotonic() - start
  return state, Pace(images / seconds, waited / seconds, seconds), stopped


def _is_last(metrics: Mapping[str, jax.Array], number: int, what: str) -> bool:
  values = {name: float(metrics[name]) for name in (*_MEANS, 'stop')}
  if not all(math.isfinite(value) for value in values.values()):
    known = ', '.join(f'{name} {values[name]:.4g}' for name in _MEANS)
    raise TrainingError(
      what,
      f'step {number} is the first that is not finite: {known}',
      'lower config.training.learning_rate, set clip_norm, or look at the scans',
    )
  return values['stop'] > 0
