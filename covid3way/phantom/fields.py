"""Separable Gaussian sampling of volumes, and smooth noise made with it.

Sparse products instead of BLAS: their order of summation does not depend on the
number of threads, so a seed gives the same bytes everywhere.
"""

import numpy as np
import scipy.sparse

FWHM_PER_SIGMA = float(2 * np.sqrt(2 * np.log(2)))
REACH_SIGMAS = 3.0


def gaussian_weights(
  targets: np.ndarray, count: int, sigma: float, *, norm: int
) -> scipy.sparse.csr_array:
  """Rows that sample a line of `count` voxels around each target with a Gaussian.

  Args:
    targets: (n,) positions in source voxels; voxel i is centred on i.
    count: source voxels.
    sigma: standard deviation in source voxels.
    norm: 1 keeps constants (mean), 2 keeps the variance of white noise.

  Returns:
    (n, count) float32. Beyond its ends the line goes on as it ends.
  """
  reach = int(np.ceil(REACH_SIGMAS * sigma)) + 1
  columns = np.floor(targets).astype(int)[:, None] + np.arange(1 - reach, reach + 1)
  weights = np.exp(-0.5 * ((columns - targets[:, None]) / sigma) ** 2)
  weights /= np.linalg.norm(weights, ord=norm, axis=1, keepdims=True)
  rows = np.broadcast_to(np.arange(len(targets))[:, None], columns.shape)
  entries = (rows.ravel(), np.clip(columns, 0, count - 1).ravel())
  return scipy.sparse.csr_array(
    (weights.astype(np.float32).ravel(), entries), shape=(len(targets), count)
  )


def sample(volume: np.ndarray, weights) -> np.ndarray:
  """(x, y, z) float32 through one weight matrix per axis -> (x', y', z') float32."""
  for w in weights:
    flat = w @ volume.reshape(volume.shape[0], -1)
    # The axis just done goes last; after three turns the order is x, y, z again.
    volume = np.moveaxis(flat.reshape(-1, *volume.shape[1:]), 0, -1)
    volume = np.ascontiguousarray(volume)
  return volume


def smooth_noise(
  rng: np.random.Generator, shape: tuple[int, int, int], fwhm_voxels: float
) -> np.ndarray:
  """Gaussian noise, mean 0 and variance 1 at every voxel, (x, y, z) float32.

  It is drawn on a grid just fine enough for its correlation length (`fwhm_voxels`,
  the width of the smoothing kernel), so long waves cost little.
  """
  sigma = max(fwhm_voxels, 1.0) / FWHM_PER_SIGMA
  pitch = max(1.0, 1.2 * sigma)
  reach = int(np.ceil(REACH_SIGMAS * sigma / pitch)) + 1
  counts = [int(np.ceil(n / pitch)) + 2 * reach for n in shape]
  white = rng.standard_normal(counts, dtype=np.float32)
  weights = [
    gaussian_weights(np.arange(n) / pitch + reach, count, sigma / pitch, norm=2)
    for n, count in zip(shape, counts, strict=True)
  ]
  return sample(white, weights)


def coverage(signed_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
  """Share of each voxel inside a surface, [0, 1], from the distance inside it, mm."""
  return np.clip(signed_mm / np.float32(spacing_mm) + np.float32(0.5), 0, 1)


def paint(hu: np.ndarray, share: np.ndarray, value) -> None:
  """Lays a tissue of `value` HU over `hu`, in place, where it fills `share`."""
  hu += share * (value - hu)
