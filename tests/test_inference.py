"""Statistics: by hand, against scipy, and what a bootstrap must do."""

import numpy as np
import pytest
from scipy import stats

from covid3way.base import ConfigError
from covid3way.evaluation import inference

NAN = float('nan')


def clustered(rng, patients, scans, *, between, within, mean=0.0):
  """Values and patients: scans of a patient share what sets it apart."""
  own = rng.normal(mean, between, patients)
  values = np.repeat(own, scans) + rng.normal(0, within, patients * scans)
  return values, np.repeat(np.arange(patients), scans)


def test_bootstrap_of_two_patients_by_hand():
  # Cohorts drawn: both the one, both the other, or, half of the time, each once.
  arguments = [0.0, 1.0], ['a', 'b']
  assert inference.bootstrap_mean(*arguments, seed=0) == (0.5, 0, 1)
  assert inference.bootstrap_mean(*arguments, seed=0, level=0.4) == (0.5, 0.5, 0.5)


def test_scans_of_a_patient_are_drawn_together():
  # One patient with three scans of 1, one with one of 0: 0, 3/4 or 1 is all there is.
  arguments = [1, 1, 1, 0], ['a', 'a', 'a', 'b']
  assert inference.bootstrap_mean(*arguments, seed=0) == (0.75, 0, 1)
  assert inference.bootstrap_mean(*arguments, seed=0, level=0.4) == (0.75, 0.75, 0.75)


def test_interval_is_as_wide_as_theory_says():
  values, patients = clustered(
    np.random.default_rng(0), 400, 1, between=1, within=0, mean=3
  )
  mean, low, high = inference.bootstrap_mean(values, patients, seed=1)
  assert mean == pytest.approx(values.mean(), rel=1e-12)
  reach = 1.96 * values.std() / np.sqrt(400)
  assert (low, high) == pytest.approx((mean - reach, mean + reach), abs=0.05 * reach)


@pytest.mark.parametrize('level', [0.95, 0.8])
def test_interval_covers_the_truth_as_often_as_it_says(level):
  rng = np.random.default_rng(2)
  covered = 0
  for seed in range(400):
    values, patients = clustered(rng, 40, 3, between=1, within=0.5, mean=7)
    _, low, high = inference.bootstrap_mean(
      values, patients, seed=seed, draws=600, level=level
    )
    covered += low <= 7 <= high
  # Three standard deviations of the count, and 2 % for the percentile method.
  slack = 3 * np.sqrt(level * (1 - level) / 400) + 0.02
  assert covered / 400 == pytest.approx(level, abs=slack)


def test_scans_alike_widen_the_interval():
  rng = np.random.default_rng(3)
  values, patients = clustered(rng, 60, 4, between=3, within=1)

  def width(patients):
    _, low, high = inference.bootstrap_mean(values, patients, seed=0)
    return high - low

  # The design effect: 1 + (scans - 1) times their correlation, 9 / 10.
  expected = np.sqrt(1 + 3 * 0.9)
  assert width(patients) / width(range(240)) == pytest.approx(expected, rel=0.1)


def test_the_seed_alone_decides():
  values, patients = clustered(np.random.default_rng(4), 12, 2, between=1, within=1)
  first = inference.bootstrap_mean(values, patients, seed=5)
  assert inference.bootstrap_mean(values, patients, seed=5) == first
  assert inference.bootstrap_mean(values, patients, seed=6) != first


@pytest.mark.parametrize(
  ('values', 'patients', 'mean'),
  [([], [], NAN), ([1, 2], ['a', 'a'], 1.5), ([1, NAN], ['a', 'b'], 1)],
)
def test_fewer_than_two_patients(values, patients, mean):
  found = inference.bootstrap_mean(values, patients, seed=0)
  assert found == pytest.approx((mean, NAN, NAN), nan_ok=True)
  found = inference.signed_rank(values, patients)
  assert found == pytest.approx((NAN, NAN), nan_ok=True)


def test_scans_of_which_nothing_is_known_are_left_out():
  found = inference.bootstrap_mean([4, NAN, 6], ['a', 'b', 'c'], seed=0)
  assert found == inference.bootstrap_mean([4, 6], ['a', 'c'], seed=0)


def test_signed_rank_by_hand():
  # Of 2 ** 5 signs, two are as one-sided as this.
  p, effect = inference.signed_rank([0.1, 0.2, 0.3, 0.4, 0.5], list('abcde'))
  assert (p, effect) == (pytest.approx(2 / 32), 1)
  # Ranks 3 and 1 up, 2 down.
  assert inference.signed_rank([3, 1, -2], list('abc'))[1] == pytest.approx(1 / 3)
  # Of a patient the mean counts: 2, not 4 and 0 or their sum; the other's is -3.
  p, effect = inference.signed_rank([4, 0, -3], ['a', 'a', 'b'])
  assert (p, effect) == (1, pytest.approx(-1 / 3))


