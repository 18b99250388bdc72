"""3 x 3 convolutions of planes with their gradient, in forms that are fast on a CPU.

Forward and both gradients of eight planes, milliseconds of CPU time, by XLA and here:

| channels in, out | pixels | XLA's own | here |
|---|---|---|---|
| 32, 32 | 64 x 64 | 25 | 13 |
| 64, 32 | 64 x 64 | 42 | 24 |
| 64, 64 | 32 x 32 | 20 | 10 |
| 128, 64 | 32 x 32 | 38 | 17 |
| 256, 128 | 16 x 16 | 36 | 20 |

All three are products at the points of Winograd's F(4 x 4, 3 x 3), see `convolution`:
with V those of the input, U of the kernel and M of the result, M = V U, so that from
the gradient of M follow that of V, times U transposed, and that of U, V transposed
times it. The ways to the points and back are linear: their gradient is the transpose.
Where channels are few it is XLA's own sum, on all cores.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from covid3way.networks.convolution import (
  EDGE,
  INPUT,
  KERNEL,
  OUTPUT,
  POINTS,
  convolve,
  prepare,
  products,
  spread,
  transformed,
)

_MANY = 32  # Channels from which the tiles pay.
_AT_ONCE = 2**20  # Values at the points of planes that are computed at once: 4 MiB.


def convolved(
  x: jax.Array, kernel: jax.Array, strides, padding, **options
) -> jax.Array:
  """In place of `jax.lax.conv_general_dilated` as `flax.linen.Conv` calls it.

  Args:
    x: (b, h, w, c).
    kernel: (3, 3, c, width).
    strides: of 1.
    padding: 'SAME'.
    **options: Flax's defaults.
  """
  c, width = kernel.shape[2:]
  if jax.default_backend() == 'cpu' and x.dtype == jnp.float32:
    values = x[0, ::EDGE, ::EDGE, 0].size * POINTS**2 * max(c, width)  # Of a plane.
    if min(c, width) >= _MANY and values <= 2 * _AT_ONCE:
      return _tiled(x, kernel, _divisor(len(x), _AT_ONCE // values))
    if max(c, width) >= _MANY // 2:  # Fewer compile faster as they are.
      return _in_columns(x, kernel)
  return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _divisor(n: int, limit: int) -> int:
  """The largest one up to a limit."""
  return next(i for i in range(max(min(n, limit), 1), 0, -1) if n % i == 0)


@jax.custom_vjp
def _in_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return convolve(x, prepare(kernel), alone=True)


def _in_columns_backwards(known, dy):
  x, kernel = known
  form = ('NHWC', 'HWIO', 'NHWC')
  _, pull = jax.vjp(
    lambda kernel: lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=form
    ),
    kernel,
  )
  turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
  return _in_columns(dy, turned), *pull(dy)


_in_columns.defvjp(lambda *known: (_in_columns(*known), known), _in_columns_backwards)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiled(x: jax.Array, kernel: jax.Array, at_once: int) -> jax.Array:
  """The sum in tiles, of some planes at once so that these stay in the cache."""
  return _tiled_forwards(x, kernel, at_once)[0]


def _tiled_forwards(x, kernel, at_once):
  at_points = _kernel_to_points(kernel)

  def some(nothing, x):
    points = map(_product, _to_points(INPUT, _framed(x)), at_points)
    return nothing, _result(list(points), x.shape)

  return _in_turn(some, (), x, at_once)[1], (x, at_points)


def _tiled_backwards(at_once, known, dy):
  """The input's points are made again: to keep them would take longer."""
  x, at_points = known
  c, width = at_points[0].shape[1:]

  def some(sums, planes):
    x, dy = planes
    inputs = _to_points(INPUT, _framed(x))
    results = _to_points(tuple(zip(*OUTPUT, strict=True)), _filled(dy))
    # Of two factors the first is transposed in memory: the smaller one.
    pairs = (results, inputs) if width <= c else (inputs, results)
    sums = [
      total + lax.dot_general(*pair, (((1,), (1,)), ((0,), (0,))))
      for total, *pair in zip(sums, *pairs, strict=True)
    ]
    inputs = [_product(*pair, 2) for pair in zip(results, at_points, strict=True)]
    return sums, _input_gradient(inputs, x.shape)

  none = jnp.zeros((len(at_points[0]), min(c, width), max(c, width)), x.dtype)
  sums, dx = _in_turn(some, [none] * len(at_points), (x, dy), at_once)
  sums = jnp.concatenate(sums)
  return dx, _kernel_gradient(jnp.swapaxes(sums, 1, 2) if width <= c else sums)


_tiled.defvjp(_tiled_forwards, _tiled_backwards)


