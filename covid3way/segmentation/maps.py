"""The probability map of each part of a method, in the standard space."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from covid3way import progress
from covid3way.segmentation import oblique_map
from covid3way.segmentation.aggregators import LEVELS
from covid3way.segmentation.model import Model
from covid3way.segmentation.sub_volumes import sub_volume_map
from covid3way.training import views


@functools.partial(jax.jit, static_argnames=('network', 'view'))
def predict_slices(network, view: str, variables, signal, indices) -> jax.Array:
  """Signal (x, y, z) and slices (b, d) of each stack -> uint8 (b, h, w).

  One compilation serves all scans of a standard space.
  """
  stacks = views.gather(signal, indices, view).astype(jnp.float32)
  logits = network.apply(variables, stacks, train=False)
  return jnp.round(jax.nn.softmax(logits)[..., 1] * LEVELS).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames='network')
def predict_stacks(network, variables, stacks) -> jax.Array:
  """Stacks (b, ..., c) -> float32 (b, ...) probabilities."""
  return jax.nn.softmax(network.apply(variables, stacks, train=False))[..., 1]


def probability_map(
  model: Model, part: str, signal: jax.Array, lungs: np.ndarray, *, batch_size: int
) -> np.ndarray:
  """Infection probability of every voxel as one part of the method sees it.

  What does not cross the lungs is not computed: it stays 0.

  Args:
    model: the trained networks.
    part: of the method, one that predicts.
    signal: (x, y, z) in the model's standard space, window units.
    lungs: (x, y, z) lung mask in that space.
    batch_size: slices, planes or sub-volumes computed at once.

  Returns:
    (x, y, z) uint8, 0 ... 255 for 0 ... 1.
  """
  sampling = model.spec.about.parts[part].sampling
  compute = {'slices': _of_slices, 'volumes': _of_volumes, 'planes': _of_planes}
  return compute[sampling](model, part, signal, lungs, batch_size)


def _of_slices(model: Model, part: str, signal, lungs, batch_size: int) -> np.ndarray:
  view = model.spec.about.parts[part].view
  axis = views.NORMAL_AXIS[view]
  crossing = lungs.any(axis=tuple(a for a in range(3) if a != axis))
  wanted = np.flatnonzero(crossing)
  result = np.zeros(signal.shape, np.uint8)
  slices = np.moveaxis(result, axis, 0)
  network, variables = model.spec.network_of(part), model.variables[part]
  starts = range(0, len(wanted), batch_size)
  for start in progress.track(starts, what=f'view {part}'):
    indices = wanted[start : start + batch_size]
    # The last batch is filled up with its last slice: one shape, one compilation.
    full = np.pad(indices, (0, batch_size - len(indices)), mode='edge')
    stacks = views.stack_indices(full, model.spec.offsets_voxels(part), len(crossing))
    computed = predict_slices(network, view, variables, signal, stacks)
    slices[indices] = computed[: len(indices)]
  return result


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
