"""Metrics: hand-made masks, other packages, and what empty masks give."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import f1_score, precision_score, recall_score

from covid3way.base import MaskGridError
from covid3way.evaluation import metrics, results, surfaces

SHAPE = (12, 10, 8)
SPACING_MM = (0.7, 0.9, 2.0)
NAN = float('nan')


def mask(*on):
  result = np.zeros(10, bool)
  result[list(on)] = True
  return result


def volume(*points):
  result = np.zeros(SHAPE, bool)
  for point in points:
    result[point] = True
  return result


def scattered(seed, share):
  return np.random.default_rng(seed).random(SHAPE) < share


def test_overlap_by_hand():
  reference, predicted = mask(0, 1, 2), mask(1, 2, 3, 4)
  assert metrics.dice(reference, predicted) == pytest.approx(4 / 7)
  assert metrics.recall(reference, predicted) == pytest.approx(2 / 3)
  assert metrics.precision(reference, predicted) == pytest.approx(1 / 2)


@pytest.mark.parametrize('share', [0.01, 0.3, 0.9])
def test_overlap_equals_scikit_learn(share):
  reference, predicted = scattered(1, share), scattered(2, 0.4)
  both = reference.ravel(), predicted.ravel()
  assert metrics.dice(reference, predicted) == pytest.approx(f1_score(*both))
  assert metrics.recall(reference, predicted) == pytest.approx(recall_score(*both))
  found = metrics.precision(reference, predicted)
  assert found == pytest.approx(precision_score(*both))


def test_tolerance_by_hand():
  reference = volume((2, 5, 4), (3, 5, 4))
  predicted = volume((5, 5, 4), (5, 7, 4), (9, 9, 7))
  # (5, 5, 4) is two voxels from (3, 5, 4), (5, 7, 4) is 8 ** 0.5; (2, 5, 4) is three
  # from any.
  assert metrics.tolerant_dice(reference, predicted) == pytest.approx(2 / 5)
  assert metrics.tolerant_recall(reference, predicted) == pytest.approx(1 / 2)
  # Two steps are 1.4 mm, three 2.1; (5, 7, 4) is 1.4 and 1.8, so 2.28 mm off.
  assert metrics.tolerant_dice(reference, predicted, 2, SPACING_MM) == 2 / 5
  assert metrics.tolerant_dice(reference, predicted, 2.2, SPACING_MM) == 3 / 5
  assert metrics.tolerant_dice(reference, predicted, 2.3, SPACING_MM) == 4 / 5


def test_spacing_rounded_in_a_file_is_within_the_tolerance():
  one, other = volume((5, 5, 4)), volume((5, 5, 5))
  spacing_mm = tuple(float(s) for s in np.float32([0.7, 0.7, 2.0000002]))
  assert spacing_mm[2] > 2
  assert metrics.tolerant_dice(one, other, 2, spacing_mm) == 1
  assert metrics.tolerant_dice(one, other, 1.999, spacing_mm) == 0


@pytest.mark.parametrize('spacing', [(1, 1, 1), SPACING_MM])
@pytest.mark.parametrize('tolerance', [0, 1, 2, 3.3, 11])
@pytest.mark.parametrize('share', [0.005, 0.05])
def test_tolerance_equals_distance_transforms(share, tolerance, spacing):
  reference, predicted = scattered(3, share), scattered(4, 0.02)
  to_reference, to_predicted = (
    ndimage.distance_transform_edt(~each, spacing) for each in (reference, predicted)
  )
  found = np.count_nonzero(reference & (to_predicted <= tolerance))
  right = np.count_nonzero(predicted & (to_reference <= tolerance))
  size = reference.sum() + predicted.sum()
  arguments = reference, predicted, tolerance, spacing
  expected = (found + right) / size
  assert metrics.tolerant_dice(*arguments) == pytest.approx(expected, abs=1e-12)
  expected = found / reference.sum()
  assert metrics.tolerant_recall(*arguments) == pytest.approx(expected, abs=1e-12)


def test_lesions_by_hand():
  corner_to_corner = (1, 1, 1), (2, 2, 2)  # One lesion.
  reference = volume(*corner_to_corner, (6, 5, 4), (9, 8, 6), (9, 8, 7))
  predicted = volume((2, 2, 2), (2, 2, 3), (9, 8, 7), (4, 0, 0), (0, 9, 0), (7, 0, 7))
  assert metrics.lesion_recall(reference, predicted) == pytest.approx(2 / 3)
  assert metrics.lesion_precision(reference, predicted) == pytest.approx(2 / 5)
  # One predicted lesion over two of the reference finds both.
  bridge = volume((slice(1, 10), 5, 4))
  assert metrics.lesion_recall(volume((1, 5, 4), (9, 5, 4)), bridge) == 1
  assert metrics.lesion_precision(volume((1, 5, 4), (9, 5, 4)), bridge) == 1


def test_scan_by_hand():
  lungs = np.zeros(SHAPE, np.uint8)
  lungs[1:5], lungs[7:11] = 1, 2
  reference = volume((slice(2, 6), 3, 3))  # One of four voxels outside the lungs.
  predicted = volume((slice(3, 6), 3, 3), (5, 3, 5))  # The last is 4 mm off.
  found = metrics.scan_metrics(reference, predicted, lungs, SPACING_MM)
  assert tuple(found) == results.METRICS
  ml, lung_voxels = 0.7 * 0.9 * 2 / 1000, 8 * 10 * 8
  assert found == pytest.approx(
    {
      'dice': 6 / 8,
      'recall': 3 / 4,
      'precision': 3 / 4,
      'dice_2_voxels': 1,
      'recall_2_voxels': 1,
      'dice_2_mm': 7 / 8,
      'surface_dice_3_mm': surfaces.surface_dice(reference, predicted, SPACING_MM, 3),
      'hausdorff_95_mm': surfaces.hausdorff_95(reference, predicted, SPACING_MM),
      'lesion_recall': 1,
      'lesion_precision': 1 / 2,
      'infection_ml_reference': 4 * ml,
      'infection_ml_predicted': 4 * ml,
      'lung_ml': lung_voxels * ml,
      'infected_percent_reference': 100 * 3 / lung_voxels,
      'infected_percent_predicted': 100 * 2 / lung_voxels,
    }
  )
  assert all(type(value) is float for value in found.values())


def test_labels_count_as_masks():
  reference, predicted = scattered(5, 0.2), scattered(6, 0.2)
  lungs = scattered(7, 0.7)
  expected = metrics.scan_metrics(reference, predicted, lungs, SPACING_MM)
  labelled = (np.where(each, 3, 0) for each in (reference, predicted, lungs))
  assert metrics.scan_metrics(*labelled, SPACING_MM) == expected
  assert metrics.dice(np.array([0, 2, 1]), np.array([0, 1, 0])) == pytest.approx(2 / 3)


ONE = volume((slice(3, 5), 4, 4))
EMPTY = volume()
# The table in the docstring of the module.
OVERLAP = ('dice', 'dice_2_voxels', 'dice_2_mm', 'surface_dice_3_mm')
RECALL = ('recall', 'recall_2_voxels', 'lesion_recall')
PRECISION = ('precision', 'lesion_precision')
DISTANCE = ('hausdorff_95_mm',)
SIZE_REFERENCE = ('infection_ml_reference', 'infected_percent_reference')
SIZE_PREDICTED = ('infection_ml_predicted', 'infected_percent_predicted')
BOTH = {OVERLAP: 1, RECALL: NAN, PRECISION: NAN, DISTANCE: NAN}
EMPTIES = [
  (EMPTY, ONE, BOTH | {OVERLAP: 0, PRECISION: 0, SIZE_REFERENCE: 0}),
  (ONE, EMPTY, BOTH | {OVERLAP: 0, RECALL: 0, SIZE_PREDICTED: 0}),
  (EMPTY, EMPTY, BOTH | {SIZE_REFERENCE: 0, SIZE_PREDICTED: 0}),
]


@pytest.mark.parametrize(
  ('reference', 'predicted', 'expected'),
  EMPTIES,
  ids=['reference', 'prediction', 'both'],
)
def test_empty_masks(reference, predicted, expected):
  found = metrics.scan_metrics(reference, predicted, np.ones(SHAPE), SPACING_MM)
  expected = {name: value for names, value in expected.items() for name in names}
  assert {name: found[name] for name in expected} == pytest.approx(
    expected, nan_ok=True
  )
  # The other figures, if any, are those of the mask that is not empty.
  assert all(found[name] > 0 for name in set(found) - set(expected))
  # The functions say the same of whole masks as of cropped ones.
  alone = (*RECALL[::2], *PRECISION, 'dice')
  each = {name: getattr(metrics, name)(reference, predicted) for name in alone}
  assert each == pytest.approx({name: expected[name] for name in alone}, nan_ok=True)


@pytest.mark.parametrize(('lungs', 'lung_ml'), [(None, NAN), (EMPTY, 0)])
def test_no_lungs(lungs, lung_ml):
  found = metrics.scan_metrics(ONE, ONE, lungs, SPACING_MM)
  unknown = {'infected_percent_reference': NAN, 'infected_percent_predicted': NAN}
  expected = metrics.scan_metrics(ONE, ONE, np.ones(SHAPE), SPACING_MM)
  expected |= unknown | {'lung_ml': lung_ml}
  assert found == pytest.approx(expected, nan_ok=True)


def test_masks_on_two_grids():
  # Shapes that numpy would broadcast.
  with pytest.raises(MaskGridError, match='predicted mask'):
    metrics.scan_metrics(ONE, ONE[:, :, :1], None, SPACING_MM)
  with pytest.raises(MaskGridError, match='lung mask'):
    metrics.scan_metrics(ONE, ONE, np.ones((12, 10, 1)), SPACING_MM)
