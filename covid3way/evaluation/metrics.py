"""Agreement of two infection masks (paper, Section III-E, Eqs. (7) and (8)).

What empty masks give, in all metrics:

| metric                                          | reference | prediction | both |
|-------------------------------------------------|-----------|------------|------|
| Dice, also with tolerance and of surfaces       | 0         | 0          | 1    |
| recall, also with tolerance and of lesions      | NaN       | 0          | NaN  |
| precision, also of lesions                      | 0         | NaN        | NaN  |
| Hausdorff distance                              | NaN       | NaN        | NaN  |
| infected ml and percent of an empty mask        | 0         | 0          | 0    |

Without a lung mask the lungs' ml are NaN, without a lung voxel the infected percents.

Tables average. NaN is a question that a scan does not ask, such as how much of nothing
was found; an average leaves it out and tells of how many scans it is. To a surface that
is not there the distance is infinite, which an average would be too: a scan that was
missed counts with its Dice and recall of 0 instead.
"""

import itertools

import numpy as np
from scipy import ndimage

from covid3way.base import MaskGridError
from covid3way.evaluation import surfaces

_TOUCHING = np.ones((3, 3, 3), bool)


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


def precision(reference: np.ndarray, predicted: np.ndarray) -> float:
  """|A and B| / |B|, in [0, 1]; NaN when the prediction is empty."""
  return recall(predicted, reference)


def tolerant_dice(
  reference: np.ndarray,
  predicted: np.ndarray,
  tolerance: float = 2,
  spacing: surfaces.Spacing = (1, 1, 1),
) -> float:
  """Dice where a voxel counts as right when one of the other mask is near.

  The rows marked @ of Table II: a predicted voxel within 2 voxels of a true one is a
  true positive. So is a true voxel near a predicted one: (right predicted + found true)
  / (|A| + |B|).

  Args:
    reference: (x, y, z).
    predicted: (x, y, z).
    tolerance: Euclidean, between voxel centres, in units of the spacing.
    spacing: of the voxels; by default the tolerance is in voxels, with a scan's
      spacing_mm it is in mm.
  """
  size = np.count_nonzero(reference) + np.count_nonzero(predicted)
  near = _count_near(reference, predicted, tolerance, spacing)
  near += _count_near(predicted, reference, tolerance, spacing)
  return near / size if size else 1.0


def tolerant_recall(
  reference: np.ndarray,
  predicted: np.ndarray,
  tolerance: float = 2,
  spacing: surfaces.Spacing = (1, 1, 1),
) -> float:
  """Share of the reference near the prediction; arguments as of `tolerant_dice`."""
  size = np.count_nonzero(reference)
  near = _count_near(reference, predicted, tolerance, spacing)
  return near / size if size else float('nan')


def lesion_recall(reference: np.ndarray, predicted: np.ndarray) -> float:
  """Share of the reference's lesions that are found; NaN when there is none.

  A lesion is a 26-connected component of a mask (x, y, z); it counts as found when the
  other mask overlaps it in at least one voxel.
  """
  labels, lesions = ndimage.label(reference, _TOUCHING)
  found = np.unique(labels[np.logical_and(reference, predicted)])
  return found.size / lesions if lesions else float('nan')


def lesion_precision(reference: np.ndarray, predicted: np.ndarray) -> float:
  """Share of the predicted lesions that overlap the reference; NaN when none is."""
  return lesion_recall(predicted, reference)


def scan_metrics(
  reference: np.ndarray,
  predicted: np.ndarray,
  lungs: np.ndarray | None,
  spacing_mm: surfaces.Spacing,
) -> dict[str, float]:
  """All metrics of a scan, by the names of `results.METRICS`.

  Args:
    reference: (x, y, z), nonzero where infected.
    predicted: (x, y, z), the same.
    lungs: (x, y, z), nonzero in the lungs; None if not known.
    spacing_mm: of the voxels.

  Raises:
    MaskGridError: the masks are not on one grid.
  """
  a, b, box = surfaces.crop(reference, predicted)
  surface = surfaces.between(a, b, spacing_mm)
  ml = np.prod(spacing_mm) / 1000
  lung_voxels, inside = np.nan, np.zeros_like(a)
  if lungs is not None:
    if lungs.shape != reference.shape:
      found = f'{lungs.shape} voxels where the reference has {reference.shape}'
      raise MaskGridError('lung mask', found, 'give the one of this grid')
    lung_voxels, inside = np.count_nonzero(lungs), lungs[box] != 0
  percent = 100 / (lung_voxels or np.nan)
  figures = {
    'dice': dice(a, b),
    'recall': recall(a, b),
    'precision': precision(a, b),
    'dice_2_voxels': tolerant_dice(a, b),
    'recall_2_voxels': tolerant_recall(a, b),
    'dice_2_mm': tolerant_dice(a, b, 2, spacing_mm),
    'surface_dice_3_mm': surface.dice(3),
    'hausdorff_95_mm': surface.hausdorff_95(),
    'lesion_recall': lesion_recall(a, b),
    'lesion_precision': lesion_precision(a, b),
    'infection_ml_reference': np.count_nonzero(a) * ml,
    'infection_ml_predicted': np.count_nonzero(b) * ml,
    'lung_ml': lung_voxels * ml,
    'infected_percent_reference': np.count_nonzero(a & inside) * percent,
    'infected_percent_predicted': np.count_nonzero(b & inside) * percent,
  }
  return {name: float(value) for name, value in figures.items()}


def _count_near(
  mask: np.ndarray, other: np.ndarray, tolerance: float, spacing: surfaces.Spacing
) -> int:
  """Voxels of a mask within the tolerance of a voxel of the other."""
  # Spacings read from files are no round numbers: what is meant to be just within
  # stays so.
  tolerance *= 1 + 1e-6
  near = np.zeros(mask.shape, bool)
  other = other.astype(bool)
  reaches = [int(tolerance // s) for s in spacing]
  for steps in itertools.product(*(range(-n, n + 1) for n in reaches)):
    if np.hypot.reduce(np.multiply(steps, spacing)) <= tolerance:
      here = tuple(slice(max(s, 0), min(s, 0) or None) for s in steps)
      there = tuple(slice(max(-s, 0), min(-s, 0) or None) for s in steps)
      near[here] |= other[there]
  return np.count_nonzero(np.logical_and(near, mask))
