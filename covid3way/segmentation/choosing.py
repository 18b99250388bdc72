"""The choice of the aggregation function g on validation scans (paper, Section III-D).

The paper tries "linear combination with fixed or learnable weights, then taking a
threshold; multiplying them together; using SVM with these three values as features",
and finds `sum > 2` best. Here the same candidates are measured on a model's own
validation scans.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covid3way.segmentation import aggregators
from covid3way.segmentation.aggregators import LEVELS, Aggregator

NAMES = ('sum > 2', 'sum', 'weighted', 'learned', 'product', 'logistic', 'svm')
_TWELFTHS = 12  # The search's step: a third, half and quarter are all among them.
_COARSE_BITS = 6  # Of a level, where weights are fitted: 64 levels of 1.6 %.
_SCAN_WEIGHT = 1e4  # Of a scan in a fit: its data outweigh the fit's regularisation.


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
  """One scan's voxels inside a region (the lungs), as many as are alike in one row.

  Attributes:
    views: (v,) names.
    levels: (v, rows) uint8, the views' probabilities, 0 ... 255 for 0 ... 1.
    infected: (rows,) bool, the reference.
    counts: (rows,) voxels.
    outside: infected voxels of the reference beyond the region: always missed.
  """

  views: tuple[str, ...]
  levels: np.ndarray
  infected: np.ndarray
  counts: np.ndarray
  outside: int

  @property
  def reference(self) -> int:
    """Infected voxels of the reference, inside and outside."""
    return self.counts[self.infected].sum() + self.outside


def tally(
  maps: Mapping[str, np.ndarray], labels: np.ndarray, region: np.ndarray
) -> Tally:
  """Counts one scan, exactly.

  It works in 10 bytes per voxel of the region, and keeps 12 per row.

  Args:
    maps: view -> (x, y, z) uint8 probability map, 0 ... 255 for 0 ... 1; 1 to 3 views.
    labels: (x, y, z), non-zero where the reference is infected.
    region: (x, y, z), non-zero where infection can be (the lungs).

  Raises:
    ValueError: the maps are not 1 to 3, not uint8 or not of the region's shape, or the
      labels are not.
  """
  aggregators.check_maps(maps, region)
  if labels.shape != region.shape:
    raise ValueError(f'labels {labels.shape}, but a region {region.shape}')
  ordered = [*maps.values(), labels]
  codes, end = np.empty(np.count_nonzero(region), np.uint32), 0
  for x in np.flatnonzero(region.any(axis=(1, 2))):
    *levels, infected = (each[x][region[x] != 0] for each in ordered)
    start, end = end, end + len(infected)
    codes[start:end] = _pack(levels, infected != 0, bits=8)
  inside, counts = np.unique(codes, return_counts=True)
  levels, infected = _unpack(inside, len(maps), bits=8)
  outside = np.count_nonzero(labels) - counts[infected].sum()
  return Tally(tuple(maps), levels, infected, counts, int(outside))


def dice(aggregator: Aggregator, scan: Tally) -> float:
  """Dice of the mask that `aggregators.apply` gives (Eq. (7)).

  It is 1 if that mask and the reference are empty.

  Raises:
    ValueError: the scan was not tallied with the aggregator's views.
  """
  aggregators.check_views(scan.views, aggregator.weights)
  levels = [scan.levels[scan.views.index(view)] for view in aggregator.weights]
  score = aggregators.score(aggregator.kind, aggregator.weights, levels)
  return _dice(score > aggregator.cut, scan)


def choose(
  tallies: Sequence[Tally],
  views: Sequence[str],
  *,
  name: str = 'best',
  margin: float = 0.005,
) -> tuple[Aggregator, list[dict[str, Any]]]:
  """Chooses g, its weights and its threshold on validation scans.

  Candidates, all with the threshold of the best mean Dice but the first:
    'sum > 2': the paper's.
    'sum'.
    'weighted': by each view's own validation Dice at 0.5.
    'learned': weights, not negative, of the best mean Dice. All 91 triples in twelfths
      of their sum are tried: no local optimum, and too few to fit a scan's noise. Least
      squares would ask how near to 0 or 1 each score comes, Dice only asks on which
      side of the threshold.
    'product'.
    'logistic', 'svm': weights of a logistic regression and of a linear SVM (squared
      hinge). Their own boundary weighs errors and not Dice, hence the tuned threshold.

  What is reported was chosen and measured on the same scans: it is in-sample, rises
  with every freedom of a candidate, and is no estimate of the Dice of new scans, least
  of all after one or two scans. So 'sum > 2' is kept unless some candidate beats it by
  more than a margin, and 'sum' after it; only then the best is chosen.

  Every scan weighs the same, however large. A scan without infection in its reference
  steers nothing, as its Dice is 1 or, after a single voxel, 0: to save that 1 any
  threshold would rise until it misses real infection. Its Dice is still reported.

  Args:
    tallies: of the validation scans.
    views: of the model, 1 to 3 names, as in the tallies.
    name: 'best', or the candidate of `NAMES` to choose however it compares.
    margin: of mean Dice.

  Returns:
    aggregator: the choice; the paper's, whatever the name, when no scan can steer.
    rows: per candidate, JSON values: name, kind, weights, threshold, `dice_mean` and
      `dice_worst` over the scans that steer (None without any), `dice` of every scan.

  Raises:
    ValueError: an unknown name, or scans tallied with other views.
  """
  if name not in ('best', *NAMES):
    raise ValueError(f'no candidate {name!r}: use best, {", ".join(NAMES)}')
  if any(t.views != tuple(views) for t in tallies):
    raise ValueError(f'scans tallied with {[t.views for t in tallies]}, not {views}')
  steering = [t for t in tallies if t.infected.any()]
  wanted = NAMES if steering else NAMES[:1]
  candidates = [_candidate(each, steering, views) for each in wanted]
  rows = [_row(each, tallies) for each in candidates]
  if not steering:
    return candidates[0], rows
  if name != 'best':
    return candidates[NAMES.index(name)], rows
  means = [row['dice_mean'] for row in rows]
  best = means.index(max(means))
  # 'sum > 2' and 'sum' come first, in order of simplicity.
  enough = [i for i in (0, 1, best) if means[best] - means[i] <= margin]
  return candidates[enough[0]], rows


def _row(aggregator: Aggregator, tallies: Sequence[Tally]) -> dict[str, Any]:
  every = [dice(aggregator, each) for each in tallies]
  steering = [d for d, t in zip(every, tallies, strict=True) if t.infected.any()]
  mean = sum(steering) / len(steering) if steering else None
  measured = {'dice_mean': mean, 'dice_worst': min(steering, default=None)}
  return {**aggregators.to_json(aggregator), **measured, 'dice': every}


def _candidate(name: str, tallies: Sequence[Tally], views: Sequence[str]) -> Aggregator:
  if name == 'sum > 2':
    return aggregators.plain(views)
  kind = 'product' if name == 'product' else 'linear'
  if name == 'product':
    weights = dict.fromkeys(views, 1.0)
  elif name == 'sum':
    weights = aggregators.scaled(views, None)
  elif name == 'weighted':
    weights = aggregators.scaled(views, _own_dice(tallies))
  elif name == 'learned':
    weights = _searched(tallies)
  else:
    weights = aggregators.scaled(views, _regressed(name, tallies))
  threshold, _ = _best_threshold(kind, weights, tallies)
  return Aggregator(name, kind, weights, threshold)


def _own_dice(tallies: Sequence[Tally]) -> list[float]:
  """Each view's mean Dice at a probability of 0.5."""
  n = len(tallies[0].views)
  return [sum(_dice(t.levels[i] > LEVELS / 2, t) for t in tallies) for i in range(n)]


