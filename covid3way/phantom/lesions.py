"""COVID-19 lesions: ground glass with consolidated cores, mostly at the lung's rim.

Anatomy enters as arrays, so lesions made elsewhere can take this place.
"""

import dataclasses

import numpy as np
import scipy.ndimage

from covid3way import base
from covid3way.phantom import fields

GGO, CONSOLIDATION = 1, 2


@dataclasses.dataclass(frozen=True)
class LesionStyle:
  """Where lesions sit and what they look like.

  Attributes:
    consolidated: share of the infected voxels that is consolidation.
    ggo_signal, consolidation_signal: levels, window units (the two peaks of Fig. 3).
    ggo_texture, consolidation_texture: standard deviations, window units.
    radius_mm: smallest and largest lesion.
    rim_mm: depth below the pleura over which lesions become e times rarer.
    posterior, basal: how many times likelier lesions are at the back (at the base)
      of the lung than at its front (at its apex).
    flatness: thickness of a lesion across the pleura, relative to its width.
    ragged: how far smooth noise moves the border, in radii.
  """

  consolidated: float = 0.2
  ggo_signal: float = -0.025
  consolidation_signal: float = 0.1
  ggo_texture: float = 0.034
  consolidation_texture: float = 0.04
  radius_mm: tuple[float, float] = (2.5, 45.0)
  rim_mm: float = 6.0
  posterior: float = 16.0
  basal: float = 5.0
  flatness: float = 0.5
  ragged: float = 0.32


def draw_lesions(
  rng: np.random.Generator,
  lungs: np.ndarray,
  susceptible: np.ndarray,
  *,
  share: float,
  spacing_mm: float,
  style: LesionStyle = LesionStyle(),
) -> tuple[np.ndarray, np.ndarray]:
  """Lesions that fill a given share of the lungs.

  Args:
    rng: its own stream.
    lungs: (x, y, z) uint8, one label per lung; a lesion stays in its lung.
    susceptible: (x, y, z) bool, where lesions may be.
    share: infected voxels / lung voxels, met exactly.
    spacing_mm: edge of a voxel.
    style: everything else.

  Returns:
    infection (x, y, z) bool and signal (x, y, z) float32, window units, 0 elsewhere.
    Ground glass is below 0, consolidation above.

  Raises:
    ConfigError: `share` is not in (0, 0.6] or the lesions cannot reach it.
  """
  if not 0 < share <= 0.6:
    raise base.ConfigError('share', f'{share} is out of range', 'use (0, 0.6]')
  infection = np.zeros(lungs.shape, bool)
  signal = np.zeros(lungs.shape, np.float32)
  box = scipy.ndimage.find_objects((lungs > 0).astype(np.uint8))[0]
  lungs, susceptible = lungs[box], susceptible[box]
  depth = scipy.ndimage.distance_transform_edt(lungs > 0).astype(np.float32)
  depth *= np.float32(spacing_mm)
  count = max(1, round(share * np.count_nonzero(lungs)))
  score = _score(rng, lungs, susceptible, depth, count, spacing_mm, style)
  candidates = score[susceptible]
  last = candidates.size - count
  border = np.partition(candidates, last)[last] if last >= 0 else -np.inf
  if not np.isfinite(border):
    raise base.ConfigError('share', f'{share} is out of reach', 'use larger lesions')
  infection[box] = susceptible & (score >= border)
  signal[box] = _signal(rng, infection[box], score - border, depth, spacing_mm, style)
  return infection, signal


def kinds(infection: np.ndarray, signal: np.ndarray) -> np.ndarray:
  """0 normal, 1 ground glass, 2 consolidation, (x, y, z) uint8."""
  return np.where(infection, np.where(signal < 0, GGO, CONSOLIDATION), 0).astype(
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


def _signal(rng, infection, inside, depth, spacing_mm, style) -> np.ndarray:
  """Window units: ground glass that thins out at the border, cores near the pleura."""
  patches = fields.smooth_noise(rng, infection.shape, 11 / spacing_mm)
  patches += 0.6 * fields.smooth_noise(rng, infection.shape, 4 / spacing_mm)
  solid = inside + 0.35 * patches + 0.5 * np.exp(-depth / 8)
  limit = np.quantile(solid[infection], 1 - style.consolidated)
  core = infection & (solid >= limit)
  texture = 0.8 * fields.smooth_noise(rng, infection.shape, 3 / spacing_mm)
  texture += 0.6 * fields.smooth_noise(rng, infection.shape, 9 / spacing_mm)
  border = np.exp(-np.maximum(inside, 0) / 0.06)
  ggo = style.ggo_signal + style.ggo_texture * texture - 0.05 * border
  dense = style.consolidation_signal + style.consolidation_texture * texture
  # Below -0.15 a voxel counts as recovered; 0 divides the stages.
  signal = np.where(core, np.clip(dense, 0.004, 0.25), np.clip(ggo, -0.14, -0.004))
  return np.where(infection, signal, 0).astype(np.float32)
