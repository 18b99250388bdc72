"""The aggregation function g, chosen on validation scans (paper, Section III-D).

The paper tries "linear combination with fixed or learnable weights, then taking a
threshold; multiplying them together; using SVM with these three values as features",
and finds `sum > 2` best. Here the same candidates are measured on a model's own
validation scans. Scores are whole numbers, so that choosing and applying agree to the
voxel: 510 / 255 is 2, and 2 is not above 2.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LEVELS = 255  # A probability p is kept as round(255 p), uint8.
NAMES = ('sum > 2', 'sum', 'weighted', 'learned', 'product', 'logistic', 'svm')
_PARTS = 1000  # Weights are kept in thousandths: weighted sums are whole numbers.
_TWELFTHS = 12  # The search's step: a third, half and quarter are all among them.
_COARSE_BITS = 6  # Of a level, where weights are fitted: 64 levels of 1.6 %.
_SCAN_WEIGHT = 1e4  # Of a scan in a fit: its data outweigh the fit's regularisation.


@dataclasses.dataclass(frozen=True)
class Aggregator:
  """One aggregation function g.

  Attributes:
    name: one of `NAMES`, or what a user calls it.
    kind: 'linear', sum of w_v p_v > threshold; 'product', product of p_v > threshold.
    weights: view -> w_v, in thousandths. `choose` and `plain` scale them to a sum of
      absolute values of 3 whatever the number of views (up to rounding), so that
      thresholds compare with the paper's 2 of 3. All 1 for a product.
    threshold: not negative, so that what no view suspects is never infection.

  Raises:
    ValueError: any of these is not so.
  """

  name: str
  kind: str
  weights: Mapping[str, float]
  threshold: float

  def __post_init__(self):
    weights = list(self.weights.values())
    if self.kind not in ('linear', 'product') or not 1 <= len(weights) <= 3:
      raise ValueError(f'{self}: linear or product, of 1 to 3 views')
    if not (math.isfinite(self.threshold) and self.threshold >= 0):
      raise ValueError(f'{self}: the threshold is not a number from 0 up')
    if self.kind == 'product' and weights != [1] * len(weights):
      raise ValueError(f'{self}: weights of a product are all 1')
    if not all(abs(w) <= 3 and w == round(w, 3) for w in weights):
      raise ValueError(f'{self}: weights are thousandths from -3 to 3')

  @property
  def cut(self) -> int:
    """The whole number that a score must exceed."""
    unit = _unit(self.kind, len(self.weights))
    # Rounded, as 1.1 x 255 000 must be 280 500 whatever binary fractions make of it.
    return math.floor(round(self.threshold * unit, 3))


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


def plain(views: Sequence[str], threshold: float = 2.0) -> Aggregator:
  """The paper's g: the sum of three probabilities > 2.

  Args:
    views: 1 to 3 names. Fewer than three (an ablation) answer to the same share.
    threshold: of the sum of three.
  """
  return Aggregator(f'sum > {threshold:g}', 'linear', _scaled(views, None), threshold)


def apply(
  aggregator: Aggregator, maps: Mapping[str, np.ndarray], region: np.ndarray
) -> np.ndarray:
  """The aggregated infection mask. Working memory is that of one plane.

  Args:
    aggregator: g.
    maps: view -> (x, y, z) uint8 probability map, 0 ... 255 for 0 ... 1.
    region: (x, y, z), non-zero where infection can be (the lungs).

  Returns:
    (x, y, z) bool.

  Raises:
    ValueError: the maps are not uint8 of the region's shape and the aggregator's views.
  """
  _check_views(maps, aggregator.weights)
  _check_maps(maps, region)
  ordered = [maps[view] for view in aggregator.weights]
  mask = np.zeros(region.shape, bool)
  for x in np.flatnonzero(region.any(axis=(1, 2))):
    score = _score(aggregator.kind, aggregator.weights, [each[x] for each in ordered])
    mask[x] = (score > aggregator.cut) & (region[x] != 0)
  return mask


def to_json(aggregator: Aggregator) -> dict[str, Any]:
  """An aggregator as JSON values."""
  return dataclasses.asdict(aggregator)


def from_json(values: Mapping[str, Any]) -> Aggregator:
  """The aggregator that `to_json` wrote.

  Raises:
    ValueError: it wrote nothing like this.
  """
  try:
    return Aggregator(**values)
  except (TypeError, AttributeError) as error:
    raise ValueError(f'not an aggregator: {values}') from error


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
  _check_maps(maps, region)
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
  """Dice of the mask that `apply` gives (Eq. (7)), 1 if it and the reference are empty.

  Raises:
    ValueError: the scan was not tallied with the aggregator's views.
  """
  _check_views(scan.views, aggregator.weights)
  levels = [scan.levels[scan.views.index(view)] for view in aggregator.weights]
  score = _score(aggregator.kind, aggregator.weights, levels)
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
    name: 'best', or the candidate of `NAMES` to fit without comparing it.
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
  wanted = NAMES if name == 'best' else (name,)
  if not steering:
    wanted = NAMES[:1]
  candidates = [_candidate(each, steering, views) for each in wanted]
  rows = [_row(each, tallies) for each in candidates]
  if len(rows) == 1:
    return candidates[0], rows
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
  return {**to_json(aggregator), **measured, 'dice': every}


def _candidate(name: str, tallies: Sequence[Tally], views: Sequence[str]) -> Aggregator:
  if name == 'sum > 2':
    return plain(views)
  kind = 'product' if name == 'product' else 'linear'
  if name == 'product':
    weights = dict.fromkeys(views, 1.0)
  elif name == 'sum':
    weights = _scaled(views, None)
  elif name == 'weighted':
    weights = _scaled(views, _own_dice(tallies))
  elif name == 'learned':
    weights = _searched(tallies)
  else:
    weights = _scaled(views, _regressed(name, tallies))
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
  tried = [_scaled(views, s) for s in sorted(whole, key=lambda s: np.square(s).sum())]
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
  scores = [_score(kind, weights, t.levels) for t in tallies]
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
  # Nine digits are enough: 255^3 of them move a half by 0.01.
  return round(float(middle) / _unit(kind, len(weights)), 9), float(mean[best])


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


def _score(
  kind: str, weights: Mapping[str, float], levels: Sequence[np.ndarray]
) -> np.ndarray:
  """What is compared with the cut, int32, in units of `_unit`; not negative."""
  if kind == 'product':
    return np.prod(levels, axis=0, dtype=np.int32)
  parts = [np.int32(round(w * _PARTS)) for w in weights.values()]
  total = np.zeros(levels[0].shape, np.int32)
  for part, each in zip(parts, levels, strict=True):
    total += np.multiply(each, part, dtype=np.int32)
  return np.maximum(total, 0)  # No cut is below 0, so nothing changes.


def _unit(kind: str, n: int) -> int:
  """The score that is 1 in probabilities."""
  return LEVELS**n if kind == 'product' else _PARTS * LEVELS


def _scaled(views: Sequence[str], raw: Sequence[float] | None) -> dict[str, float]:
  """Weights in thousandths, a sum of absolute values of 3; even for None or all 0."""
  raw = np.ones(len(views)) if raw is None or not np.any(raw) else np.asarray(raw)
  scaled = 3 * raw / np.abs(raw).sum()
  return {v: round(float(w), 3) for v, w in zip(views, scaled, strict=True)}


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


def _check_views(given: Iterable[str], wanted: Iterable[str]) -> None:
  if set(given) != set(wanted):
    raise ValueError(f'views {list(given)} came, the aggregator is of {list(wanted)}')


def _check_maps(maps: Mapping[str, np.ndarray], region: np.ndarray) -> None:
  found = [(each.dtype, each.shape) for each in maps.values()]
  if set(found) != {(np.dtype(np.uint8), region.shape)} or len(maps) > 3:
    raise ValueError(f'1 to 3 maps, uint8 {region.shape}, were wanted, not {found}')
