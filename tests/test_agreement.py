"""Agreement of infected shares: known answers, then other definitions."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from covid3way.evaluation import agreement as shares
from covid3way.evaluation.agreement import agreement

NAN = float('nan')


def pairs(n, seed=0):
  rng = np.random.default_rng(seed)
  reference = rng.gamma(1.5, 8, n)
  return reference, reference * 0.9 + rng.normal(1, 2, n)


def test_by_hand():
  found = agreement([1, 2, 3, 4], [2, 2, 3, 7])
  # Errors 1, 0, 0, 3; variance (0 + 1 + 1 + 4) / 3 around their mean of 1.
  assert dataclasses.asdict(found) == pytest.approx(
    {
      'scans': 4,
      'rmse': np.sqrt(10 / 4),
      'pearson': 8 / np.sqrt(5 * 17),
      'worst': 3,
      'bias': 1,
      'low': 1 - 1.96 * np.sqrt(2),
      'high': 1 + 1.96 * np.sqrt(2),
      # Mean squares of scans 19/3, of raters 2 and of the rest 1.
      'icc': (19 / 3 - 1) / (19 / 3 + 1 + 2 * (2 - 1) / 4),
    }
  )


def test_a_prediction_too_low_has_a_negative_bias_and_the_same_worst_error():
  found = agreement([5, 9, 4], [4, 2, 4])
  assert (found.bias, found.worst) == (pytest.approx(-8 / 3), 7)


def test_icc_of_shrout_and_fleiss():
  # Their Table 2: six targets, four judges; ICC(2,1) is 0.29.
  judges = np.array(
    [
      [9, 2, 5, 8],
      [6, 1, 3, 2],
      [8, 4, 6, 8],
      [7, 1, 2, 6],
      [10, 5, 6, 9],
      [6, 2, 4, 7],
    ]
  )
  assert shares.icc(*judges.T) == pytest.approx(0.29, abs=0.005)


def test_icc_asks_for_absolute_agreement():
  reference, _ = pairs(50)
  assert shares.icc(reference, reference) == pytest.approx(1)
  assert shares.pearson(reference, reference + 20) == pytest.approx(1)
  assert shares.icc(reference, reference + 20) < 0.6


def test_icc_finds_the_share_of_variance():
  rng = np.random.default_rng(1)
  truth = rng.normal(0, 3, 20000)
  noise = rng.normal(0, 4, (2, truth.size))
  assert shares.icc(*(truth + noise)) == pytest.approx(9 / 25, abs=0.02)


@pytest.mark.parametrize('n', [3, 50])
def test_equals_scipy(n):
  reference, predicted = pairs(n)
  found = agreement(reference, predicted)
  expected = stats.pearsonr(reference, predicted).statistic
  assert found.pearson == pytest.approx(expected, abs=1e-6)
  inside = stats.norm.interval(0.95, *stats.norm.fit(predicted - reference))
  reach = np.diff(inside) / 2 * np.sqrt(n / (n - 1))
  assert (found.high - found.low) / 2 == pytest.approx(reach[0], rel=1e-4)


def test_scans_without_a_share_are_left_out():
  reference, predicted = pairs(9)
  expected = agreement(reference[2:], predicted[2:])
  reference[0], predicted[1] = NAN, NAN
  assert agreement(reference, predicted) == expected
  assert expected.scans == 7


@pytest.mark.parametrize(
  ('reference', 'predicted', 'expected'),
  [
    ([], [], (0, NAN, NAN, NAN, NAN, NAN, NAN, NAN)),
    ([3], [5], (1, 2, NAN, 2, 2, NAN, NAN, NAN)),
    ([3, 3], [3, 3], (2, 0, NAN, 0, 0, 0, 0, NAN)),
  ],
  ids=['no scan', 'one scan', 'nothing varies'],
)
def test_what_cannot_be_said_is_nan(reference, predicted, expected):
  found = dataclasses.astuple(agreement(reference, predicted))
  assert found == pytest.approx(expected, nan_ok=True)