def _in_turn(
  some: Callable, carried: Any, planes: Any, at_once: int
) -> tuple[Any, Any]:
  """`jax.lax.scan` over some of the planes at once."""
  planes = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), planes)
  carried, results = lax.scan(some, carried, planes)
  return carried, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def _product(x: jax.Array, values: jax.Array, axis: int = 1) -> jax.Array:
  return lax.dot_general(x, values, (((2,), (axis,)), ((0,), (0,))))


def _framed(x: jax.Array) -> jax.Array:
  """Planes with the zeros around them that their tiles read."""
  beyond = (-n % EDGE for n in x.shape[1:3])
  return jnp.pad(x, ((0, 0), *((1, 1 + n) for n in beyond), (0, 0)))


def _filled(x: jax.Array) -> jax.Array:
  """Planes of whole tiles."""
  return jnp.pad(x, ((0, 0), *((0, -n % EDGE) for n in x.shape[1:3]), (0, 0)))


def _to_points(matrix, x: jax.Array) -> list[jax.Array]:
  """(b, h, w, c) -> twice (18, tiles, c): of one half of the points, and of the other.

  Halves, as XLA computes two products at a time, but neither of them on two cores.
  """
  n = len(matrix[0])
  # Barriers: else each of 36 sums is compiled, and computed, from scratch.
  rows = lax.optimization_barrier(transformed(matrix, spread(x, 1, n), 0))
  columns = spread(rows, 3, n)
  halves = (transformed(half, columns, 0) for half in _halves(matrix))
  return [half.reshape(POINTS**2 // 2, -1, x.shape[-1]) for half in halves]


def _halves(matrix):
  return matrix[: POINTS // 2], matrix[POINTS // 2 :]


def _by_column(halves: list[jax.Array], shape) -> list[jax.Array]:
  """Points, tiles in a row -> 6 times (6, b, rows, columns, c): tiles of planes."""
  b, h, w, _ = shape
  tiles = b, -(-h // EDGE), -(-w // EDGE)
  return [
    column
    for half in halves
    for column in half.reshape(POINTS // 2, POINTS, *tiles, half.shape[-1])
  ]


def _result(points: list[jax.Array], shape) -> jax.Array:
  """Points -> (b, h, w, width)."""
  columns = _by_column(points, shape)
  columns = lax.optimization_barrier(transformed(OUTPUT, columns, 4))
  return _cut(transformed(OUTPUT, columns, 2), shape)


def _input_gradient(points: list[jax.Array], shape) -> jax.Array:
  """The transpose of `_to_points` of the framed input: tiles overlap."""
  columns = _overlapping(_by_column(points, shape), 3)
  columns = lax.optimization_barrier(jnp.stack(columns, 4))
  return _cut(jnp.stack(_overlapping(list(columns), 1), 2), shape)


def _cut(tiles: jax.Array, shape) -> jax.Array:
  """(b, rows, 4, columns, 4, c) -> (b, h, w, c), as far as the planes go."""
  b, rows, edge, columns, _, c = tiles.shape
  return tiles.reshape(b, rows * edge, columns * edge, c)[:, : shape[1], : shape[2]]


def _overlapping(parts: list[jax.Array], axis: int) -> list[jax.Array]:
  """Points of tiles along an axis -> the sums at the 4 pixels of each.

  A tile reads a pixel of the one before and one of the next, each at one point alone.
  """
  first, *inner, last = products(zip(*INPUT, strict=True), parts)
  inner[0] += _moved(last, 1, axis)
  inner[-1] += _moved(first, -1, axis)
  return inner


def _moved(x: jax.Array, by: int, axis: int) -> jax.Array:
  """Along an axis; zeros follow."""
  ends = [(0, 0, 0)] * x.ndim
  ends[axis] = (by, -by, 0)
  return lax.pad(x, jnp.zeros((), x.dtype), ends)


def _kernel_to_points(kernel: jax.Array) -> list[jax.Array]:
  """(3, 3, c, width) -> twice (18, c, width)."""
  rows = lax.optimization_barrier(transformed(KERNEL, list(kernel), 0))
  columns = [rows[:, i] for i in range(len(kernel))]
  return [
    transformed(half, columns, 0).reshape(-1, *kernel.shape[2:])
    for half in _halves(KERNEL)
  ]


def _kernel_gradient(points: jax.Array) -> jax.Array:
  """The transpose of `_kernel_to_points`: (36, c, width) -> (3, 3, c, width)."""
  matrix = tuple(zip(*KERNEL, strict=True))
  columns = points.reshape(POINTS, POINTS, *points.shape[1:])
  columns = lax.optimization_barrier(transformed(matrix, list(columns), 0))
  return transformed(matrix, [columns[:, i] for i in range(POINTS)], 0)
