"""Noise that belongs to places: a voxel's draws depend on key and block alone.

So a simulation gives the same bits whatever else is active, padded or in the batch.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from covid3way.simulator.blocks import EDGE

# Voxels between lattice points. They divide a block, and two blocks of lattice reach
# over one block of voxels wherever the lattice is shifted to.
_PITCHES = (1, 2, 4)
_VOXELS, _LATTICE, _SHIFT, SATELLITES = range(4)  # What draws are for.
Triple = tuple[int, int, int]


def draw(
  key: jax.Array, number: jax.Array, grid: Triple, pitch: Triple = (1, 1, 1)
) -> tuple[jax.Array, jax.Array]:
  """What chance decides in one transition, two times (n, 8, 8, 8) float32.

  Correlated noise is white noise on a lattice, interpolated linearly with weights of
  unit length: every voxel stays exactly unit normal, and the population law exact. The
  lattice shifts with the key, so that in the long run no voxel is nearer to it.

  Args:
    key: of this transition.
    number: (n,) block numbers.
    grid: blocks along x, y, z.
    pitch: lattice spacing along x, y, z, one of 1, 2, 4 voxels: about the correlation
      length. 1 is white.

  Returns:
    z, unit normal, and u, uniform in [0, 1) and white.
  """
  voxel = number[:, None] * EDGE**3 + jnp.arange(EDGE**3)
  first, second = uniforms(key, voxel.reshape(-1, EDGE, EDGE, EDGE), _VOXELS)
  if pitch == (1, 1, 1):
    return _normal(first), second
  _, gy, gz = grid
  x, y, z = number // (gy * gz), number // gz % gy, number % gz
  offsets = np.array(list(itertools.product((0, 1), repeat=3)))
  # Lattices are numbered as blocks of a grid that is one block larger on every side.
  at = [c[:, None] + offsets[:, i] for i, c in enumerate((x, y, z))]
  unique = (at[0] * (gy + 1) + at[1]) * (gz + 1) + at[2]
  points = tuple(EDGE // p for p in pitch)
  inside = jnp.arange(np.prod(points)).reshape(points)
  lattice = unique[:, :, None, None, None] * EDGE**3 + inside
  field = _normal(uniforms(key, lattice, _LATTICE)[0])
  field = field.reshape(-1, 2, 2, 2, *points).transpose(0, 1, 4, 2, 5, 3, 6)
  field = field.reshape(-1, *(2 * p for p in points))
  shifts = uniforms(key, jnp.arange(3), _SHIFT)[0] * jnp.array(pitch)
  for axis, (p, shift) in enumerate(zip(pitch, shifts.astype(int), strict=True)):
    field = _interpolate(field, axis + 1, p, shift)
  return field, second


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


def pitch_for(noise_mm: float, spacing_mm: tuple[float, float, float]) -> Triple:
  """The lattice spacing, in voxels, nearest to a correlation length."""
  wanted = [np.log(max(noise_mm, 1e-6) / s) for s in spacing_mm]
  return tuple(min(_PITCHES, key=lambda p, w=w: abs(np.log(p) - w)) for w in wanted)


def _normal(uniform: jax.Array) -> jax.Array:
  """Unit normal out of [0, 1); its 2 ** 23 steps are centred, so that none is at 0."""
  return np.sqrt(2) * jax.scipy.special.erfinv(2 * uniform - (1 - 2.0**-23))


def _interpolate(field: jax.Array, axis: int, pitch: int, shift: jax.Array):
  """A lattice along one axis -> its 8 voxels, weighted to unit length."""
  position = jnp.arange(EDGE) + shift
  below = position // pitch
  share = (position % pitch / pitch).reshape([-1 if a == axis else 1 for a in range(4)])
  low, high = (jnp.take(field, below + i, axis=axis) for i in (0, 1))
  return ((1 - share) * low + share * high) / jnp.sqrt((1 - share) ** 2 + share**2)
