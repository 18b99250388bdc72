"""One step of a training: its recipe, the state it carries, and how it is made."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from covid3way.training import devices, losses
from covid3way.training.distort import Distortion, distort

Batch = dict[str, np.ndarray]
METRICS = ('loss', 'dice', 'gradient_norm', 'update_norm', 'parameter_norm')


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
    average: decay of the moving average of the variables, per step; 0: none is kept.
    parts: of a device's share of a batch that are computed one after the other, for
      batches that do not fit. Batch statistics and Dice are then those of each part.
  """

  network: nn.Module
  optimiser: optax.GradientTransformation
  schedule: optax.Schedule
  loss: Callable[..., jax.Array]
  class_weights: tuple[float, ...]
  distortion: Distortion
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


# What runs once is compiled in a hurry: without, this is a third of all compilation.
@functools.partial(
  jax.jit,
  static_argnums=(0, 2),
  compiler_options={'xla_backend_optimization_level': 0},
)
def fresh_variables(network: nn.Module, key: jax.Array, shape: tuple[int, ...]) -> Any:
  """Weights to begin with.

  Args:
    network: whose they are.
    key: of the draws.
    shape: of a sample, channels last, as small as the network takes: weights know
      nothing of the other sides, so views of other shapes share a compilation.
  """
  # Some networks keep no statistics of batches.
  return {'batch_stats': {}} | network.init(key, jnp.zeros((1, *shape)), train=False)


def init_state(recipe: Recipe, variables: Any) -> TrainState:
  """The state before the first step, with weights to begin with."""
  return TrainState(
    variables,
    variables if recipe.average else None,
    recipe.optimiser.init(variables['params']),
    jnp.int32(0),
    no_sums(),
  )


def no_sums() -> dict[str, jax.Array]:
  """The sums at the start of an epoch."""
  return {name: jnp.float32(0) for name in METRICS}


def make_step(recipe: Recipe) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
  """One optimiser step on one device's share of a batch.

  The batch is as of `pipeline`, with `stop` for each row; the step returns its metrics,
  too, among them how many rows said so.
  """
  network = recipe.network.clone(axis_name=devices.AXIS)

  def step(state, batch):
    params = state.variables['params']
    batch_stats, (gradient, metrics) = _gradient(
      recipe, network, state.variables, _distorted(batch, recipe)
    )
    gradient = devices.mean(gradient)
    update, opt_state = optax.with_extra_args_support(recipe.optimiser).update(
      gradient, state.opt_state, params, value=metrics['loss']
    )
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
      {name: state.sums[name] + metrics[name] for name in METRICS},
    )
    return after, metrics | {'stop': devices.total(batch['stop'].sum())}

  return step


def _distorted(batch: Batch, recipe: Recipe) -> Batch:
  def one(seed, pixel_mm, stack, label, weight):
    key, stack = jax.random.key(seed), stack.astype(jnp.float32)
    return distort(key, stack, label, weight, recipe.distortion, pixel_mm)

  names = ('stacks', 'labels', 'weights')
  known = (batch[name] for name in ('seeds', 'pixels_mm', *names))
  distorted = jax.vmap(one)(*known)
  return dict(zip(names, distorted, strict=True))


def _gradient(recipe: Recipe, network: nn.Module, variables: Any, batch: Batch):
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
    return loss, (metrics, updates.get('batch_stats', {}))

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


def make_evaluate(
  network: nn.Module,
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
  """Counts of a batch from which Dice is made: one device's share, summed over all."""

  def evaluate(variables, batch):
    logits = network.apply(variables, batch['stacks'], train=False)
    predicted = (logits.argmax(-1) == 1) & batch['weights']
    wanted = batch['labels'] & batch['weights']
    counts = (predicted & wanted).sum(), predicted.sum() + wanted.sum()
    return devices.total(counts)

  return evaluate


@functools.lru_cache(maxsize=8)
def compiled(
  recipe: Recipe, on_devices: tuple[jax.Device, ...]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Step and evaluation on devices: compiled once for all views of one size."""
  return (
    devices.parallel(make_step(recipe), on_devices),
    devices.parallel(make_evaluate(recipe.network), on_devices),
  )
