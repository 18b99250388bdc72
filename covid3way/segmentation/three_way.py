"""What becomes of probability maps: one mask (paper, Section III-D, Eq. (6))."""

from collections.abc import Mapping

import numpy as np

from covid3way.segmentation import aggregators
from covid3way.segmentation.aggregators import LEVELS, Aggregator


def aggregate(
  maps: Mapping[str, np.ndarray], lungs: np.ndarray, aggregator: Aggregator
) -> tuple[np.ndarray, np.ndarray]:
  """Eq. (6), inside the lungs.

  Args:
    maps: uint8 (x, y, z) probability maps per view, 0 ... 255 for 0 ... 1.
    lungs: (x, y, z) lung mask.
    aggregator: g.

  Returns:
    probability: (x, y, z) float16, mean of the maps, in [0, 1]; 0 outside the lungs.
    mask: (x, y, z) bool.
  """
  probability, most = np.zeros(lungs.shape, np.float16), len(maps) * LEVELS
  mean = (np.arange(most + 1, dtype=np.float32) / most).astype(np.float16)
  for x in np.flatnonzero(lungs.any(axis=(1, 2))):
    inside = np.flatnonzero(lungs[x])
    total = sum(each[x].take(inside).astype(np.uint16) for each in maps.values())
    probability[x].put(inside, mean.take(total))
  return probability, aggregators.apply(aggregator, maps, lungs)
