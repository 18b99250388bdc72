"""The 2D U-Net of each view (paper, Section III-D; widths of the authors' release)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class UNet(nn.Module):
  """A slice stack in, logits of its central slice out.

  With the default widths and five slices: 1.94 million parameters.

  Attributes:
    features: channels per level; one pooling between two levels.
    classes: classes of the softmax.
    axis_name: device axis over which batch statistics are averaged, if any.
  """

  features: Sequence[int] = (16, 32, 64, 128, 256)
  classes: int = 2
  axis_name: str | None = None

  @property
  def stride(self) -> int:
    """Height and width of the input must be multiples of this, pixels."""
    return 2 ** (len(self.features) - 1)

  @nn.compact
  def __call__(self, stacks: jax.Array, *, train: bool) -> jax.Array:
    """(b, h, w, d) float slice stacks -> (b, h, w, classes) float32 logits.

    Raises:
      ValueError: height or width is not a multiple of `stride`.
    """
    if stacks.shape[1] % self.stride or stacks.shape[2] % self.stride:
      raise ValueError(
        f'slices of {stacks.shape[1:3]} pixels; both must be multiples of {self.stride}'
      )
    *levels, bottom = self.features
    x, skips = stacks, []
    for width in levels:
      x = self._double_conv(x, width, train)
      skips.append(x)
      x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = self._double_conv(x, bottom, train)
    for width, skip in zip(reversed(levels), reversed(skips), strict=True):
      x = nn.ConvTranspose(width, (2, 2), strides=(2, 2))(x)
      x = self._double_conv(jnp.concatenate([skip, x], axis=-1), width, train)
    return nn.Conv(self.classes, (1, 1))(x)

  def _double_conv(self, x: jax.Array, width: int, train: bool) -> jax.Array:
    for _ in range(2):
      x = nn.Conv(width, (3, 3), use_bias=False)(x)
      # Flax counts `momentum` from the other side: 0.9 here is 0.1 in the release.
      x = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, axis_name=self.axis_name
      )(x)
      x = nn.relu(x)
    return x
