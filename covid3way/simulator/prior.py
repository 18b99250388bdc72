"""Where in a healthy lung infection is likely to appear: rim, back and base."""

import numpy as np
from scipy import ndimage

from covid3way.standard import morphology

_BLOCK_MM = 2.0
# Deep lung is rarely, not never, infected.
_CORE = 0.05


def peripheral_prior(
  lungs: np.ndarray,
  spacing_mm: tuple[float, float, float],
  *,
  rim_mm: float,
  posterior: float,
  basal: float,
) -> np.ndarray:
  """Weights for the place of new ground glass; for `Anatomy.prior`.

  Args:
    lungs: (x, y, z), 0 outside the lungs; y runs back, z to the head.
    spacing_mm: distance of voxel centres along x, y, z.
    rim_mm: depth below the pleura over which infection becomes e times rarer.
    posterior: how many times likelier it is at the back of the lungs than in front.
    basal: how many times likelier it is at their base than at their apex.

  Returns:
    (x, y, z) float32, 0 outside the lungs, mean 1 within.
  """
  lung = np.asarray(lungs) > 0
  prior = np.zeros(lung.shape, np.float32)
  boxes = ndimage.find_objects(lung.view(np.uint8))
  if not boxes:
    return prior
  box = boxes[0]
  rim = np.exp(
    -_depth_mm(lung[box], np.asarray(spacing_mm, float)) / np.float32(rim_mm)
  )
  _, back, up = (np.linspace(0, 1, n, dtype=np.float32) for n in rim.shape)
  weight = (rim + np.float32(_CORE)) * lung[box]
  weight *= np.float32(posterior) ** back[:, None] * np.float32(basal) ** (1 - up)
  prior[box] = weight / weight.sum(dtype=float) * np.count_nonzero(lung)
  return prior


def _depth_mm(lung: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """Distance to the nearest voxel outside, measured on blocks; (x, y, z) float32."""
  factors = tuple(max(1, round(_BLOCK_MM / s)) for s in mm)
  factors = tuple(min(f, n) for f, n in zip(factors, lung.shape, strict=True))
  inside = np.pad(morphology.block_mean(lung, factors) > 0.5, 1)
  depth = ndimage.distance_transform_edt(inside, sampling=mm * factors)
  depth = depth[1:-1, 1:-1, 1:-1].astype(np.float32)
  return morphology.between_blocks(depth, factors, lung.shape)
