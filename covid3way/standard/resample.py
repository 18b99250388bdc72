"""Separable resampling of volumes: one weight matrix per axis, applied as products.

A weight matrix holds, for every output sample, the kernel's value at every input
sample. Outside the input lies zero: the taps that fall there count in the
normalisation, so a volume given relative to air is, exactly, a volume padded with
air without end. When the output is coarser than the input the kernel widens by the
ratio of the two spacings, so that nothing aliases.
"""

from collections.abc import Callable

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
