"""Morphology in mm on anisotropic grids: masks grow, shrink, close and fall apart."""

import numpy as np
from scipy import ndimage


def block_mean(hu: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
  """(x, y, z) -> (x / fx, y / fy, z / fz), rounded up; the last block may be short."""
  for axis, factor in enumerate(factors):
    if factor == 1:
      continue
    line = np.moveaxis(hu, axis, 0)
    total = line[::factor].astype(np.float32)
    rest = np.zeros_like(total)  # Apart from the first, as `np.add.reduceat` sums.
    for step in range(1, factor):  # One voxel of every block: whole planes at a time.
      one = line[step::factor]
      rest[: len(one)] += one
    total += rest
    starts = np.arange(0, len(line), factor)
    total /= np.diff(starts, append=len(line))[:, None, None].astype(np.float32)
    hu = np.moveaxis(total, 0, axis)
  return hu.astype(np.float32, copy=False)


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
  for axis, s in enumerate(mm):
    line = np.moveaxis(volume, axis, 0)
    volume = volume.copy()
    result = np.moveaxis(volume, axis, 0)
    for step in range(1, round(radius_mm / s) + 1):
      for to, by in ((result[step:], line[:-step]), (result[:-step], line[step:])):
        np.maximum(to, by, out=to)
  return volume


def shrink(mask: np.ndarray, radius_mm: float, mm: np.ndarray) -> np.ndarray:
  """Eroded with that box; beyond the border the mask goes on."""
  return ~grow(~mask, radius_mm, mm)


def components(
  mask: np.ndarray, cross: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Labels, and voxels of each label; the background counts as empty."""
  labels, count = ndimage.label(mask, cross)
  return labels, np.bincount(labels[labels > 0], minlength=count + 1)


def depth(mask: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """(x, y, z) distance to the nearest voxel outside the mask, mm; 0 outside."""
  result = np.zeros(mask.shape)
  box = bounds(mask, margin=1)
  nearest = ndimage.distance_transform_edt(
    mask[box], mm, return_distances=False, return_indices=True
  )
  squares = result[box]
  for axis, s in enumerate(mm):  # One at a time: scipy holds all three as float64.
    line, places = np.moveaxis(squares, axis, -1), np.arange(squares.shape[axis])
    away = (np.moveaxis(nearest[axis], axis, -1) - places.astype(np.int32)) * s
    line += away * away
  np.sqrt(squares, out=squares)
  return result


def bounds(mask: np.ndarray, margin: int) -> tuple[slice, slice, slice]:
  """The box that holds all of a mask, and so many voxels more where there are any."""
  found = next(iter(ndimage.find_objects(mask.view(np.uint8))), None)
  return tuple(
    slice(max(s.start - margin, 0), s.stop + margin)
    for s in found or (slice(0, n) for n in mask.shape)
  )


def close_balls(
  mask: np.ndarray, radii_mm: tuple[float, ...], mm: np.ndarray
) -> list[np.ndarray]:
  """The mask closed with a ball of each radius; true balls, however uneven the grid."""
  margin = [(int(max(radii_mm) // s) + 2,) * 2 for s in mm]
  inner = tuple(slice(a, -b) for a, b in margin)
  away = depth(~np.pad(mask, margin), mm)
  depths = (depth(away <= r, mm) for r in radii_mm)
  return [mask | (d > r)[inner] for d, r in zip(depths, radii_mm, strict=True)]
