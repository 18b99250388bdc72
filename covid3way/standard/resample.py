"""Separable resampling of volumes: one weight matrix per axis, applied as products.

A weight matrix holds, for every output sample, the kernel's value at every input
sample. Outside the input lies zero: the taps that fall there count in the
normalisation, so a volume given relative to air is, exactly, a volume padded with
air without end. When the output is coarser than the input the kernel widens by the
ratio of the two spacings, so that nothing aliases.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

Weights = tuple[np.ndarray, np.ndarray, np.ndarray]


def lanczos(t: np.ndarray) -> np.ndarray:
  """Lanczos kernel with a = 4, the order that medical resampling code uses.

  Paper, Section III-B.1 and its reference 27; Range about [-0.21, 1].
  """
  return np.where(np.abs(t) < 4, np.sinc(t) * np.sinc(t / 4), 0.0)


def triangle(t: np.ndarray) -> np.ndarray:
  """Linear interpolation; positive, so a mask's weights stay in [0, 1]."""
  return np.maximum(1 - np.abs(t), 0.0)


_HALF_WIDTH = {lanczos: 4, triangle: 1}
_SLAB_PLANES = 32


def axis_weights(
  kernel: Callable[[np.ndarray], np.ndarray],
  n_in: int,
  n_out: int,
  *,
  scale: float,
  first: float,
) -> np.ndarray:
  """Weights that take `n_in` samples of one axis to `n_out`.

  Args:
    kernel: `lanczos` or `triangle`.
    n_in: samples of the input.
    n_out: samples of the output.
    scale: output spacing / input spacing.
    first: where output sample 0 lies, in input voxels (0 is the first centre).

  Returns:
    (n_out, n_in) float32; rows sum to 1 wherever the kernel lies inside the input.
  """
  widen = max(scale, 1.0)
  reach = int(np.ceil(_HALF_WIDTH[kernel] * widen))
  position = first + scale * np.arange(n_out)
  nearest = np.floor(position).astype(int)
  taps = nearest[:, None] + np.arange(-reach, reach + 2)
  values = kernel((taps - position[:, None]) / widen)
  values /= values.sum(axis=1, keepdims=True)
  weights = np.zeros((n_out, n_in))
  inside = (taps >= 0) & (taps < n_in)
  rows = np.broadcast_to(np.arange(n_out)[:, None], taps.shape)
  weights[rows[inside], taps[inside]] = values[inside]
  return weights.astype(np.float32)


@jax.jit
def apply(volume: jax.Array, weights: Weights) -> jax.Array:
  """Resamples a volume.

  Args:
    volume: (x, y, z); zero is what lies outside.
    weights: one (n_out, n_in) matrix per axis.

  Returns:
    (x', y', z') float32.
  """
  volume = jnp.asarray(volume, jnp.float32)
  # Axes that shrink come first: fewer products, smaller intermediates.
  for axis in sorted(range(3), key=lambda i: weights[i].shape[0] / weights[i].shape[1]):
    product = jnp.tensordot(
      volume, weights[axis], axes=(axis, 1), precision=jax.lax.Precision.HIGHEST
    )
    volume = jnp.moveaxis(product, -1, axis)
  return volume


def apply_in_slabs(
  volume: np.ndarray, weights: Weights, *, outside: float = 0.0
) -> Iterator[tuple[slice, np.ndarray]]:
  """`apply`, some planes of z at a time: working memory is that of a slab.

  Args:
    volume: (x, y, z), numbers or bool.
    weights: one (n_out, n_in) matrix per axis.
    outside: what lies outside; results are relative to it.

  Yields:
    Which planes of the output, and they, (x', y', planes) float32.
  """
  volume, along_z = np.asarray(volume), weights[2]
  count = min(_SLAB_PLANES, len(along_z))
  # The last slab begins early, and each takes as many planes of the input as the one
  # that needs most of them: all have one shape, which is compiled once.
  firsts = [min(n, len(along_z) - count) for n in range(0, len(along_z), count)]
  needed = [_nonzero(along_z[first : first + count]) for first in firsts]
  depth = max(end - begin for begin, end in needed)
  for first, (begin, _) in zip(firsts, needed, strict=True):
    begin = min(begin, along_z.shape[1] - depth)
    there, here = slice(first, first + count), slice(begin, begin + depth)
    slab = np.subtract(volume[:, :, here], outside, dtype=np.float32)
    yield there, np.asarray(apply(slab, (*weights[:2], along_z[there, here])))


def _nonzero(weights: np.ndarray) -> tuple[int, int]:
  """Begin and end of the input samples that count at all; at least one."""
  used = np.flatnonzero(weights.any(axis=0))
  return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
