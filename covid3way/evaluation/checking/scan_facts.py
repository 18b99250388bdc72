"""What `check` measures of one scan, as JSON values. Nothing is judged here."""

from typing import Any

import numpy as np

from covid3way.base import AIR_HU, LEFT, RIGHT, Grid
from covid3way.standard import space as spaces
from covid3way.standard.window import parenchyma_mode_hu, soft_tissue_mode_hu

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
AERATED_HU = -500.0
ORIENTATIONS = ('sagittal', 'coronal', 'axial')
_HIGHEST_HU = 4096  # Above it all values count alike.
_CELLS = 12  # Of a pattern, per axis.
_SLAB = 16


def geometry(grid: Grid) -> dict[str, Any]:
  """Size, spacing and which way the slices lie; all along x, y, z."""
  across = next(i for i, (native, _) in enumerate(grid.axes) if native == 2)
  sizes = zip(grid.shape, grid.spacing_mm, strict=True)
  return {
    'shape': list(grid.shape),
    'spacing_mm': [round(s, 4) for s in grid.spacing_mm],
    'field_of_view_mm': [round(n * s, 1) for n, s in sizes],
    'orientation': ORIENTATIONS[across],
    'slices': grid.shape[across],
    'slice_distance_mm': round(grid.spacing_mm[across], 4),
  }


def signal(hu: np.ndarray) -> dict[str, Any]:
  """How the values of a scan are distributed.

  Args:
    hu: (x, y, z), Hounsfield units, not below -1024.

  Returns:
    Percentiles to 1 HU; the shares of voxels that are -1024 (padding, for what was
    stored below it was set to it) and the scan's highest value.
  """
  counts = np.zeros(_HIGHEST_HU - int(AIR_HU) + 1, np.int64)
  highest, at_highest = hu.max(), 0
  for start in range(0, len(hu), _SLAB):
    slab = hu[start : start + _SLAB]
    at_highest += np.count_nonzero(slab == highest)
    bins = np.rint(np.clip(slab, AIR_HU, _HIGHEST_HU) - AIR_HU).astype(np.int32)
    counts += np.bincount(bins.ravel(), minlength=counts.size)
  below = np.cumsum(counts)
  ranks = np.ceil(np.divide(PERCENTILES, 100) * hu.size)
  at = np.searchsorted(below, ranks) + int(AIR_HU)
  return {
    'lowest_hu': round(float(hu.min()), 1),
    'highest_hu': round(float(highest), 1),
    'percentiles_hu': dict(zip(map(str, PERCENTILES), at.tolist(), strict=True)),
    'padding_percent': round(100 * int(counts[0]) / hu.size, 3),
    'highest_percent': round(100 * int(at_highest) / hu.size, 4),
  }


def lungs(
  hu: np.ndarray, labels: np.ndarray, grid: Grid, space: spaces.StandardSpace
) -> dict[str, Any]:
  """Where the lungs are, how large, how dense, and what is around them.

  Args:
    hu: (x, y, z), Hounsfield units.
    labels: (x, y, z) 1 left, 2 right; not empty.
    grid: of both.
    space: the scan is to be cast into.
  """
  inside = labels > 0
  values = hu[inside]
  sides = {'left': LEFT, 'right': RIGHT}
  voxels = {name: int((labels == side).sum()) for name, side in sides.items()}
  placement = spaces.place(grid.shape, grid.spacing_mm, space, labels)
  return {
    **{f'{name}_ml': round(n * grid.voxel_ml, 1) for name, n in voxels.items()},
    'cut_cm2': _cut_cm2(inside, grid.spacing_mm),
    'outside_box_ml': round(spaces.outside_ml(inside, placement), 2),
    'aerated_percent': round(100 * float(np.mean(values < AERATED_HU)), 2),
    'median_hu': round(float(np.median(values)), 1),
    'parenchyma_hu': parenchyma_mode_hu(hu, labels),
    'soft_tissue_hu': soft_tissue_mode_hu(hu, labels),
  }


def _cut_cm2(inside: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[float]:
  """Area of lung on the first and last layer along x, y and z together."""
  volume_mm3 = np.prod(spacing_mm)
  voxels = [np.count_nonzero(inside.take((0, -1), axis)) for axis in range(3)]
  each = zip(voxels, spacing_mm, strict=True)
  return [round(float(n * volume_mm3 / s / 100), 2) for n, s in each]


def infection(
  hu: np.ndarray, mask: np.ndarray, labels: np.ndarray | None, voxel_ml: float
) -> dict[str, Any]:
  """Size and place of an infection mask.

  Args:
    hu: (x, y, z), Hounsfield units.
    mask: (x, y, z), above 0 where infected.
    labels: (x, y, z), above 0 in the lungs; None where they are not known.
    voxel_ml: volume of a voxel.
  """
  infected = mask > 0
  total = np.count_nonzero(infected)
  told = {
    'labels': np.flatnonzero(_counts(mask))[int(not mask.all()) :].tolist(),
    'ml': round(total * voxel_ml, 2),
  }
  if total:
    told['median_hu'] = round(float(np.median(hu[infected])), 1)
  if labels is not None:
    inside = labels > 0
    within = np.count_nonzero(infected & inside)
    told['infected_percent'] = round(100 * within / np.count_nonzero(inside), 4)
    if total:
      told['outside_lungs_percent'] = round(100 * (total - within) / total, 2)
  return told


def _counts(mask: np.ndarray) -> np.ndarray:
  """Voxels of each label, a plane at a time, since each becomes eight bytes."""
  return sum(np.bincount(plane.ravel(), minlength=256) for plane in mask)


def pattern(hu: np.ndarray, labels: np.ndarray) -> list[int]:
  """Means of 12 x 12 x 12 cells of the box around the lungs, HU; [] of a smaller box.

  Reconstructions of one acquisition have nearly the same, however thick their slices;
  other scans, of the same patient too, have not.
  """
  box = [np.flatnonzero(labels.any(axis=o))[[0, -1]] for o in ((1, 2), (0, 2), (0, 1))]
  means = hu[tuple(slice(a, b + 1) for a, b in box)]
  if min(means.shape) < _CELLS:
    return []
  means = np.clip(means, AIR_HU, 200)
  for axis, n in enumerate(means.shape):
    starts = np.arange(_CELLS) * n // _CELLS
    means = np.add.reduceat(means, starts, axis=axis, dtype=np.float32)
    np.moveaxis(means, axis, -1)[...] /= np.diff(starts, append=n)
  return np.rint(means).astype(int).ravel().tolist()
