"""Infected share of the lungs, whole and by part (paper, Section III-E)."""

import itertools
from typing import Any

import numpy as np

from covid3way.base import LEFT, RIGHT


def thirds(lungs: np.ndarray) -> dict[str, slice]:
  """Upper, middle and lower third of the lungs' height, as slices of z.

  Raises:
    ValueError: the mask is empty.
  """
  levels = np.flatnonzero(lungs.any(axis=(0, 1)))
  if not len(levels):
    raise ValueError('the lung mask is empty')
  cuts = np.rint(np.linspace(levels[0], levels[-1] + 1, 4)).astype(int)
  names = ('lower', 'middle', 'upper')
  spans = itertools.pairwise(cuts)
  return {n: slice(a, b) for n, (a, b) in zip(names, spans, strict=True)}


def quantify(
  infection: np.ndarray, lungs: np.ndarray, voxel_ml: float
) -> dict[str, Any]:
  """Volumes and infected shares on one grid.

  Args:
    infection: (x, y, z) bool; what lies outside the lungs does not count.
    lungs: (x, y, z) 1 left, 2 right, 0 elsewhere.
    voxel_ml: volume of a voxel.

  Returns:
    `infected_percent`, `infection_ml`, `lung_ml` of both lungs; the same under
    `per_lung` (`left`, `right`) and `per_third` (`upper`, `middle`, `lower`).
    The share of a part without lung is None.
  """

  def share(part: np.ndarray, infected: np.ndarray) -> dict[str, float | None]:
    lung_voxels = int(np.count_nonzero(part))
    voxels = int(np.count_nonzero(part & infected))
    return {
      'infected_percent': round(100 * voxels / lung_voxels, 4) if lung_voxels else None,
      'infection_ml': round(voxels * voxel_ml, 4),
      'lung_ml': round(lung_voxels * voxel_ml, 4),
    }

  lung, infected = lungs > 0, np.asarray(infection, bool)
  parts = thirds(lung)
  return {
    **share(lung, infected),
    'per_lung': {
      'left': share(lungs == LEFT, infected),
      'right': share(lungs == RIGHT, infected),
    },
    'per_third': {
      name: share(lung[:, :, parts[name]], infected[:, :, parts[name]])
      for name in ('upper', 'middle', 'lower')
    },
  }
