"""What is measured of a scan (paper, Section III-E, and what radiologists use)."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from covid3way.base import LEFT, RIGHT, ScanWarning, WarningKind
from covid3way.scans.lobes import LOBES
from covid3way.segmentation.aggregators import LEVELS

SIDES = {'left': LEFT, 'right': RIGHT}
THIRDS = ('upper', 'middle', 'lower')


@dataclasses.dataclass(frozen=True)
class SeverityScale:
  """A CT severity score: points per part of the lungs, and their sum.

  Attributes:
    name: of the score.
    source: who published it.
    parts: number of parts.
    cuts: per point from the first on, the infected share in percent that earns it, and
      whether that very share does already.
    words: what each number of points means, from none on.
  """

  name: str
  source: str
  parts: int
  cuts: tuple[tuple[int, bool], ...]
  words: tuple[str, ...]

  def points(self, infected: int, lung: int) -> int:
    """Of a part with so many infected voxels among so many of lung; exact."""
    whole = 100 * infected
    return sum(
      whole >= percent * lung if reached else whole > percent * lung
      for percent, reached in self.cuts
    )

  @property
  def most(self) -> int:
    """The largest sum."""
    return self.parts * len(self.cuts)


# Published for eyes and whole percents: 5-25, 26-49, 50-75. What lies between 25 and 26
# and between 49 and 50 % is 26-49 here, so that 25 and 50 % keep their points.
LOBE_SCALE = SeverityScale(
  'CT severity score of the five lobes',
  'Pan et al., Radiology 2020;295:715-721',
  len(LOBES),
  ((0, False), (5, True), (25, False), (50, True), (75, False)),
  ('0 %', 'below 5 %', '5 to 25 %', 'above 25, below 50 %', '50 to 75 %', 'above 75 %'),
)
# There zones end at the carina and the inferior pulmonary veins, here at thirds of the
# lungs' height, which need no landmarks.
ZONE_SCALE = SeverityScale(
  'CT score of six zones, thirds of the height of each lung',
  'after Ooi et al., Radiology 2004;230:836-844',
  len(SIDES) * len(THIRDS),
  ((0, False), (25, True), (50, True), (75, True)),
  ('0 %', 'below 25 %', '25 % to below 50 %', '50 % to below 75 %', '75 % and more'),
)

# Bands of density, HU from which each begins. This project's convention, near to what
# others use: -950 is the usual limit of emphysema (Gevenois et al., 1996); -300 did
# best of eight limits between ground glass and consolidation in COVID-19
# (doi 10.1186/s12879-021-06556-z); that ground glass begins at -700 is ours. Vessels
# are as dense as consolidation: only the infected part of that band means disease.
BANDS_HU = {
  'low_attenuation': -np.inf,
  'normal': -950.0,
  'ground_glass': -700.0,
  'consolidation': -300.0,
}
BIN_EDGES_HU = np.arange(-1025.0, 201.0, 25.0)  # Every limit of a band is among them.

# Masks of views that overlap less than this, in the mean of all pairs, are not to be
# relied on, unless none finds more than so many percent of the lungs infected: of a few
# voxels each may find its own. This project's convention.
RELIABLE_MEAN_DICE = 0.5
RELIABLE_PERCENT = 1.0


def _thirds(level_has_lung: np.ndarray) -> dict[str, slice]:
  """Upper, middle and lower third of the lungs' height, as slices of z."""
  levels = np.flatnonzero(level_has_lung)
  if not len(levels):
    raise ValueError('the lung mask is empty')
  cuts = np.rint(np.linspace(levels[0], levels[-1] + 1, 4)).astype(int)
  spans = itertools.pairwise(cuts)
  return {n: slice(a, b) for n, (a, b) in zip(THIRDS[::-1], spans, strict=True)}


