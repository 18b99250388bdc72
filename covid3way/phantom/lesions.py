"""Where COVID-19 begins: patches, mostly at the rim of the lung.

What they become is the simulator's work. Anatomy enters as arrays.
"""

import dataclasses

import numpy as np
import scipy.ndimage

from covid3way import base
from covid3way.phantom import fields
from covid3way.simulator.law import NEWBORN, STAGE

GGO, CONSOLIDATION = 1, 2
_ONSET = 0.5  # Share of a lesion's final voxels that are infected at its onset.
_CORE = 0.25  # Share of them, the innermost, that begins consolidated.
_BORDER = 0.05  # Width over which births become rare outside a lesion, in radii.


@dataclasses.dataclass(frozen=True)
class LesionStyle:
  """Where lesions sit and what shape they have.

  Attributes:
    radius_mm: smallest and largest lesion.
    rim_mm: depth below the pleura over which lesions become e times rarer.
    posterior, basal: how many times likelier lesions are at the back (at the base)
      of the lung than at its front (at its apex).
    flatness: thickness of a lesion across the pleura, relative to its width.
    ragged: how far smooth noise moves the border, in radii.
  """

  radius_mm: tuple[float, float] = (2.5, 45.0)
  rim_mm: float = 6.0
  posterior: float = 16.0
  basal: float = 5.0
  flatness: float = 0.5
  ragged: float = 0.32


@dataclasses.dataclass(frozen=True, eq=False)
class Onset:
  """The start of a patient's disease, all (x, y, z).

  Attributes:
    infection: bool, a sparse part of the lesions-to-be.
    signal: float32, window units, where infected; 0 elsewhere.
    prior: float32 in (0, 1], how readily a voxel is infected: lesions keep the shape
      they were given while they fill up, and grow over it slowly.
  """

  infection: np.ndarray
  signal: np.ndarray
  prior: np.ndarray


def draw_onset(
  rng: np.random.Generator,
  lungs: np.ndarray,
  susceptible: np.ndarray,
  *,
  share: float,
  spacing_mm: float,
  style: LesionStyle,
) -> Onset:
  """Lesions that will fill a given share of the lungs, as they begin.

  Args:
    rng: its own stream.
    lungs: (x, y, z) uint8, one label per lung; a lesion begins in one of them.
    susceptible: (x, y, z) bool, where lesions may be.
    share: voxels of the lesions-to-be / lung voxels.
    spacing_mm: edge of a voxel.
    style: everything else.

  Raises:
    ConfigError: `share` is not in (0, 0.6] or the lesions cannot reach it.
  """
  if not 0 < share <= 0.6:
    raise base.ConfigError('share', f'{share} is out of range', 'use (0, 0.6]')
  depth = scipy.ndimage.distance_transform_edt(lungs > 0).astype(np.float32)
  depth *= np.float32(spacing_mm)
  count = max(1, round(share * np.count_nonzero(lungs)))
  score = _score(rng, lungs, susceptible, depth, count, spacing_mm, style)
  candidates = score[susceptible]
  last = candidates.size - count
  border = np.partition(candidates, last)[last] if last >= 0 else -np.inf
  if not np.isfinite(border):
    raise base.ConfigError('share', f'{share} is out of reach', 'use larger lesions')
  region = susceptible & (score >= border)
  infection = region & (rng.random(region.shape, np.float32) < _ONSET)
  level = rng.uniform(0.8 * NEWBORN, 0, region.shape).astype(np.float32)
  core = region & (score >= np.quantile(score[region], 1 - _CORE))
  level[core] *= -1
  outside = np.clip((border - score) / _BORDER, 0, 4)
  return Onset(infection, np.where(infection, level, np.float32(0)), np.exp(-outside))


def kinds(infection: np.ndarray, signal: np.ndarray) -> np.ndarray:
  """0 normal, 1 ground glass, 2 consolidation, (x, y, z) uint8."""
  return np.where(infection, np.where(signal < STAGE, GGO, CONSOLIDATION), 0).astype(
    np.uint8
  )


def _score(rng, lungs, susceptible, depth, count, spacing_mm, style) -> np.ndarray:
  """How far inside a lesion each voxel is, in radii; -inf where none is near."""
  score = np.full(lungs.shape, -np.inf, np.float32)
  slopes = [np.gradient(depth, axis=axis) for axis in range(3)]
  centres = _draw_centres(rng, susceptible, depth, style)
  for centre, radius in zip(
    centres, _draw_radii(rng, count, spacing_mm, style), strict=False
  ):
    reach = 2.2 * radius
    low = np.maximum(centre - np.ceil(reach).astype(int), 0)
    high = np.minimum(centre + np.ceil(reach).astype(int) + 1, lungs.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offset = np.ogrid[box]
    offset = [o.astype(np.float32) - c for o, c in zip(offset, centre, strict=True)]
    inward = np.array([s[tuple(centre)] for s in slopes])
    inward /= max(np.linalg.norm(inward), 1e-6)
    across = sum(np.float32(n) * o for n, o in zip(inward, offset, strict=True))
    far = sum(o**2 for o in offset) + (style.flatness**-2 - 1) * across**2
    near = 1 - np.sqrt(far) / np.float32(radius)
    near[lungs[box] != lungs[tuple(centre)]] = -np.inf
    np.maximum(score[box], near, out=score[box])
  noise = fields.smooth_noise(rng, score.shape, 16 / spacing_mm)
  noise += np.float32(0.45) * fields.smooth_noise(rng, score.shape, 6 / spacing_mm)
  return score + np.float32(style.ragged) * noise


def _draw_centres(rng, susceptible, depth, style, count: int = 400) -> np.ndarray:
  """(count, 3) voxels, likelier at the rim, the back and the base."""
  n = susceptible.shape
  back = np.linspace(0, np.log(style.posterior), n[1]).reshape(1, -1, 1)
  base_ = np.linspace(np.log(style.basal), 0, n[2]).reshape(1, 1, -1)
  weight = np.exp(back + base_ - depth / style.rim_mm) * susceptible
  total = np.cumsum(weight.ravel())
  chosen = np.searchsorted(total, rng.random(count) * total[-1])
  return np.stack(np.unravel_index(chosen, n), axis=1)


def _draw_radii(rng, count, spacing_mm, style) -> np.ndarray:
  """Radii in voxels, largest first, whose volumes add up to about `count` voxels."""
  volume = 4 / 3 * np.pi * style.flatness
  low, high = (r / spacing_mm for r in style.radius_mm)
  high = float(np.clip((0.5 * count / volume) ** (1 / 3), 1.3 * low, high))
  # Log-uniform: as many specks as large ones. The largest lesion always comes first.
  radii = np.exp(rng.uniform(np.log(low), np.log(high), 400))
  radii[0] = high
  # Half of a lesion at the rim lies outside the lung or in its neighbour.
  enough = np.searchsorted(np.cumsum(0.55 * volume * radii**3), count) + 1
  return radii[: max(enough, 3)]
