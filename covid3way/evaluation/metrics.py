"""Agreement of two masks (paper, Section III-E, Eqs. (7) and (8))."""

import numpy as np


def dice(reference: np.ndarray, predicted: np.ndarray) -> float:
  """2 |A and B| / (|A| + |B|), in [0, 1]; 1 when both are empty."""
  size = np.count_nonzero(reference) + np.count_nonzero(predicted)
  overlap = np.count_nonzero(np.logical_and(reference, predicted))
  return 2 * overlap / size if size else 1.0


def recall(reference: np.ndarray, predicted: np.ndarray) -> float:
  """|A and B| / |A|, in [0, 1]; NaN when the reference is empty."""
  size = np.count_nonzero(reference)
  overlap = np.count_nonzero(np.logical_and(reference, predicted))
  return overlap / size if size else float('nan')