def quantify(
  infection: np.ndarray,
  lungs: np.ndarray,
  voxel_ml: float,
  *,
  lobes: np.ndarray | None = None,
) -> dict[str, Any]:
  """Volumes, infected shares and severity on one grid, a plane in memory at a time.

  Severity is the sum of points that parts of the lungs get for their infected share:
  with lobes `LOBE_SCALE`, 0 to 25: 1 point above 0 %, 2 from 5 %, 3 above 25 %, 4 from
  50 %, 5 above 75 % (Pan et al., 2020); without lobes `ZONE_SCALE`, 0 to 24: 1 point
  above 0 %, 2 from 25 %, 3 from 50 %, 4 from 75 % (after Ooi et al., 2004). The two
  are not the same number; `severity` names which it is.

  Args:
    infection: (x, y, z) bool; what lies outside the lungs does not count.
    lungs: (x, y, z) 1 left, 2 right, 0 elsewhere.
    voxel_ml: volume of a voxel.
    lobes: (x, y, z) of `lobes.named_lobes`, if there is a lobe mask.

  Returns:
    `infected_percent`, `infection_ml`, `lung_ml` of both lungs; the same under
    `per_lung` (`left`, `right`) and `per_third` (`upper`, `middle`, `lower`); with
    lobes under `per_lobe` and, for lung in none of them, `outside_lobes`. The share of
    a part without lung is None. `severity`: `name`, `source`, `total`, `maximum`,
    `scale` (points -> meaning) and `parts` (`infected_percent` and `points`, None of a
    part without lung).

  Raises:
    ValueError: there is no lung.
  """
  counts = _count(infection, lungs, lobes)
  spans = _thirds(counts.any(axis=(1, 2, 3)))

  def share(part: np.ndarray) -> dict[str, float | None]:
    healthy, infected = (int(n) for n in part.reshape(-1, 2).sum(axis=0))
    lung = healthy + infected
    return {
      'infected_percent': round(100 * infected / lung, 4) if lung else None,
      'infection_ml': round(infected * voxel_ml, 4),
      'lung_ml': round(lung * voxel_ml, 4),
    }

  result = {
    **share(counts),
    'per_lung': {name: share(counts[:, side]) for name, side in SIDES.items()},
    'per_third': {name: share(counts[spans[name]]) for name in THIRDS},
  }
  if lobes is None:
    zones = {
      f'{side}_{third}': counts[spans[third], label]
      for side, label in SIDES.items()
      for third in THIRDS
    }
    return {**result, 'severity': _severity(ZONE_SCALE, zones)}
  parts = {name: counts[:, :, label] for label, name in enumerate(LOBES, start=1)}
  return {
    **result,
    'per_lobe': {name: share(part) for name, part in parts.items()},
    'outside_lobes': share(counts[:, :, 0]),
    'severity': _severity(LOBE_SCALE, parts),
  }


def _count(
  infection: np.ndarray, lungs: np.ndarray, lobes: np.ndarray | None
) -> np.ndarray:
  """(z, 3, 6, 2) voxels of lung by height, lung, lobe, and whether infected."""
  shape = lungs.shape[2], len(SIDES) + 1, len(LOBES) + 1, 2
  counts = np.zeros(np.prod(shape), np.int64)
  for x in np.flatnonzero(lungs.any(axis=(1, 2))):
    y, z = np.nonzero(lungs[x])
    lobe = np.zeros_like(z) if lobes is None else lobes[x][y, z]
    infected = infection[x][y, z] != 0
    where = (
      z,
      lungs[x][y, z].astype(np.intp),
      lobe.astype(np.intp),
      infected.astype(int),
    )
    counts += np.bincount(np.ravel_multi_index(where, shape), minlength=counts.size)
  return counts.reshape(shape)


