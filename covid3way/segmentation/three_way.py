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
  total = np.zeros(lungs.shape, np.uint16)
  for each in maps.values():
    total += each
  total *= lungs > 0
  probability = (total / np.float32(len(maps) * LEVELS)).astype(np.float16)
  return probability, aggregators.apply(aggregator, maps, lungs > 0)
