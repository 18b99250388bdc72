"""Noise that belongs to places: a voxel's draws depend on key and place alone.

So a simulation gives the same bits whatever else is active, padded or in the batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from covid3way.simulator.blocks import EDGE, VOXELS, Blocks, apart, coordinates

_VOXELS, _CELLS, _SHIFT, SATELLITES = range(4)  # What draws are for.
# Threefry 2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)
# Giles, "Approximating the erfinv function": polynomials in w - 2.5 and sqrt(w) - 3,
# w = -log(1 - x ** 2), of erfinv(x) / x; the highest power first.
_CENTRAL = (
  2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
  -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
  -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
  -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def draw(
  key: jax.Array, held: Blocks, pitch: tuple[int, int, int] = (1, 1, 1)
) -> tuple[jax.Array, jax.Array]:
  """What chance decides in one transition, two times (n, 64) float32.

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
  voxels = held.number[:, None] * VOXELS + jnp.arange(VOXELS)
  first, second = uniforms(key, voxels, _VOXELS)
  if pitch == (1, 1, 1):
    return unit_normal(first), second
  shifts = jnp.floor(uniforms(key, jnp.arange(3), _SHIFT)[0] * jnp.array(pitch))
  number, which = apart(lambda held: _cells(held, pitch, shifts.astype(int)), held)
  of_cells = lambda n: unit_normal(uniforms(key, n.ravel(), _CELLS)[0])  # noqa: E731
  z = apart(of_cells, number)
  return z.at[which].get(mode='promise_in_bounds'), second


def unit_normal(u: jax.Array) -> jax.Array:
  """Uniform draws in [0, 1), any shape -> unit normal, the inverse of its integral."""
  # The 2 ** 23 steps of a uniform draw are centred, so that none is at an end.
  x = 2 * u - np.float32(1 - 2.0**-23)
  w = -jnp.log((1 - x) * (1 + x))
  polynomial = lambda c, x: functools.reduce(lambda p, c: p * x + c, c)  # noqa: E731
  central = polynomial(tuple(map(np.float32, _CENTRAL)), w - 2.5)
  tail = polynomial(tuple(map(np.float32, _TAIL)), jnp.sqrt(w) - 3)
  return np.float32(np.sqrt(2)) * x * jnp.where(w < 5, central, tail)


def uniforms(
  key: jax.Array, number: jax.Array, purpose: int
) -> tuple[jax.Array, jax.Array]:
  """Two draws, uniform in [0, 1), for every number: two of its shape, float32.

  One hash of (number, purpose) gives both.
  """
  low, high = jax.random.key_data(key)[:2]
  words = _threefry(low, high, number.astype(jnp.uint32), jnp.uint32(purpose))
  return tuple((w >> 9).astype(jnp.float32) * np.float32(2**-23) for w in words)


def _threefry(low, high, first, second):
  """JAX's own hash, which on a CPU is a loop whose every round goes through memory."""
  keys = low, high, low ^ high ^ _PARITY
  first, second = first + low, second + high
  for block in range(5):
    for by in _ROTATIONS[block % 2]:
      first += second
      second = first ^ ((second << by) | (second >> (32 - by)))
    first += keys[(block + 1) % 3]
    second += keys[(block + 2) % 3] + np.uint32(block + 1)
  return first, second


def pitch_for(
  noise_mm: float, spacing_mm: tuple[float, float, float]
) -> tuple[int, int, int]:
  """The cell, in voxels, whose sides are nearest to a correlation length."""
  return tuple(max(round(noise_mm / s), 1) for s in spacing_mm)


def _cells(
  held: Blocks, pitch: tuple[int, int, int], shifts: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The cells that reach into each block.

  Returns:
    Their numbers, (n, m) int32, and which of all n * m every voxel lies in, (n, 64).
  """
  at = coordinates(held.number, held.grid) * EDGE
  number, which = 0, jnp.arange(len(at))[:, None, None, None]
  for axis, p in enumerate(pitch):
    along = lambda line, a=axis: jnp.expand_dims(  # noqa: E731
      line, [1 + b for b in range(3) if b != a]
    )
    most = (EDGE + p - 2) // p + 1
    start = at[:, axis, None] + shifts[axis]
    first = start // p
    number = number * (held.grid[axis] * EDGE // p + 2)
    number += along(first + jnp.arange(most))
    which = which * most + along((start + jnp.arange(EDGE)) // p - first)
  return number.reshape(len(at), -1), which.reshape(-1, VOXELS)
