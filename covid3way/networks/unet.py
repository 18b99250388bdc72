"""The 2D U-Net of each view (paper, Section III-D; widths of the authors' release)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from covid3way.networks import trained


class UNet(nn.Module):
  """A slice stack in, logits of its central slice out.

  With the default widths and five slices: 1.94 million parameters.

  Attributes:
    features: channels per level; one pooling between two levels.
    classes: classes of the softmax.
    axis_name: device axis over which batch statistics are averaged, if any.
    dtype: of the computation; parameters, statistics and logits are float32.
  """

  features: Sequence[int] = (16, 32, 64, 128, 256)
  classes: int = 2
  axis_name: str | None = None
  dtype: Any = jnp.float32

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
    x, skips = stacks.astype(self.dtype), []
    for width in levels:
      x = self._double_conv(x, width, train)
      skips.append(x)
      x = _halved(x)
    x = self._double_conv(x, bottom, train)
    for width, skip in zip(reversed(levels), reversed(skips), strict=True):
      x = _Doubled(width, self.dtype)(x)
      x = self._double_conv(jnp.concatenate([skip, x], axis=-1), width, train)
    return nn.Conv(self.classes, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)

  def _double_conv(self, x: jax.Array, width: int, train: bool) -> jax.Array:
    for _ in range(2):
      x = nn.Conv(
        width,
        (3, 3),
        use_bias=False,
        dtype=self.dtype,
        conv_general_dilated=trained.convolved,
      )(x)
      # Flax counts `momentum` from the other side: 0.9 here is 0.1 in the release.
      x = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        axis_name=self.axis_name,
        dtype=self.dtype,
      )(x)
      x = nn.relu(x)
    return x


def _halved(x: jax.Array) -> jax.Array:
  """Max pooling by 2: of strided slices, whose gradient costs a tenth of a window's."""
  rows = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


class _Doubled(nn.Module):
  """A transposed 2 x 2 convolution of stride 2: nothing overlaps, so a product."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.lecun_normal(in_axis=0, out_axis=-1, batch_axis=(1, 2))
    kernel = self.param('kernel', init, (x.shape[-1], 2, 2, self.width))
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    kernel, bias = (p.astype(self.dtype) for p in (kernel, bias))
    b, h, w, c = x.shape
    # One product, in an array of its own: else its axes are ordered for what follows,
    # and it is slow.
    x = x.reshape(-1, c) @ kernel.reshape(c, -1)
    x = lax.optimization_barrier(x).reshape(b, h, w, 2, -1)
    return jnp.swapaxes(x, 2, 3).reshape(b, 2 * h, 2 * w, self.width) + bias
