"""Optimisers, and schedules of the learning rate: functions that a config names."""

import inspect
from collections.abc import Callable

import optax

from covid3way.base import ConfigError


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
