"""What becomes of probability maps: one mask (paper, Section III-D, Eq. (6))."""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

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
  probability, mask = np.zeros(lungs.shape, np.float16), np.zeros(lungs.shape, bool)
  (box,) = ndimage.find_objects((lungs > 0).view(np.uint8)) or [(slice(0),) * 3]
  maps, inside = {view: each[box] for view, each in maps.items()}, lungs[box] > 0
  planes = zip(probability[box], inside, *maps.values(), strict=True)
  for plane, within, *levels in planes:  # Which stay in the cache.
    total = sum(each.astype(np.uint16) for each in levels) * within
    plane[...] = total / np.float32(len(maps) * LEVELS)
  mask[box] = aggregators.apply(aggregator, maps, inside)
  return probability, mask
