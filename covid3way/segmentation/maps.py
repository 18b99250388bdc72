"""The probability map of each part of a method, in the standard space."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from covid3way import progress
from covid3way.networks import inference
from covid3way.networks.unet import UNet
from covid3way.segmentation import oblique_map, windows
from covid3way.segmentation.aggregators import LEVELS
from covid3way.segmentation.model import Model
from covid3way.segmentation.sub_volumes import sub_volume_map
from covid3way.training import views

PRECISIONS = ('float32', 'bfloat16')
# Batches under way at a time: a CPU has a core for each, and one keeps 0.2 GiB; an
# accelerator is given the next while the last is fetched.
_MOST_AT_A_TIME = 8
_CPU_PIXELS = 2**17  # Of a batch on a CPU: more do not stay in its cache.


@jax.jit
def predict_window(
  network: inference.Folded, stacks: jax.Array, where: inference.Boxes
) -> jax.Array:
  """Whole slice stacks (b, h, w, d) -> uint8 (b, *window).

  One compilation serves all slices, views and scans with windows of that size.
  """
  sizes = len(stacks), *where.down_size, stacks.shape[-1]
  seen = lax.dynamic_slice(stacks, (0, *where.down, 0), sizes)
  found = inference.probabilities(network, seen, where)
  return jnp.round(found * LEVELS).astype(jnp.uint8)


_gather = jax.jit(views.gather, static_argnames='view')


@functools.partial(jax.jit, static_argnames='network')
def predict_stacks(network, variables, stacks) -> jax.Array:
  """Stacks (b, ..., c) -> float32 (b, ...) probabilities."""
  return jax.nn.softmax(network.apply(variables, stacks, train=False))[..., 1]


def probability_map(
  model: Model,
  part: str,
  signal: jax.Array,
  lungs: np.ndarray,
  *,
  batch_size: int,
  precision: str = 'float32',
) -> np.ndarray:
  """Infection probability of every voxel as one part of the method sees it.

  Of slices only windows around the lungs are computed; elsewhere it is 0 there. Within
  the windows it is what whole slices give, up to the rounding of float32.

  Args:
    model: the trained networks.
    part: of the method, one that predicts.
    signal: (x, y, z) in the model's standard space, window units.
    lungs: (x, y, z) lung mask in that space.
    batch_size: slices, planes or sub-volumes computed at once; on a CPU, of slices, as
      many as its cache holds.
    precision: of slices' convolutions, `float32` or `bfloat16`.

  Returns:
    (x, y, z) uint8, 0 ... 255 for 0 ... 1.
  """
  sampling = model.spec.about.parts[part].sampling
  if sampling == 'slices':
    return _of_slices(model, part, signal, lungs, batch_size, precision)
  compute = {'volumes': _of_volumes, 'planes': _of_planes}
  return compute[sampling](model, part, signal, lungs, batch_size)


def _of_slices(
  model: Model, part: str, signal, lungs, batch_size: int, precision: str
) -> np.ndarray:
  view = model.spec.about.parts[part].view
  axis = views.NORMAL_AXIS[view]
  network, unet = _folded(model, part, precision), model.spec.network_of(part)
  offsets, n = model.spec.offsets_voxels(part), lungs.shape[axis]
  at_a_time = 2
  if jax.default_backend() == 'cpu':
    at_a_time = min(os.cpu_count(), _MOST_AT_A_TIME)
    batch_size = max(_CPU_PIXELS * n // lungs.size, 1)
  result = np.zeros(lungs.shape, np.uint8)
  slices = np.moveaxis(result, axis, 0)

  def predict(batch: tuple[np.ndarray, inference.Boxes]) -> None:
    indices, where = batch
    # The last batch is filled up with its last slice: one shape, one compilation.
    full = np.pad(indices, (0, batch_size - len(indices)), mode='edge')
    stacks = _gather(signal, views.stack_indices(full, offsets, n), view=view)
    found = np.asarray(predict_window(network, stacks, where))
    (top, left), (height, width) = where.window, where.window_size
    slices[indices, top : top + height, left : left + width] = found[: len(indices)]

  def compile_for(where: inference.Boxes) -> None:
    stacks = jnp.zeros((batch_size, *slices.shape[1:], len(offsets)), signal.dtype)
    predict_window.lower(network, stacks, where).compile()

  batches = list(windows.over(lungs, axis, unet.stride, batch_size))
  one_of_each = {where.window_size: where for _, where in batches}
  with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(at_a_time) as workers:
    # Half a second of Python for each size, even of code that was kept.
    ahead.map(compile_for, one_of_each.values())
    work = [workers.submit(predict, batch) for batch in batches]
    for done in progress.track(work, what=f'view {part}'):
      done.result()
  return result


@functools.lru_cache(maxsize=3)
def _folded(model: Model, part: str, precision: str) -> inference.Folded:
  network = model.spec.network_of(part)
  assert isinstance(network, UNet)  # No other one predicts slices.
  return _fold(network, model.variables[part], precision)


# What runs once is compiled in a hurry.
_fold = jax.jit(
  inference.fold,
  static_argnums=(0, 2),
  compiler_options={'xla_backend_optimization_level': 0},
)


def _of_volumes(model: Model, part: str, signal, lungs, batch_size: int) -> np.ndarray:
  network, variables = model.spec.network_of(part), model.variables[part]

  def predict(patches: np.ndarray) -> np.ndarray:
    return np.asarray(predict_stacks(network, variables, patches[..., None]))

  found = sub_volume_map(
    predict, np.asarray(signal), lungs, patch=model.spec.patch, batch_size=batch_size
  )
  return _levels(found)


def _of_planes(model: Model, part: str, signal, lungs, batch_size: int) -> np.ndarray:
  variables = dict(model.variables[part])
  fusion = variables.pop('fusion')
  network, grid = model.spec.network_of(part), model.spec.plane_grid

  def predict(planes: np.ndarray) -> np.ndarray:
    return np.asarray(predict_stacks(network, variables, planes[..., None]))

  seen = oblique_map.seen_from(
    predict, grid, np.asarray(signal), lungs, batch_size=batch_size
  )
  result = np.zeros(signal.shape, np.float32)
  result[lungs > 0] = oblique_map.fused(seen, fusion)
  return _levels(result)


def _levels(probability: np.ndarray) -> np.ndarray:
  return np.rint(probability * LEVELS).astype(np.uint8)