def _searched(tallies: Sequence[Tally]) -> dict[str, float]:
  """The weights of the best mean Dice, the most even of equals."""
  views = tallies[0].views
  coarse = [_coarse([t], [1]) for t in tallies]
  shares = itertools.product(range(_TWELFTHS + 1), repeat=len(views))
  whole = [s for s in shares if sum(s) == _TWELFTHS]
  even_first = sorted(whole, key=lambda s: np.square(s).sum())
  tried = [aggregators.scaled(views, s) for s in even_first]
  return max(tried, key=lambda w: _best_threshold('linear', w, coarse)[1])


def _regressed(name: str, tallies: Sequence[Tally]) -> np.ndarray | None:
  """(v,) weights of a linear classifier; None when nothing is healthy."""
  from sklearn.linear_model import LogisticRegression  # Slow to import.
  from sklearn.svm import LinearSVC

  pooled = _coarse(tallies, [_SCAN_WEIGHT / t.counts.sum() for t in tallies])
  if pooled.infected.all():
    return None
  if name == 'logistic':
    model = LogisticRegression(max_iter=1000)
  else:
    model = LinearSVC(dual=False, max_iter=1000)
  levels = pooled.levels.T / LEVELS
  model.fit(levels, pooled.infected, sample_weight=pooled.counts)
  return model.coef_[0]


