"""The three views and their slice stacks (paper, Section III-D). A view is data."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# View -> the axis that its slices are normal to; a slice keeps the other two in order.
NORMAL_AXIS = {'xy': 2, 'yz': 0, 'xz': 1}


def offsets_voxels(
  offsets_mm: Sequence[float], spacing_mm: Sequence[float], view: str
) -> tuple[int, ...]:
  """Slice offsets in voxels: -5 ... 5 mm are -8, -3, 0, 3, 8 voxels of 334/512 mm."""
  step_mm = spacing_mm[NORMAL_AXIS[view]]
  return tuple(round(mm / step_mm) for mm in offsets_mm)


def stack_indices(indices: Sequence[int], offsets: Sequence[int], n: int) -> np.ndarray:
  """(b,) central slices -> (b, d) slices of each stack; beyond the ends, the last one.

  The ends of the standard space are air, so repeating the last slice pads with air.
  """
  return np.clip(np.add.outer(indices, offsets), 0, n - 1)


def gather(volume: jax.Array, indices: jax.Array, view: str) -> jax.Array:
  """Takes slice stacks out of a volume.

  Args:
    volume: (x, y, z).
    indices: (b, d) slices along the view's normal axis.
    view: a key of `NORMAL_AXIS`.

  Returns:
    (b, h, w, d).
  """
  slices = jnp.moveaxis(volume, NORMAL_AXIS[view], 0)[indices]
  return jnp.moveaxis(slices, 1, -1)


def central_window(
  extent_mm: Sequence[float],
  shape: Sequence[int],
  spacing_mm: Sequence[float],
  *,
  strides: Sequence[int],
) -> tuple[slice, slice, slice]:
  """The middle of a volume, at least `extent_mm` wide where the volume is.

  Args:
    extent_mm: wanted along x, y, z.
    shape: voxels of the volume, multiples of `strides`.
    spacing_mm: of its voxels.
    strides: the window's sides are multiples of them.
  """
  window = []
  each = zip(extent_mm, shape, spacing_mm, strides, strict=True)
  for mm, n, step_mm, stride in each:
    side = min(math.ceil(round(mm / step_mm, 6) / stride) * stride, n)
    start = (n - side) // 2
    window.append(slice(start, start + side))
  return tuple(window)
