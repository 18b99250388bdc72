"""H-DenseUNet (Li et al., IEEE TMI 2018): a 2D and a 3D DenseUNet, and their fusion."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from covid3way.networks import layers

STAGES = ('planes', 'volumes', 'hybrid')
# Of the stem, of the pooling after it and of those between blocks. The 3D part halves z
# only twice: its volumes are few slices high.
PLANES = ((2, 2),) * 5
VOLUMES = ((2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1), (2, 2, 1))


class HDenseUNet(nn.Module):
  """Intra-slice features of a 2D part, fused with those of a lighter 3D part.

  One tree of variables serves all three stages of the training; `init` with 'hybrid'
  gives all of it.

  planes: the 2D part alone, on slice stacks.
  volumes: both on volumes, the 2D part frozen: running averages and no gradient.
  hybrid: both, end to end.

  With the default widths: 48.3 million parameters (49 in the paper's Table VI). The
  encoders are Li's. The decoders' widths are ours: those of their skips, which are the
  encoder's compressed features before each pooling; at the original's widths the 2D
  part alone has about 49 million.

  Attributes:
    features: channels of the stems, growth of the 2D and of the 3D part, channels at
      the end of both. All other widths follow from these.
    blocks_2d: layers of each of the four dense blocks of the 2D part.
    blocks_3d: of the 3D part.
    stage: of `STAGES`.
    classes: classes of the softmax.
    axis_name: device axis over which batch statistics are averaged, if any.
    dtype: of the computation; parameters, statistics and logits are float32.
  """

  features: Sequence[int] = (96, 48, 32, 64)
  blocks_2d: Sequence[int] = (6, 12, 36, 24)
  blocks_3d: Sequence[int] = (3, 4, 12, 8)
  stage: str = 'hybrid'
  classes: int = 2
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @property
  def stride(self) -> tuple[int, ...]:
    """Sides of the input must be multiples of these, pixels or voxels."""
    return (32, 32) if self.stage == 'planes' else (32, 32, 4)

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Float32 logits of each pixel or voxel.

    Args:
      x: (b, h, w, 3) slice stacks in the stage 'planes', else (b, x, y, z, 1).
      train: whether batch statistics are the batch's own.

    Returns:
      (b, h, w, classes) or (b, x, y, z, classes).

    Raises:
      ValueError: an unknown stage, or a side is not a multiple of `stride`.
    """
    if self.stage not in STAGES:
      raise ValueError(f'no stage {self.stage!r}: use {", ".join(STAGES)}')
    layers.check_sides(x, self.stride)
    x = x.astype(self.dtype)
    stem, growth_2d, growth_3d, last = self.features
    rest = self.axis_name, self.dtype
    planes = _DenseUNet(
      (stem, growth_2d, last), self.blocks_2d, PLANES, *rest, name='planes'
    )
    classify_planes = nn.Dense(self.classes, dtype=self.dtype, name='classify_planes')
    if self.stage == 'planes':
      return classify_planes(planes(x, train)).astype(jnp.float32)

    frozen = self.stage == 'volumes'
    intra = planes(slice_stacks(x), train and not frozen)
    probability = nn.softmax(classify_planes(intra))
    intra, probability = (standing(each, len(x)) for each in (intra, probability))
    if frozen:
      intra, probability = jax.lax.stop_gradient((intra, probability))

    volumes = _DenseUNet(
      (stem, growth_3d, last), self.blocks_3d, VOLUMES, *rest, name='volumes'
    )
    inter = volumes(jnp.concatenate([x, probability], axis=-1), train)
    x = layers.conv(last, 3, 3, self.dtype)(intra + inter)
    x = nn.relu(layers.batch_norm(train, *rest)(x))
    return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


class _DenseUNet(nn.Module):
  """DenseNet-BC encoder and a decoder with long skips by addition.

  Attributes:
    features: channels of the stem, growth, channels at the end.
    blocks: layers of each dense block.
    windows: of the stem, the pooling after it and those between blocks, per axis.
    axis_name: as of `HDenseUNet`.
    dtype: as there.
  """

  features: Sequence[int]
  blocks: Sequence[int]
  windows: Sequence[Sequence[int]]
  axis_name: str | None
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(b, *sides, c) -> (b, *sides, last)."""
    stem, growth, last = self.features
    x = self._active(self._conv(x, stem, 7, self.windows[0]), train)
    skips = [x]
    x = layers.pooled(x, self.windows[1])
    for count, window in zip(self.blocks[:-1], self.windows[2:], strict=True):
      x = self._active(self._block(x, count, growth, train), train)
      skips.append(self._conv(x, x.shape[-1] // 2, 1))
      x = layers.pooled(skips[-1], window, mean=True)
    x = self._active(self._block(x, self.blocks[-1], growth, train), train)
    for skip, window in zip(reversed(skips), reversed(self.windows[1:]), strict=True):
      width = skip.shape[-1]
      if x.shape[-1] != width:
        x = self._conv(x, width, 1)
      x = layers.repeated(x, window) + skip
      x = self._active(self._conv(x, width, 3), train)
    x = self._conv(layers.repeated(x, self.windows[0]), last, 3)
    return self._active(x, train)

  def _block(self, x: jax.Array, count: int, growth: int, train: bool) -> jax.Array:
    for _ in range(count):
      new = self._conv(self._active(x, train), 4 * growth, 1)
      new = self._conv(self._active(new, train), growth, 3)
      x = jnp.concatenate([x, new], axis=-1)
    return x

  def _conv(self, x: jax.Array, width: int, size: int, strides=()) -> jax.Array:
    return layers.conv(width, size, x.ndim - 2, self.dtype, strides)(x)

  def _active(self, x: jax.Array, train: bool) -> jax.Array:
    return nn.relu(layers.batch_norm(train, self.axis_name, self.dtype)(x))


def slice_stacks(volumes: jax.Array) -> jax.Array:
  """(b, x, y, z, 1) -> (b * z, x, y, 3): each slice between its neighbours.

  The first and the last are their own.
  """
  b, x, y, z, _ = volumes.shape
  padded = jnp.pad(volumes[..., 0], ((0, 0), (0, 0), (0, 0), (1, 1)), mode='edge')
  stacks = jnp.stack([padded[..., i : i + z] for i in range(3)], axis=-1)
  return jnp.moveaxis(stacks, 3, 1).reshape(b * z, x, y, 3)


def standing(planes: jax.Array, b: int) -> jax.Array:
  """(b * z, x, y, c) -> (b, x, y, z, c): slices as volumes again."""
  return jnp.moveaxis(planes.reshape(b, -1, *planes.shape[1:]), 1, 3)
