"""The aggregation function g: three probabilities of a voxel, one decision.

Paper, Section III-D. Scores are whole numbers, so that choosing (`choosing`) and
applying agree to the voxel: 510 / 255 is 2, and 2 is not above 2.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LEVELS = 255  # A probability p is kept as round(255 p), uint8.
_PARTS = 1000  # Weights are kept in thousandths: weighted sums are whole numbers.


@dataclasses.dataclass(frozen=True)
class Aggregator:
  """One aggregation function g.

  Attributes:
    name: one of `choosing.NAMES`, or what a user calls it.
    kind: 'linear', sum of w_v p_v > threshold; 'product', product of p_v > threshold.
    weights: view -> w_v, in thousandths. `scaled` gives them a sum of absolute
      values of 3 whatever the number of views (up to rounding), so that thresholds
      compare with the paper's 2 of 3. All 1 for a product.
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
    # Rounded, as 1.1 x 255 000 must be 280 500 whatever binary fractions make of it.
    return math.floor(round(self.threshold * unit(self.kind, len(self.weights)), 3))


def plain(views: Sequence[str], threshold: float = 2.0) -> Aggregator:
  """The paper's g: the sum of three probabilities > 2.

  Args:
    views: 1 to 3 names. Fewer than three (an ablation) answer to the same share.
    threshold: of the sum of three.
  """
  return Aggregator(f'sum > {threshold:g}', 'linear', scaled(views, None), threshold)


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
  check_views(maps, aggregator.weights)
  check_maps(maps, region)
  ordered = [maps[view] for view in aggregator.weights]
  mask = np.zeros(region.shape, bool)
  for x in np.flatnonzero(region.any(axis=(1, 2))):
    inside = np.flatnonzero(region[x])
    levels = [each[x].take(inside) for each in ordered]
    found = score(aggregator.kind, aggregator.weights, levels)
    mask[x].put(inside, found > aggregator.cut)
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


def score(
  kind: str, weights: Mapping[str, float], levels: Sequence[np.ndarray]
) -> np.ndarray:
  """What is compared with the cut, int32, in units of `unit`; not negative."""
  if kind == 'product':
    return np.prod(levels, axis=0, dtype=np.int32)
  parts = [np.int32(round(w * _PARTS)) for w in weights.values()]
  total = np.zeros(levels[0].shape, np.int32)
  for part, each in zip(parts, levels, strict=True):
    total += np.multiply(each, part, dtype=np.int32)
  return np.maximum(total, 0)  # No cut is below 0, so nothing changes.


def unit(kind: str, n: int) -> int:
  """The score that is 1 in probabilities."""
  return LEVELS**n if kind == 'product' else _PARTS * LEVELS


def scaled(views: Sequence[str], raw: Sequence[float] | None) -> dict[str, float]:
  """Weights in thousandths, a sum of absolute values of 3; even for None or all 0."""
  raw = np.ones(len(views)) if raw is None or not np.any(raw) else np.asarray(raw)
  weights = 3 * raw / np.abs(raw).sum()
  return {v: round(float(w), 3) for v, w in zip(views, weights, strict=True)}


def check_views(given: Iterable[str], wanted: Iterable[str]) -> None:
  """Refuses views that are not the aggregator's.

  Raises:
    ValueError: they are others, more or fewer.
  """
  if set(given) != set(wanted):
    raise ValueError(f'views {list(given)} came, the aggregator is of {list(wanted)}')


def check_maps(maps: Mapping[str, np.ndarray], region: np.ndarray) -> None:
  """Refuses what are no 1 to 3 uint8 maps of the region's shape.

  Raises:
    ValueError: they are not.
  """
  found = [(each.dtype, each.shape) for each in maps.values()]
  if set(found) != {(np.dtype(np.uint8), region.shape)} or len(maps) > 3:
    raise ValueError(f'1 to 3 maps, uint8 {region.shape}, were wanted, not {found}')
