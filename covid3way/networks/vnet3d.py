"""3D V-Net (Milletari et al., 3DV 2016)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covid3way.networks import layers

DOWN = (1, 2, 3, 3)  # Convolutions per stage; the last number serves deeper ones, too.
UP = (1, 1, 2)


class VNet3D(nn.Module):
  """A sub-volume in, logits of each of its voxels out.

  Residual stages of 5 x 5 x 5 convolutions, 1-2-3-3 on the way down and 2-1-1 on the
  way up, there at the width of the concatenation; strided 2 x 2 x 2 convolutions down,
  transposed ones up; PReLU. BatchNorm is added, as in all later implementations.

  With the default widths: 12.9 million parameters (12 in the paper's Table VI). The
  published fifth level of 256 channels is left out: it alone would make it 45 to 65
  million, as the stages around it are counted.

  Attributes:
    features: channels per level.
    classes: classes of the softmax.
    axis_name: device axis over which batch statistics are averaged, if any.
    dtype: of the computation; parameters, statistics and logits are float32.
  """

  features: Sequence[int] = (16, 32, 64, 128)
  classes: int = 2
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @property
  def stride(self) -> int:
    """Sides of the input must be multiples of this, voxels."""
    return 2 ** (len(self.features) - 1)

  @nn.compact
  def __call__(self, volumes: jax.Array, *, train: bool) -> jax.Array:
    """(b, x, y, z, 1) float sub-volumes -> (b, x, y, z, classes) float32 logits.

    Raises:
      ValueError: a side is not a multiple of `stride`.
    """
    layers.check_sides(volumes, self.stride)
    *levels, bottom = self.features
    x, skips = volumes.astype(self.dtype), []
    for level, width in enumerate(levels):
      x = self._stage(x, width, _convolutions(DOWN, level), train)
      skips.append(x)
      x = self._halved(x, self.features[level + 1], train)
    x = self._stage(x, bottom, _convolutions(DOWN, len(levels)), train)
    for level, width in reversed(list(enumerate(levels))):
      x = self._doubled(x, width, train)
      x = jnp.concatenate([skips[level], x], axis=-1)
      x = self._stage(x, 2 * width, _convolutions(UP, level), train)
    return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)

  def _stage(self, x: jax.Array, width: int, count: int, train: bool) -> jax.Array:
    """Learns a residual: what came in is added before the last non-linearity."""
    first = x
    for number in range(count):
      x = self._norm(layers.conv(width, 5, 3, self.dtype)(x), train)
      x = _bend(x + first if number == count - 1 else x)
    return x

  def _halved(self, x: jax.Array, width: int, train: bool) -> jax.Array:
    """A 2 x 2 x 2 convolution of stride 2: nothing overlaps, so a product."""
    x = layers.conv(width, 1, 3, self.dtype)(layers.blocks(x))
    return _bend(self._norm(x, train))

  def _doubled(self, x: jax.Array, width: int, train: bool) -> jax.Array:
    """Its transpose."""
    x = layers.unblocked(layers.conv(8 * width, 1, 3, self.dtype)(x))
    return _bend(self._norm(x, train))

  def _norm(self, x: jax.Array, train: bool) -> jax.Array:
    return layers.batch_norm(train, self.axis_name, self.dtype)(x)


def _convolutions(counts: Sequence[int], level: int) -> int:
  return counts[min(level, len(counts) - 1)]


def _bend(x: jax.Array) -> jax.Array:
  return nn.PReLU(negative_slope_init=0.25)(x)
