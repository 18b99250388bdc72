"""A trained U-Net applied to a window of a slice, exactly as to the whole slice.

Batch norm is folded into the kernels. The way down sees the window and all around it
that can matter; each level of the way up only what the level above needs of it, which
is a margin of 4 of its own pixels: two 3 x 3 convolutions use up 2, half of which are
the other 2 seen from the level above. So no value within the window depends on what was
left out, and all are those of the whole slice.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from covid3way.networks.convolution import Kernel, convolve, prepare
from covid3way.networks.layers import pooled
from covid3way.networks.unet import UNet

_UP_PIXELS = 4
_EPSILON = 1e-5  # Of Flax's batch norm.


@struct.dataclass
class Folded:
  """A U-Net of two classes without its batch norms.

  Attributes:
    convolutions: kernel and bias of each, in the order of their use; ReLU follows.
    ups: kernel (c, 2, 2, width) and bias of each transposed convolution.
    head: weights (c,) and bias of the second class's logit less the first's.
    dtype: of the convolutions; the head's is float32.
  """

  convolutions: tuple[tuple[Kernel, jax.Array], ...]
  ups: tuple[tuple[jax.Array, jax.Array], ...]
  head: tuple[jax.Array, jax.Array]
  dtype: str = struct.field(pytree_node=False, default='float32')


@struct.dataclass
class Boxes:
  """Where a window lies in a slice, and what is computed for it.

  Level l has pixels of 2 ** l pixels of the slice. Starts are from the slice's corner,
  in pixels of the level; sizes are static, so that windows of one size share a
  compilation.

  Attributes:
    window: (2,) int32, start of the window, level 0.
    down: (2,) int32, start of what the way down sees, level 0.
    up: (levels, 2) int32, starts of what the way up computes.
    window_size: height and width.
    down_size: the same of what the way down sees.
    up_sizes: the same of every level of the way up.
  """

  window: np.ndarray
  down: np.ndarray
  up: np.ndarray
  window_size: tuple[int, int] = struct.field(pytree_node=False)
  down_size: tuple[int, int] = struct.field(pytree_node=False)
  up_sizes: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)


def fold(network: UNet, variables, dtype: str = 'float32') -> Folded:
  """Folds batch norm into the kernels, and prepares these for the device.

  Args:
    network: of two classes.
    variables: its `params` and `batch_stats`.
    dtype: of the convolutions.
  """
  params, stats = variables['params'], variables['batch_stats']
  ups = len(network.features) - 1
  convolutions = []
  for i in range(2 * (ups + 1) + 2 * ups):
    norm, known = params[f'BatchNorm_{i}'], stats[f'BatchNorm_{i}']
    scale = norm['scale'] / jnp.sqrt(known['var'] + _EPSILON)
    kernel = prepare((params[f'Conv_{i}']['kernel'] * scale).astype(dtype))
    bias = norm['bias'] - known['mean'] * scale
    convolutions.append((kernel, bias.astype(dtype)))
  doubled = [params[f'_Doubled_{i}'] for i in range(ups)]
  last = params[f'Conv_{len(convolutions)}']
  weights, bias = last['kernel'][0, 0], last['bias']
  return Folded(
    tuple(convolutions),
    tuple(
      (each['kernel'].astype(dtype), each['bias'].astype(dtype)) for each in doubled
    ),
    (weights[:, 1] - weights[:, 0], bias[1] - bias[0]),
    dtype,
  )


def margin_pixels(stride: int) -> int:
  """What the way down sees around a window: 94 of 96 pixels matter at a stride of 16.

  The lowest level is given `_UP_PIXELS` of its own, which are `stride` pixels wide; the
  convolutions above it use up less than two more of those.
  """
  return (_UP_PIXELS + 2) * stride


def boxes(
  start: tuple[int, int], size: tuple[int, int], sides: tuple[int, int], stride: int
) -> Boxes:
  """What is computed for a window of a slice.

  Args:
    start: of the window; multiples of `stride`, like all that follow.
    size: of the window.
    sides: of the slice.
    stride: of the network.
  """
  start, size, sides = (np.array(each) for each in (start, size, sides))

  def within(level: int, margin: int) -> tuple[np.ndarray, tuple[int, int]]:
    pixel = 2**level
    wanted = np.minimum(size // pixel + 2 * margin, sides // pixel)
    first = np.clip(start // pixel - margin, 0, sides // pixel - wanted)
    return first.astype(np.int32), tuple(wanted.tolist())

  up = [within(level, _UP_PIXELS) for level in range(int(math.log2(stride)) + 1)]
  down, down_size = within(0, margin_pixels(stride))
  return Boxes(
    start.astype(np.int32),
    down,
    np.stack([first for first, _ in up]),
    tuple(size.tolist()),
    down_size,
    tuple(wanted for _, wanted in up),
  )


def probabilities(network: Folded, stacks: jax.Array, where: Boxes) -> jax.Array:
  """The second class's probability of each pixel of a window.

  Args:
    network: folded.
    stacks: (b, *where.down_size, d) slice stacks, cut to what the way down sees.
    where: the window.

  Returns:
    (b, *where.window_size) float32.
  """
  convolutions, skips = iter(network.convolutions), []

  def twice(x):
    for _ in range(2):
      kernel, bias = next(convolutions)
      x = jax.nn.relu(convolve(x, kernel) + bias)
    return x

  x = stacks.astype(network.dtype)
  for _ in network.ups:
    x = twice(x)
    skips.append(x)
    x = pooled(x, (2, 2))
  lowest = len(skips)
  x = _cut(x, where.up[lowest] - where.down // 2**lowest, where.up_sizes[lowest])
  x = twice(x)
  for level, up in zip(reversed(range(lowest)), network.ups, strict=True):
    first, size = where.up[level], where.up_sizes[level]
    skip = _cut(skips[level], first - where.down // 2**level, size)
    x = _cut(x, first // 2 - where.up[level + 1], tuple(n // 2 for n in size))
    x = twice(jnp.concatenate([skip, _doubled(x, *up)], axis=-1))
  x = _cut(x, where.window - where.up[0], where.window_size)
  weights, bias = network.head
  return jax.nn.sigmoid(x.astype(jnp.float32) @ weights + bias)


def operations(features: Sequence[int], channels: int, where: Boxes) -> float:
  """Products and sums that a window takes by the plain formula.

  Args:
    features: channels of the network's levels.
    channels: of what goes in.
    where: the window.
  """
  *levels, lowest = features
  total, before = 0, channels
  for level, width in enumerate(levels):
    pixels = math.prod(where.down_size) / 4**level
    total += pixels * 9 * (before + width) * width
    before = width
  total += math.prod(where.up_sizes[-1]) * 9 * (before + lowest) * lowest
  for width, below, size in zip(levels, features[1:], where.up_sizes, strict=False):
    total += math.prod(size) * (below * width + 9 * (2 * width + width) * width)
  return 2 * (total + math.prod(where.window_size) * 2 * features[0])


def _cut(x: jax.Array, start: jax.Array, size: tuple[int, int]) -> jax.Array:
  return lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *size, x.shape[-1]))


def _doubled(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """A transposed convolution: each row of the result is one product, in order."""
  b, h, w, _ = x.shape
  rows = [
    jnp.einsum('bhwc,cjf->bhwjf', x, kernel[:, i]).reshape(b, h, 2 * w, -1)
    for i in range(2)
  ]
  return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1) + bias
