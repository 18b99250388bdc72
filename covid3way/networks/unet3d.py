"""3D U-Net (Cicek et al., MICCAI 2016), in the form that is usually run."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covid3way.networks import layers


class UNet3D(nn.Module):
  """A sub-volume in, logits of each of its voxels out.

  Per level two times GroupNorm, 3 x 3 x 3 convolution, ReLU. With the default widths:
  4.08 million parameters (4.1 in the paper's Table VI).

  Attributes:
    features: channels per level; one pooling between two levels.
    classes: classes of the softmax.
    axis_name: unused here, as no statistics of batches are kept.
    dtype: of the computation; parameters and logits are float32.
  """

  features: Sequence[int] = (32, 64, 128, 256)
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
    del train  # It would compute the same.
    layers.check_sides(volumes, self.stride)
    *levels, bottom = self.features
    x, skips = volumes.astype(self.dtype), []
    for width in levels:
      x = self._encode(x, width)
      skips.append(x)
      x = layers.pooled(x, (2, 2, 2))
    x = self._encode(x, bottom)
    for width, skip in zip(reversed(levels), reversed(skips), strict=True):
      x = jnp.concatenate([skip, layers.repeated(x, (2, 2, 2))], axis=-1)
      x = self._conv(self._conv(x, width), width)
    return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)

  def _encode(self, x: jax.Array, width: int) -> jax.Array:
    x = self._conv(x, max(width // 2, x.shape[-1]))
    return self._conv(x, width)

  def _conv(self, x: jax.Array, width: int) -> jax.Array:
    x = nn.GroupNorm(groups(x.shape[-1]), dtype=self.dtype)(x)
    return nn.relu(layers.conv(width, 3, 3, self.dtype)(x))


def groups(channels: int) -> int:
  """Of a GroupNorm: 8, or as many below as divide the channels."""
  return max(n for n in range(1, 9) if channels % n == 0)
