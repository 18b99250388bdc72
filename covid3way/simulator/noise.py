"""Noise that belongs to places: a voxel's draws depend on key and place alone.

So a simulation gives the same bits whatever else is active, padded or in the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from covid3way.simulator.blocks import EDGE, Blocks, coordinates

_VOXELS, _CELLS, _SHIFT, SATELLITES = range(4)  # What draws are for.


def draw(
  key: jax.Array, held: Blocks, pitch: tuple[int, int, int] = (1, 1, 1)
) -> tuple[jax.Array, jax.Array]:
  """What chance decides in one transition, two times (n, 4, 4, 4) float32.

  Correlated noise is one draw for all voxels of a cell: every voxel is exactly unit
  normal, which the population law asks for. The cells shift with the key, so that over
  some transitions nothing is left of their borders, and the correlation of what adds
  up falls linearly to 0 over a cell's width.

  Args:
    key: of this transition.
    held: active blocks.
    pitch: voxels of a cell along x, y, z; 1 is white.

  Returns:
    z, unit normal, and u, uniform in [0, 1) and white.
  """
  voxels = held.number[:, None] * EDGE**3 + jnp.arange(EDGE**3)
  first, second = uniforms(key, voxels.reshape(-1, EDGE, EDGE, EDGE), _VOXELS)
  if pitch != (1, 1, 1):
    shifts = jnp.floor(uniforms(key, jnp.arange(3), _SHIFT)[0] * jnp.array(pitch))
    first, _ = uniforms(key, _cells(held, pitch, shifts.astype(jnp.int32)), _CELLS)
  # The 2 ** 23 steps of a uniform draw are centred, so that none is at an end.
  return np.sqrt(2) * jax.scipy.special.erfinv(2 * first - (1 - 2.0**-23)), second


def uniforms(
  key: jax.Array, number: jax.Array, purpose: int
) -> tuple[jax.Array, jax.Array]:
  """Two draws, uniform in [0, 1), for every number: two of its shape, float32.

  One hash of (number, purpose) gives both.
  """
  counter = number.ravel().astype(jnp.uint32)
  pairs = jnp.concatenate([counter, jnp.full_like(counter, purpose)])
  words = threefry_2x32(jax.random.key_data(key)[:2], pairs)
  floats = (words >> 9).astype(jnp.float32) * np.float32(2**-23)
  return tuple(floats.reshape(2, *number.shape))


def pitch_for(
  noise_mm: float, spacing_mm: tuple[float, float, float]
) -> tuple[int, int, int]:
  """The cell, in voxels, whose sides are nearest to a correlation length."""
  return tuple(max(round(noise_mm / s), 1) for s in spacing_mm)


def _cells(held: Blocks, pitch: tuple[int, int, int], shifts: jax.Array) -> jax.Array:
  """Number of the cell that each voxel lies in, (n, 4, 4, 4) int32."""
  at = coordinates(held.number, held.grid) * EDGE
  number = 0
  for axis, p in enumerate(pitch):
    line = (at[:, axis, None] + jnp.arange(EDGE) + shifts[axis]) // p
    line = jnp.expand_dims(line, [1 + a for a in range(3) if a != axis])
    number = number * (held.grid[axis] * EDGE // p + 2) + line
  return number
