"""Where in a healthy lung infection is likely to appear: rim, back and base.

"ground glass opacity (GGO) lesions in the peripheral and posterior lungs" are what CT
of COVID-19 shows (paper, Section I).
"""

import dataclasses

import numpy as np
from scipy import ndimage

from covid3way.standard import morphology

_BLOCK_MM = 2.0
# Deep lung is rarely, not never, infected.
_CORE = 0.05


@dataclasses.dataclass(frozen=True)
class Location:
  """Where births are likelier. By default they have no preferred place.

  Attributes:
    rim_mm: depth below the pleura over which infection becomes e times rarer; 0: it is
      the same at any depth.
    posterior: how many times likelier it is at the back of the lungs than in front.
    basal: how many times likelier it is at their base than at their apex.
  """

  rim_mm: float = 0.0
  posterior: float = 1.0
  basal: float = 1.0


def location_prior(
  lungs: np.ndarray, spacing_mm: tuple[float, float, float], location: Location
) -> np.ndarray | None:
  """`Anatomy.prior` of a location; None if there is no preferred place.

  Args:
    lungs: (x, y, z), 0 outside the lungs; y runs back, z to the head.
    spacing_mm: distance of voxel centres along x, y, z.
    location: what is likelier.

  Returns:
    (x, y, z) float32, 0 outside the lungs, at most 1 within.
  """
  if location == Location():
    return None
  prior = peripheral_prior(lungs, spacing_mm, **dataclasses.asdict(location))
  return prior / max(prior.max(), np.float32(1e-6))


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
    rim_mm: see `Location`, as all that follow.
    posterior: > 0.
    basal: > 0.

  Returns:
    (x, y, z) float32, 0 outside the lungs, mean 1 within.
  """
  lung = np.asarray(lungs) > 0
  prior = np.zeros(lung.shape, np.float32)
  boxes = ndimage.find_objects(lung.view(np.uint8))
  if not boxes:
    return prior
  box = boxes[0]
  weight = lung[box].astype(np.float32)
  if rim_mm:
    depth_mm = _depth_mm(lung[box], np.asarray(spacing_mm, float))
    weight *= np.exp(-depth_mm / np.float32(rim_mm)) + np.float32(_CORE)
  _, back, up = (np.linspace(0, 1, n, dtype=np.float32) for n in weight.shape)
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