def _coarse(tallies: Sequence[Tally], weights: Sequence[float]) -> Tally:
  """Several scans as one of at most 2^19 rows, their counts multiplied by `weights`.

  Levels are rounded down to multiples of 4: by 1.5, which moves only the threshold,
  give or take 1.5 (0.6 % in probability). That is enough for weights; thresholds and
  reported Dice are of whole tallies.
  """
  bits, n = _COARSE_BITS, len(tallies[0].views)
  total = np.zeros(2 << bits * n)
  for each, weight in zip(tallies, weights, strict=True):
    codes = _pack(each.levels >> 8 - bits, each.infected, bits)
    total += weight * np.bincount(codes, each.counts, minlength=len(total))
  rows = np.flatnonzero(total)
  levels, infected = _unpack(rows, n, bits)
  outside = sum(w * t.outside for t, w in zip(tallies, weights, strict=True))
  views = tallies[0].views
  return Tally(views, levels << 8 - bits, infected, total[rows], outside)


def _best_threshold(
  kind: str, weights: Mapping[str, float], tallies: Sequence[Tally]
) -> tuple[float, float]:
  """The threshold of the best mean Dice, and that Dice; every distinct one is tried.

  It is the middle between the two scores beside it, the farthest from both.
  """
  scores = [aggregators.score(kind, weights, t.levels) for t in tallies]
  present = np.zeros(max(s.max() for s in scores) + 1, bool)
  present[0] = True
  for each in scores:
    present[each] = True
  rank = np.cumsum(present, dtype=np.int32) - 1
  distinct = np.flatnonzero(present)
  n = len(distinct)
  pairs = zip(scores, tallies, strict=True)
  mean = np.mean([_dice_above(rank[s], t, n) for s, t in pairs], axis=0)
  best = mean.argmax()
  end = best + np.append(mean[best:] == mean[best], False).argmin()
  middle = (distinct[best] + distinct[min(end, n - 1)]) / 2
  unit = aggregators.unit(kind, len(weights))
  # Nine digits are enough: 255^3 of them move a half by 0.01.
  return round(float(middle) / unit, 9), float(mean[best])


def _dice_above(ranks: np.ndarray, scan: Tally, n: int) -> np.ndarray:
  """(n,) Dice of the masks `ranks > i`, for all i of 0 ... n - 1."""
  codes = 2 * ranks + scan.infected
  counts = np.bincount(codes, scan.counts, minlength=2 * n).reshape(n, 2)
  above = counts[::-1].cumsum(axis=0)[::-1] - counts
  return 2 * above[:, 1] / (scan.reference + above.sum(axis=1))


def _dice(predicted: np.ndarray, scan: Tally) -> float:
  """Dice as of `evaluation.metrics`, of the rows predicted to be infected."""
  size = scan.reference + scan.counts[predicted].sum()
  overlap = scan.counts[predicted & scan.infected].sum()
  return float(2 * overlap / size) if size else 1.0


def _pack(levels: Sequence[np.ndarray], infected: np.ndarray, bits: int) -> np.ndarray:
  """(rows,) uint32 of the reference and (v, rows) levels of so many bits."""
  codes = infected.astype(np.uint32)
  for each in levels:
    codes = codes << bits | each
  return codes


def _unpack(codes: np.ndarray, n: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
  """The inverse of `_pack` for n views: (n, rows) uint8 and (rows,) bool."""
  shifts = bits * np.arange(n, dtype=np.uint32)[::-1, None]
  levels = codes >> shifts & (1 << bits) - 1
  return levels.astype(np.uint8), codes >> bits * n > 0