@pytest.mark.parametrize('patients', [8, 70])
def test_signed_rank_equals_scipy_on_means_of_patients(patients):
  rng = np.random.default_rng(6)
  values, names = clustered(rng, patients, 3, between=1, within=1, mean=0.3)
  p, effect = inference.signed_rank(values, names)
  means = values.reshape(patients, 3).mean(axis=1)
  expected = stats.wilcoxon(means)
  assert p == pytest.approx(expected.pvalue, rel=1e-6)
  ranks = patients * (patients + 1) / 2
  # Two-sided, scipy tells the smaller of the two rank sums.
  assert abs(effect) == pytest.approx(1 - 2 * expected.statistic / ranks)
  mirrored = inference.signed_rank(-values, names)
  assert mirrored == pytest.approx((p, -effect))


def test_patients_without_a_difference():
  assert inference.signed_rank([0, 0, 0.1, -0.1], ['a', 'b', 'c', 'c']) == (1, 0)
  some = inference.signed_rank([0.1, 0.2, 0, 0.3], list('abcd'))
  assert some == inference.signed_rank([0.1, 0.2, 0.3], list('abd'))


def test_differences_equal_but_for_rounding_are_ties():
  third_digit = [0.9 - 0.8, 0.1, 0.3 - 0.4, 0.2]
  assert len({abs(value) for value in third_digit}) == 4
  found = inference.signed_rank(third_digit, list('abcd'))
  assert found == inference.signed_rank([1, 1, -1, 2], list('abcd'))


def test_holm_by_hand():
  adjusted = inference.holm([0.01, 0.04, 0.03, 0.005])
  # 4 x 0.005, 3 x 0.01, 2 x 0.03; and 0.04 no less than that.
  assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert inference.holm([0.5, NAN, 0.6]) == pytest.approx([1, NAN, 1], nan_ok=True)
  assert inference.holm([0.02]) == [0.02]
  assert inference.holm([]).size == 0


def cohort():
  """Values of three methods on 20 scans of 10 patients, and whose the scans are."""
  rng = np.random.default_rng(7)
  patients = {f's{i}': f'p{i // 2}' for i in range(20)}
  ours = {scan: float(rng.uniform(0.7, 0.9)) for scan in patients}
  values = {
    'plain': {
      scan: dice - float(rng.normal(0.03, 0.04)) for scan, dice in ours.items()
    },
    'ours': ours,
    'worse': {scan: dice - float(rng.normal(0.1, 0.02)) for scan, dice in ours.items()},
    'same': dict(ours),
  }
  return values, patients


def test_compare():
  values, patients = cohort()
  rows = inference.compare(values, patients, reference='ours', seed=3)
  assert [row['method'] for row in rows] == ['plain', 'worse', 'same']
  assert {(row['n_scans'], row['n_patients']) for row in rows} == {(20, 10)}
  for row in rows:
    paired = [values['ours'][s] - values[row['method']][s] for s in patients]
    names = list(patients.values())
    interval = row['difference'], row['low'], row['high']
    assert interval == inference.bootstrap_mean(paired, names, seed=3)
    assert (row['p'], row['effect']) == inference.signed_rank(paired, names)
  adjusted = inference.holm([row['p'] for row in rows])
  assert [row['p_holm'] for row in rows] == adjusted.tolist()
  plain, worse, same = rows
  assert 0.08 < worse['low'] < worse['difference'] < worse['high'] < 0.12
  # All ten patients on one side of 2 ** 10 equally likely signs, one test of three.
  assert worse['p_holm'] == pytest.approx(3 * 2 / 1024)
  assert worse['effect'] == 1
  assert plain['p'] < plain['p_holm'] < 1
  assert same == {
    'method': 'same', 'n_scans': 20, 'n_patients': 10, 'difference': 0, 'low': 0,
    'high': 0, 'p': 1, 'effect': 0, 'p_holm': 1,
  }  # fmt: skip


def test_compare_on_the_scans_that_both_have():
  values, patients = cohort()
  del values['plain']['s0'], values['plain']['s1']
  values['worse']['s2'], values['ours']['s4'] = NAN, NAN
  rows = inference.compare(values, patients, reference='ours', seed=0)
  counts = [(row['n_scans'], row['n_patients']) for row in rows]
  assert counts == [(17, 9), (18, 10), (19, 10)]
  paired = [
    values['ours'][s] - values['plain'][s] for s in values['plain'] if s != 's4'
  ]
  assert rows[0]['difference'] == pytest.approx(np.mean(paired))


def test_compare_methods_without_a_common_scan():
  values = {'ours': {'s0': 0.5}, 'other': {'s1': 0.4}}
  (row,) = inference.compare(values, {}, reference='ours', seed=0)
  assert (row.pop('method'), row.pop('n_scans'), row.pop('n_patients')) == (
    'other',
    0,
    0,
  )
  assert len(row) == 6 and all(np.isnan(value) for value in row.values())


def test_compare_with_an_unknown_method():
  with pytest.raises(ConfigError, match=r'three_way.*only of plain, ours, worse, same'):
    inference.compare(*cohort(), reference='three_way', seed=0)
