"""Noise that belongs to places: a voxel's draw depends on key and block alone.

So a simulation gives the same bits whatever else is active, padded or in the batch.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from covid3way.simulator.blocks import EDGE

# Voxels between lattice points. They divide a block, and two blocks of lattice reach
# over one block of voxels wherever the lattice is shifted to.
_PITCHES = (1, 2, 4)


def uniform(key: jax.Array, number: jax.Array) -> jax.Array:
  """(n,) block numbers -> (n, 8, 8, 8) float32 uniform in [0, 1)."""
  draw = lambda b: jax.random.uniform(jax.random.fold_in(key, b), (EDGE,) * 3)  # noqa: E731
  return jax.vmap(draw)(number)


def normal(
  key: jax.Array,
  number: jax.Array,
  grid: tuple[int, int, int],
  pitch: tuple[int, int, int] = (1, 1, 1),
) -> jax.Array:
  """Unit normal noise, correlated over about `pitch` voxels, (n, 8, 8, 8) float32.

  White noise on a lattice is interpolated linearly with weights of unit length, so that
  every voxel is exactly unit normal and the population law stays exact. The lattice
  shifts with the key, so that no voxel is nearer to it than others in the long run.

  Args:
    key: of this transition.
    number: (n,) block numbers.
    grid: blocks along x, y, z.
    pitch: lattice spacing along x, y, z, one of 1, 2, 4 voxels.
  """
  if pitch == (1, 1, 1):
    draw = lambda b: jax.random.normal(jax.random.fold_in(key, b), (EDGE,) * 3)  # noqa: E731
    return jax.vmap(draw)(number)
  key, shift_key = jax.random.split(key)
  shifts = jax.random.randint(shift_key, (3,), 0, jnp.array(pitch))
  points = tuple(EDGE // p for p in pitch)
  # A block needs its own lattice and the first points of the next blocks; beyond the
  # grid the numbering goes on as if the grid were one block larger.
  _, gy, gz = grid
  x, y, z = number // (gy * gz), number // gz % gy, number % gz

  def lattice(offset):
    unique = ((x + offset[0]) * (gy + 1) + y + offset[1]) * (gz + 1) + z + offset[2]
    draw = lambda b: jax.random.normal(jax.random.fold_in(key, b), points)  # noqa: E731
    return jax.vmap(draw)(unique)

  corners = {o: lattice(o) for o in itertools.product((0, 1), repeat=3)}

  def joined(axis, prefix=()):
    if axis == 3:
      return corners[prefix]
    halves = [joined(axis + 1, (*prefix, i)) for i in (0, 1)]
    return jnp.concatenate(halves, axis=axis + 1)

  field = joined(0)
  for axis, (p, shift) in enumerate(zip(pitch, shifts, strict=True)):
    field = _interpolate(field, axis + 1, p, shift)
  return field


def pitch_for(
  noise_mm: float, spacing_mm: tuple[float, float, float]
) -> tuple[int, int, int]:
  """The lattice spacing, in voxels, nearest to a correlation length."""
  ratio = [
    abs(np.log(np.array(_PITCHES) * s / max(noise_mm, 1e-6))) for s in spacing_mm
  ]
  return tuple(_PITCHES[int(r.argmin())] for r in ratio)


def _interpolate(field: jax.Array, axis: int, pitch: int, shift: jax.Array):
  """A lattice along one axis -> its 8 voxels, weighted to unit length."""
  position = jnp.arange(EDGE) + shift
  below = position // pitch
  share = (position % pitch / pitch).reshape([-1 if a == axis else 1 for a in range(4)])
  low, high = (jnp.take(field, below + i, axis=axis) for i in (0, 1))
  return ((1 - share) * low + share * high) / jnp.sqrt((1 - share) ** 2 + share**2)
