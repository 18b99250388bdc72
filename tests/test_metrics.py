"""Metrics: hand-made masks, and what empty masks give."""

import numpy as np
import pytest

from covid3way.evaluation import metrics


def mask(*on):
  result = np.zeros(10, bool)
  result[list(on)] = True
  return result


def test_dice_and_recall_by_hand():
  assert metrics.dice(mask(0, 1, 2), mask(1, 2, 3, 4)) == pytest.approx(4 / 7)
  assert metrics.recall(mask(0, 1, 2), mask(1, 2, 3, 4)) == pytest.approx(2 / 3)


def test_labels_count_as_masks():
  assert metrics.dice(np.array([0, 2, 1]), np.array([0, 1, 0])) == pytest.approx(2 / 3)


def test_empty_masks():
  assert metrics.dice(mask(), mask()) == 1
  assert metrics.dice(mask(), mask(1)) == 0
  assert np.isnan(metrics.recall(mask(), mask(1)))
