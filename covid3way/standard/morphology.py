"""Morphology in mm on anisotropic grids: masks grow, shrink, close and fall apart."""

import numpy as np
from scipy import ndimage


def block_mean(hu: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
  """(x, y, z) -> (x / fx, y / fy, z / fz), rounded up; the last block may be short."""
  for axis, factor in enumerate(factors):
    n = hu.shape[axis]
    starts = np.arange(0, n, factor)
    hu = np.add.reduceat(hu, starts, axis=axis, dtype=np.float32)
    np.moveaxis(hu, axis, -1)[...] /= np.diff(starts, append=n)
  return hu


def between_blocks(
  means: np.ndarray, factors: tuple[int, int, int], shape: tuple[int, int, int]
) -> np.ndarray:
  """Block means -> `shape`, linear between the blocks' centres, constant beyond."""
  for axis, (factor, n) in enumerate(zip(factors, shape, strict=True)):
    last = means.shape[axis] - 1
    at = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, last)
    low = np.minimum(at.astype(int), max(last - 1, 0))
    toward_next = np.expand_dims((at - low).astype(np.float32), (0, 1))
    result = means.take(low, axis)
    step = means.take(np.minimum(low + 1, last), axis)
    step -= result
    step *= np.moveaxis(toward_next, -1, axis)
    means = result + step
  return means


def grow(volume: np.ndarray, radius_mm: float, mm: np.ndarray) -> np.ndarray:
  """Dilated with a box that reaches `radius_mm` to each side; labels grow too."""
  box = [2 * round(radius_mm / s) + 1 for s in mm]
  return ndimage.maximum_filter(volume, box, mode='nearest')


def shrink(mask: np.ndarray, radius_mm: float, mm: np.ndarray) -> np.ndarray:
  """Eroded with that box; beyond the border the mask goes on."""
  return ~grow(~mask, radius_mm, mm)


def components(
  mask: np.ndarray, cross: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Labels, and voxels of each label; the background counts as empty."""
  labels, _ = ndimage.label(mask, cross)
  sizes = np.bincount(labels.ravel())
  sizes[0] = 0
  return labels, sizes


def close_balls(
  mask: np.ndarray, radii_mm: tuple[float, ...], mm: np.ndarray
) -> list[np.ndarray]:
  """The mask closed with a ball of each radius; true balls, however uneven the grid."""
  margin = [(int(max(radii_mm) // s) + 2,) * 2 for s in mm]
  inner = tuple(slice(a, -b) for a, b in margin)
  away = ndimage.distance_transform_edt(~np.pad(mask, margin), sampling=mm)
  depths = (ndimage.distance_transform_edt(away <= r, sampling=mm) for r in radii_mm)
  return [mask | (d > r)[inner] for d, r in zip(depths, radii_mm, strict=True)]