def _severity(scale: SeverityScale, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
  points = {}
  for name, part in parts.items():
    healthy, infected = (int(n) for n in part.reshape(-1, 2).sum(axis=0))
    lung = healthy + infected
    points[name] = {
      'infected_percent': round(100 * infected / lung, 4) if lung else None,
      'points': scale.points(infected, lung) if lung else None,
    }
  return {
    'name': scale.name,
    'source': scale.source,
    'total': sum(part['points'] or 0 for part in points.values()),
    'maximum': scale.most,
    'scale': {str(n): words for n, words in enumerate(scale.words)},
    'parts': points,
  }


def densities(
  hu: np.ndarray, infection: np.ndarray, lungs: np.ndarray, voxel_ml: float
) -> dict[str, Any]:
  """How dense the lungs are, and what of them is infected.

  Args:
    hu: (x, y, z) Hounsfield units.
    infection: (x, y, z) mask on the same grid; only what lies in the lungs counts.
    lungs: (x, y, z) mask on the same grid.
    voxel_ml: volume of a voxel.

  Returns:
    `edges_hu`, the e bin edges, each the start of a bin; `lung_voxels` and
    `infection_voxels`, e + 1 counts: below the first edge, the bins, from the last edge
    up; `voxel_ml`; `bands`, by the names of `BANDS_HU`: `from_hu` (None: no limit),
    `below_hu`, and of the lungs and of the infection in the band `..._voxels`,
    `..._ml`, and as a share of the lungs `lung_percent` and `infected_percent`.
    Counts of bins and of bands both add up to all voxels of lung and of infection.

  Raises:
    ValueError: there is no lung.
  """
  counts = np.zeros((2, len(BIN_EDGES_HU) + 1), np.int64)
  for x in np.flatnonzero(lungs.any(axis=(1, 2))):
    inside = lungs[x] != 0
    bins = np.searchsorted(BIN_EDGES_HU, hu[x][inside], side='right')
    infected = infection[x][inside] != 0
    for total, chosen in zip(counts, (bins, bins[infected]), strict=True):
      total += np.bincount(chosen, minlength=len(total))
  lung = int(counts[0].sum())
  if not lung:
    raise ValueError('the lung mask is empty')
  starts = [*BANDS_HU.values(), np.inf]
  bands = {}
  for name, low, high in zip(BANDS_HU, starts, starts[1:], strict=False):
    first, stop = (_first_bin(limit) for limit in (low, high))
    of_lung, of_infection = (int(n) for n in counts[:, first:stop].sum(axis=1))
    bands[name] = {
      'from_hu': low if np.isfinite(low) else None,
      'below_hu': high if np.isfinite(high) else None,
      'lung_voxels': of_lung,
      'lung_ml': round(of_lung * voxel_ml, 4),
      'lung_percent': round(100 * of_lung / lung, 4),
      'infection_voxels': of_infection,
      'infection_ml': round(of_infection * voxel_ml, 4),
      'infected_percent': round(100 * of_infection / lung, 4),
    }
  return {
    'edges_hu': BIN_EDGES_HU.tolist(),
    'lung_voxels': counts[0].tolist(),
    'infection_voxels': counts[1].tolist(),
    'voxel_ml': voxel_ml,
    'bands': bands,
  }


def _first_bin(limit_hu: float) -> int:
  """Index among the counts of the bin that begins at a limit of a band."""
  if limit_hu == -np.inf:
    return 0
  return int(np.searchsorted(BIN_EDGES_HU, limit_hu)) + 1


def disagreement(
  maps: Mapping[str, np.ndarray], lungs: np.ndarray
) -> dict[str, Any] | None:
  """How far the views' own masks, probability > 0.5, differ inside the lungs.

  Args:
    maps: view -> (x, y, z) probabilities, uint8 0 ... 255 or floats 0 ... 1.
    lungs: (x, y, z) lung mask.

  Returns:
    None of a single map. `pair_dice` of each pair of views, 1 where both are empty, and
    `mean_pair_dice`; `disputed_percent`, the share of the lungs where not all views
    agree; `infected_percent` of each view; `relative_spread`, the largest less the
    smallest of these over their mean, None where all are 0; `reliable`: not if the mean
    of the pairs' Dice is below `RELIABLE_MEAN_DICE` while a view finds more than
    `RELIABLE_PERCENT` of the lungs infected.

  Raises:
    ValueError: there is no lung.
  """
  if len(maps) < 2:
    return None
  patterns = _patterns(list(maps.values()), lungs)
  lung = int(patterns.sum())
  if not lung:
    raise ValueError('the lung mask is empty')
  codes = np.arange(len(patterns))
  finds = {view: (codes >> bit & 1).astype(bool) for bit, view in enumerate(maps)}
  found = {view: int(patterns[chosen].sum()) for view, chosen in finds.items()}
  pairs = {}
  for a, b in itertools.combinations(maps, 2):
    both, size = int(patterns[finds[a] & finds[b]].sum()), found[a] + found[b]
    pairs[f'{a}-{b}'] = 2 * both / size if size else 1.0
  percent = {view: 100 * n / lung for view, n in found.items()}
  shares = list(percent.values())
  mean_dice, mean_percent = float(np.mean(list(pairs.values()))), float(np.mean(shares))
  spread = (max(shares) - min(shares)) / mean_percent if mean_percent else None
  return {
    'pair_dice': {pair: round(value, 4) for pair, value in pairs.items()},
    'mean_pair_dice': round(mean_dice, 4),
    'disputed_percent': round(100 * int(patterns[1:-1].sum()) / lung, 4),
    'infected_percent': {view: round(value, 4) for view, value in percent.items()},
    'relative_spread': None if spread is None else round(spread, 4),
    'reliable': mean_dice >= RELIABLE_MEAN_DICE or max(shares) <= RELIABLE_PERCENT,
  }


def _patterns(maps: list[np.ndarray], lungs: np.ndarray) -> np.ndarray:
  """(2 ** views,) voxels of lung by which views find them; bit v is the v-th view."""
  patterns = np.zeros(2 ** len(maps), np.int64)
  halves = [LEVELS / 2 if each.dtype.kind == 'u' else 0.5 for each in maps]
  for x in np.flatnonzero(lungs.any(axis=(1, 2))):
    inside = lungs[x] != 0
    codes = np.zeros(np.count_nonzero(inside), np.intp)
    for bit, (each, half) in enumerate(zip(maps, halves, strict=True)):
      codes |= (each[x][inside] > half).astype(np.intp) << bit
    patterns += np.bincount(codes, minlength=len(patterns))
  return patterns


def disagreement_warnings(found: Mapping[str, Any] | None) -> tuple[ScanWarning, ...]:
  """A warning if what `disagreement` found is not to be relied on."""
  if found is None or found['reliable']:
    return ()
  message = (
    f'the views overlap by a mean Dice of {found["mean_pair_dice"]:.2f} only, and '
    f'disagree on {found["disputed_percent"]:.1f} % of the lungs; look at the mask '
    'before using its numbers'
  )
  return (ScanWarning(WarningKind.VIEWS_DISAGREE, message),)
