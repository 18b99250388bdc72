"""3 x 3 convolutions of planes, in the form that is fastest on a CPU.

XLA's own runs at a third to a half of a core's peak where channels are few. Measured on
2 CPU cores, two planes at a time, in GFLOP/s of the plain sum (a matrix product: 200):

| channels in, out | pixels | XLA's own | here | form |
|---|---|---|---|---|
| 5, 16 | 448 x 448 | 37 | 76 | columns, 4 |
| 16, 16 | 256 x 256 | 86 | 129 | columns, 2 |
| 32, 32 | 224 x 224 | 168 | 233 | Winograd |
| 64, 64 | 112 x 112 | 180 | 353 | Winograd |
| 128, 64 | 72 x 72 | 203 | 469 | Winograd |

*Columns*: several neighbouring columns of the output are computed as channels of one
with a wider kernel, of which a part is 0: more operations, but enough channels to fill
the registers. *Winograd*: F(4 x 4, 3 x 3) of Lavin and Gray (2016), a quarter of the
products; in float32 its results differ from the plain sum's by about 1e-5 of their
range. Elsewhere than on a CPU the plain convolution of the device's library is used.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

# A Winograd tile: pixels along a side that are computed, and the matrices from pixels
# of the kernel and of the input to the points of a product, and from these to pixels of
# the result.
EDGE = 4
KERNEL = np.array(
  [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
  ],
  np.float32,
)
INPUT = (
  (4, 0, -5, 0, 1, 0),
  (0, -4, -4, 1, 1, 0),
  (0, 4, -4, -1, 1, 0),
  (0, -2, -1, 2, 1, 0),
  (0, 2, -1, -2, 1, 0),
  (0, 4, 0, -5, 0, 1),
)
OUTPUT = (
  (1, 1, 1, 1, 1, 0),
  (0, 1, -1, 2, -2, 0),
  (0, 1, 1, 4, 4, 0),
  (0, 1, -1, 8, -8, 1),
)
POINTS = len(INPUT)
_STRIP_VALUES = 2**20  # That a strip is transformed into: they stay in the cache.


@struct.dataclass
class Kernel:
  """A kernel, prepared for `convolve`.

  Attributes:
    values: (3, 3, c, width); of columns (3, 2 + columns, c, columns * width); of
      Winograd tiles (36, c, width).
    columns: of the output that are computed as one; 0: Winograd.
  """

  values: jax.Array
  columns: int = struct.field(pytree_node=False)


def prepare(kernel: jax.Array) -> Kernel:
  """The form of a kernel, (3, 3, c, width), that suits its channels and the device."""
  c, width = kernel.shape[2:]
  if jax.default_backend() != 'cpu':
    return Kernel(kernel, 1)
  if min(c, width) >= 32 and kernel.dtype == jnp.float32:
    points = jnp.einsum('ai,bj,ijco->baco', KERNEL, KERNEL, kernel)
    return Kernel(points.reshape(POINTS**2, c, width), 0)
  columns = 4 if c < 16 else 2 if width <= 16 and c <= 16 else 1
  shifted = [
    jnp.pad(kernel, ((0, 0), (column, columns - 1 - column), (0, 0), (0, 0)))
    for column in range(columns)
  ]
  return Kernel(jnp.concatenate(shifted, axis=-1), columns)


def convolve(x: jax.Array, kernel: Kernel, *, alone: bool = False) -> jax.Array:
  """(b, h, w, c) -> (b, h, w, width); zeros lie around.

  Args:
    x: planes.
    kernel: prepared.
    alone: no other one runs beside it, so that it is to use all cores.
  """
  if not kernel.columns:
    return _winograd(x, kernel.values)
  b, h, w, _ = x.shape
  columns, beyond = kernel.columns, -w % kernel.columns
  y = lax.conv_general_dilated(
    x,
    kernel.values,
    (1, columns),
    # XLA has a library for one core; that takes none with more rows than its input.
    ((1, 1 + alone), (1, 1 + beyond)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return y[:, :h].reshape(b, h, w + beyond, -1)[:, :, :w]


def _winograd(x: jax.Array, values: jax.Array) -> jax.Array:
  b, h, w, c = x.shape
  width = values.shape[-1]
  down, across = -(-h // EDGE), -(-w // EDGE)  # Tiles.
  at_once = _STRIP_VALUES // (b * across * POINTS**2 * c)
  strips = -(-down // max(at_once, 1))
  rows = -(-down // strips) * EDGE  # Pixels of a strip.
  x = jnp.pad(
    x, ((0, 0), (1, 1 + strips * rows - h), (1, 1 + across * EDGE - w), (0, 0))
  )

  def add(strip, y):
    part = lax.dynamic_slice_in_dim(x, strip * rows, rows + 2, axis=1)
    # Barriers: else each of 36 sums is compiled, and computed, from scratch.
    part = lax.optimization_barrier(transformed(INPUT, spread(part, 1, POINTS), 0))
    part = transformed(INPUT, spread(part, 3, POINTS), 0)
    part = lax.dot_general(
      part.reshape(POINTS**2, -1, c), values, (((2,), (1,)), ((0,), (0,)))
    )
    part = part.reshape(POINTS, POINTS, b, -1, across, width)
    part = lax.optimization_barrier(transformed(OUTPUT, part, 4))
    part = transformed(OUTPUT, part, 2).reshape(b, rows, -1, width)
    return lax.dynamic_update_slice_in_dim(y, part, strip * rows, axis=1)

  y = jnp.zeros((b, strips * rows, across * EDGE, width), x.dtype)
  y = lax.fori_loop(0, strips, add, y) if strips > 1 else add(0, y)
  return y[:, :h, :w]


def spread(x: jax.Array, axis: int, n: int) -> list[jax.Array]:
  """The n pixels of each tile along an axis, tile by tile."""
  last = x.shape[axis] - n + 1
  return [lax.slice_in_dim(x, i, i + last, EDGE, axis) for i in range(n)]


def products(matrix: Iterable, parts: Sequence[jax.Array]) -> list[jax.Array]:
  """The products of a small matrix with parts."""
  results = []
  for row in matrix:
    terms = [
      part if factor == 1 else factor * part
      for factor, part in zip(row, parts, strict=True)
      if factor
    ]
    results.append(sum(terms[1:], terms[0]))
  return results


def transformed(matrix: Iterable, parts: Sequence[jax.Array], axis: int) -> jax.Array:
  """The products of a small matrix with parts, stacked along a new axis."""
  return jnp.stack(products(matrix, parts), axis)
