"""Optimisers, and schedules of the learning rate: functions that a config names."""

import inspect
from collections.abc import Callable

import optax
import optax.contrib

from covid3way.base import ConfigError

_PLATEAU_STEPS, _PLATEAU_PATIENCE = 100, 10


def constant(learning_rate: float, steps: int, warmup_steps: int) -> optax.Schedule:
  """The same learning rate all along, after a linear rise over `warmup_steps`."""
  del steps
  if not warmup_steps:
    return optax.constant_schedule(learning_rate)
  return optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)


def cosine(learning_rate: float, steps: int, warmup_steps: int) -> optax.Schedule:
  """A fall to 0 on a cosine, after a linear rise over `warmup_steps`."""
  if not warmup_steps:
    return optax.cosine_decay_schedule(learning_rate, steps)
  return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, steps)


def poly(learning_rate: float, steps: int, warmup_steps: int) -> optax.Schedule:
  """A fall to 0 as (1 - step / steps)^0.9, after a linear rise over `warmup_steps`."""
  fall = optax.polynomial_schedule(learning_rate, 0.0, 0.9, steps - warmup_steps)
  if not warmup_steps:
    return fall
  rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([rise, fall], [warmup_steps])


def momentum_sgd(learning_rate: optax.Schedule) -> optax.GradientTransformation:
  """Stochastic gradient descent with a momentum of 0.9."""
  return optax.sgd(learning_rate, momentum=0.9)


def heavy_momentum_sgd(learning_rate: optax.Schedule) -> optax.GradientTransformation:
  """The same with a momentum of 0.99, as V-Net's authors use it."""
  return optax.sgd(learning_rate, momentum=0.99)


def adam_halved_on_plateau(
  learning_rate: optax.Schedule, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
  """Adam with L2 decay; halves its steps when the training loss no longer falls.

  The loss is averaged over `_PLATEAU_STEPS` steps; it has fallen when it is lower by
  0.01 %, and may fail to for `_PLATEAU_PATIENCE` averages.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.adam(learning_rate),
    optax.contrib.reduce_on_plateau(
      factor=0.5, patience=_PLATEAU_PATIENCE, accumulation_size=_PLATEAU_STEPS
    ),
  )


def make(
  optimiser: Callable[..., optax.GradientTransformation],
  schedule: optax.Schedule,
  *,
  clip_norm: float,
  weight_decay: float,
) -> optax.GradientTransformation:
  """An optimiser of gradients whose global norm is clipped first.

  Args:
    optimiser: such as `optax.adamw`; takes a schedule and, if need be, `weight_decay`.
    schedule: of the learning rate.
    clip_norm: largest global norm of a gradient; 0: any.
    weight_decay: for an optimiser that knows it.

  Raises:
    ConfigError: the optimiser knows no weight decay.
  """
  knows = 'weight_decay' in inspect.signature(optimiser).parameters
  if weight_decay and not knows:
    raise ConfigError(
      'config.training.weight_decay',
      f'{weight_decay} with {getattr(optimiser, "__name__", optimiser)}',
      'use 0, or an optimiser that decays weights, such as optax.adamw',
    )
  # Said even when it is 0: an optimiser may have another default.
  made = optimiser(schedule, **({'weight_decay': weight_decay} if knows else {}))
  return optax.chain(optax.clip_by_global_norm(clip_norm), made) if clip_norm else made
