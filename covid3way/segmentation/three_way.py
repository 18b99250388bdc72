"""Three probability maps and their aggregation (paper, Section III-D, Eq. (6))."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from covid3way import progress
from covid3way.segmentation import aggregators
from covid3way.segmentation.aggregators import LEVELS, Aggregator
from covid3way.segmentation.model import Model
from covid3way.training import views


@functools.partial(jax.jit, static_argnames=('network', 'view'))
def predict_slices(network, view: str, variables, signal, indices) -> jax.Array:
  """Signal (x, y, z) and slices (b, d) of each stack -> uint8 (b, h, w).

  One compilation serves all scans of a standard space.
  """
  stacks = views.gather(signal, indices, view).astype(jnp.float32)
  logits = network.apply(variables, stacks, train=False)
  return jnp.round(jax.nn.softmax(logits)[..., 1] * LEVELS).astype(jnp.uint8)


def probability_map(
  model: Model, view: str, signal: jax.Array, lungs: np.ndarray, *, batch_size: int
) -> np.ndarray:
  """Infection probability of every voxel as one view sees it.

  Slices that do not cross the lungs are not computed: they stay 0.

  Args:
    model: the trained networks.
    view: a key of `views.NORMAL_AXIS`.
    signal: (x, y, z) in the model's standard space, window units.
    lungs: (x, y, z) lung mask in that space.
    batch_size: slices computed at once.

  Returns:
    (x, y, z) uint8, 0 ... 255 for 0 ... 1.
  """
  axis = views.NORMAL_AXIS[view]
  crossing = lungs.any(axis=tuple(a for a in range(3) if a != axis))
  wanted = np.flatnonzero(crossing)
  result = np.zeros(signal.shape, np.uint8)
  slices = np.moveaxis(result, axis, 0)
  network, variables = model.spec.network, model.variables[view]
  starts = range(0, len(wanted), batch_size)
  for start in progress.track(starts, what=f'view {view}'):
    indices = wanted[start : start + batch_size]
    # The last batch is filled up with its last slice: one shape, one compilation.
    full = np.pad(indices, (0, batch_size - len(indices)), mode='edge')
    stacks = views.stack_indices(full, model.spec.offsets_voxels(view), len(crossing))
    computed = predict_slices(network, view, variables, signal, stacks)
    slices[indices] = computed[: len(indices)]
  return result


def aggregate(
  maps: Mapping[str, np.ndarray], lungs: np.ndarray, aggregator: Aggregator
) -> tuple[np.ndarray, np.ndarray]:
  """Eq. (6), inside the lungs.

  Args:
    maps: uint8 (x, y, z) probability maps per view, 0 ... 255 for 0 ... 1.
    lungs: (x, y, z) lung mask.
    aggregator: g.

  Returns:
    probability: (x, y, z) float16, mean of the maps, in [0, 1]; 0 outside the lungs.
    mask: (x, y, z) bool.
  """
  total = np.zeros(lungs.shape, np.uint16)
  for each in maps.values():
    total += each
  total *= lungs > 0
  probability = (total / np.float32(len(maps) * LEVELS)).astype(np.float16)
  return probability, aggregators.apply(aggregator, maps, lungs > 0)
