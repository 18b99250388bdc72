"""Where infection may appear: lung parenchyma, told from vessels and airways.

By what a scan shows of them: a vessel is denser than the parenchyma around it, an
airway is a hollow in a wall that is. A tube too thin for a grid to show stays in. The
numbers without a unit are window units; measured on phantoms, whose tubes are known.
"""

import numpy as np
from scipy import ndimage

from covid3way.standard import morphology

# The parenchyma around a voxel: boxes of this width, on blocks of that size.
_AROUND_MM, _BLOCK_MM = 12.0, 2.5
# What is denser than the lung's median by more is lesion, tumour, scar or collapse.
_DENSEST = 0.15
# A tube's flank is blurred: below this share of the peak beside it, it is lung.
_FLANK, _FLANK_MM, _BLOOD = 0.3, 1.6, 0.75
_SMOOTHING_MM = (0.0, 0.5, 0.8, 1.2)
# An airway's wall and its lumen's mean, against the parenchyma around; the mean against
# the lung's median; the largest section; the blur between lumen and wall.
_WALL, _LUMEN, _DARK, _LUMEN_MM2, _BETWEEN_MM = 0.04, -0.025, -0.005, 100.0, 0.6
# Noise makes smaller pieces, of tissue and of parenchyma.
_SPECK_MM3, _ISLAND_MM3 = 8.0, 50.0


def find_susceptible(
  signal: np.ndarray,
  lungs: np.ndarray,
  infection: np.ndarray,
  spacing_mm: tuple[float, float, float],
) -> np.ndarray:
  """Finds the parenchyma: lung, but no airway, vessel or other dense tissue.

  All of the infection mask is susceptible, vessels in it too: it was infected. Ground
  glass that the mask leaves out stays as far as it is faint, and is dense otherwise.

  Args:
    signal: (x, y, z), window units.
    lungs: (x, y, z), 0 outside the lungs.
    infection: (x, y, z), 0 where nothing is infected; may be empty.
    spacing_mm: distance of voxel centres along x, y, z.

  Returns:
    (x, y, z) bool, nowhere outside the lungs.
  """
  susceptible = np.zeros(lungs.shape, bool)
  mm = np.asarray(spacing_mm, float)
  box = _box(np.asarray(lungs) > 0, mm)
  if box is None:
    return susceptible
  own = np.asarray(signal)[box].astype(np.float32)
  lung, infected = (np.asarray(mask)[box] > 0 for mask in (lungs, infection))
  infected &= lung
  healthy = lung & ~infected
  if healthy.any():
    around = _background(own, healthy, mm)
    airways = _airways(own, around, healthy, mm)
    if infected.any():
      # A lesion fades out beside its mask; that is no wall around it.
      np.maximum(around, _background(own, lung, mm), out=around)
    healthy &= ~airways & ~_dense(own - around, healthy, mm)
  pieces, sizes = morphology.components(healthy | infected)
  susceptible[box] = (sizes * mm.prod() >= _ISLAND_MM3)[pieces] | infected
  return susceptible


def _box(lung: np.ndarray, mm: np.ndarray) -> tuple[slice, ...] | None:
  """Of the lungs and 3 mm around them, because filters look there; None if empty."""
  found = ndimage.find_objects(lung.view(np.uint8))
  if not found:
    return None
  reach = [round(3 / s) for s in mm]
  return tuple(
    slice(max(side.start - r, 0), side.stop + r)
    for side, r in zip(found[0], reach, strict=True)
  )


def _background(signal: np.ndarray, region: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """Signal of the parenchyma around each voxel, from `region`; (x, y, z) float32."""
  typical = np.float32(np.median(signal[region]))
  factors = tuple(
    int(np.clip(round(_BLOCK_MM / s), 1, n))
    for s, n in zip(mm, signal.shape, strict=True)
  )
  above = np.minimum(signal - typical, np.float32(_DENSEST)) * region
  share = morphology.block_mean(region.astype(np.float32), factors)
  level = morphology.block_mean(above, factors) / np.maximum(share, 1e-6)
  box = [2 * round(_AROUND_MM / 2 / s) + 1 for s in mm * factors]
  around = np.zeros_like(level)
  for spread in (np.inf, 0.06, 0.04):  # blocks with vessels leave one after another
    weight = share * (level - around < spread)
    around, known = (
      ndimage.uniform_filter(a, box, mode='constant') for a in (level * weight, weight)
    )
    around /= known + np.float32(1e-3)
  return morphology.between_blocks(around, factors, signal.shape) + typical


def _smooth(
  contrast: np.ndarray, healthy: np.ndarray, mm: np.ndarray, widths_mm, limit: float
) -> tuple[np.ndarray, float]:
  """Smoothed by as little as brings the noise below a limit, and the noise.

  It is taken from the dark half of the parenchyma, which holds no vessels.
  """
  for width_mm in widths_mm:
    smooth = ndimage.gaussian_filter(contrast, width_mm / mm, truncate=3)
    below = -smooth[healthy & (smooth < 0)]
    noise = 1.4826 * float(np.median(below)) if below.size else 0.0
    if noise <= limit:
      break
  return smooth, noise


def _dense(contrast: np.ndarray, healthy: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """Vessels, walls and whatever else is denser than the parenchyma around it."""
  # The coarser a grid, the more thin vessels are part of its parenchyma.
  least = np.clip(0.06 + 0.054 * np.cbrt(mm.prod()), 0.1, 0.25)
  smooth, _ = _smooth(contrast, healthy, mm, _SMOOTHING_MM, least / 3)
  box = [2 * round(_FLANK_MM / s) + 1 for s in mm]
  peak = ndimage.maximum_filter(np.minimum(smooth, np.float32(_BLOOD)), box)
  dense = (smooth > np.maximum(np.float32(least), np.float32(_FLANK) * peak)) & healthy
  labels, sizes = morphology.components(dense, np.ones((3, 3, 3)))
  return (sizes * mm.prod() >= _SPECK_MM3)[labels]


def _airways(
  signal: np.ndarray, around: np.ndarray, healthy: np.ndarray, mm: np.ndarray
) -> np.ndarray:
  """The lumens of airways: dark, and ringed by a wall in a plane along two axes.

  Emphysema is dark without a wall, and what vessels happen to ring is not dark; nor is
  lung between lesions, dark as it is against them.
  """
  contrast = signal - around
  smooth, noise = _smooth(contrast, healthy, mm, _SMOOTHING_MM[1:], 0.03)
  hollow = (smooth <= max(_WALL, 1.5 * noise)) & healthy
  depth, typical = contrast[hollow], np.median(signal[healthy])
  darkness = signal[hollow] - typical
  lumens = np.zeros(healthy.shape, bool)
  for normal in range(3):
    plane = ndimage.generate_binary_structure(3, 1)
    np.moveaxis(plane, normal, 0)[[0, 2]] = False
    pieces = ndimage.label(hollow, plane)[0][hollow]
    sizes = np.bincount(pieces)
    mean = lambda values: np.bincount(pieces, values) / np.maximum(sizes, 1)  # noqa: B023, E731
    small = sizes * np.delete(mm, normal).prod() <= _LUMEN_MM2
    dark = (mean(depth) < min(_LUMEN, -noise)) & (mean(darkness) < _DARK)
    lumens[hollow] |= (small & dark)[pieces]
  return morphology.grow(lumens, _BETWEEN_MM, mm)
