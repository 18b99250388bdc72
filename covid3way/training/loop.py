"""Training one U-Net on the slice stacks of one view."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from covid3way import progress
from covid3way.base import TrainingError
from covid3way.training import devices
from covid3way.training.step import (
  METRICS,
  Batch,
  Recipe,
  TrainState,
  compiled,
  no_sums,
)


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
  now: progress.Doing,
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
    now: is told what the training is at.
    stop: asked before every step; when it is time for any process, the state as it is
      is yielded, with None for figures unless an epoch ended, and nothing more.

  Raises:
    TrainingError: the loss or a norm is no longer finite.
  """
  state = devices.placed(state, on_devices)
  step, evaluate = compiled(recipe, tuple(on_devices))
  for epoch in range(int(state.step) // steps_per_epoch + 1, epochs + 1):
    numbers = range(int(state.step), epoch * steps_per_epoch)
    state, pace, stopped = _steps(
      step, state, batches_of(numbers), numbers, f'epoch {epoch}', now, stop
    )
    if int(state.step) < epoch * steps_per_epoch:
      yield state, None, pace
      return
    means = {name: float(sum_) / steps_per_epoch for name, sum_ in state.sums.items()}
    rate = float(recipe.schedule(state.step - 1))
    now.is_(f'epoch {epoch}: validating')
    dice = validation_dice(evaluate, state.result, validation)
    state = state.replace(sums=devices.placed(no_sums(), on_devices))
    at = {'epoch': epoch, 'step': int(state.step), 'learning_rate': rate}
    yield state, Epoch(**at, **means, validation_dice=dice), pace
    if stopped:
      return


def _steps(
  step,
  state: TrainState,
  batches: Iterator[Batch],
  numbers: range,
  what: str,
  now: progress.Doing,
  stop: Callable[[], bool],
) -> tuple[TrainState, Pace, bool]:
  """Steps until the epoch ends or any process wants to stop."""
  start, waited, images, before, stopped = time.monotonic(), 0.0, 0, None, False
  for number in progress.track(numbers, what=f'{now.what}, {what}'):
    now.is_(f'{what}, step {number}: waiting for its batch')
    asked = time.monotonic()
    batch = next(batches)
    waited += time.monotonic() - asked
    now.is_(f'{what}, step {number}: computing')
    rows = len(batch['labels'])
    state, metrics = step(state, batch | {'stop': np.full(rows, stop())})
    images += rows * jax.process_count()
    # The step before is looked at while this one runs.
    stopped = before is not None and _asks_to_stop(before, number - 1, now.what)
    before = metrics
    if stopped:
      break
  if before is not None:
    stopped |= _asks_to_stop(before, number, now.what)
  seconds = time.monotonic() - start
  return state, Pace(images / seconds, waited / seconds, seconds), stopped


def _asks_to_stop(metrics: Mapping[str, jax.Array], number: int, what: str) -> bool:
  """Whether any process asked to, before a step.

  Raises:
    TrainingError: its loss or a norm is not finite.
  """
  values = {k: float(v) for k, v in jax.device_get(metrics).items()}
  if not all(math.isfinite(value) for value in values.values()):
    known = ', '.join(f'{name} {values[name]:.4g}' for name in METRICS)
    raise TrainingError(
      what,
      f'step {number} is the first that is not finite: {known}',
      'lower config.training.learning_rate, set clip_norm, or look at the scans',
    )
  return values['stop'] > 0
