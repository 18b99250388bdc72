"""Folds: every scan is tested once, and by nobody who trained on its patient."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from covid3way.base import ConfigError
from covid3way.evaluation.folds import choose_simulated, hold_out, make_folds
from covid3way.scans.manifest import ManifestRow


def row(patient_id, number, **known):
  return ManifestRow(patient_id, f'{patient_id}-{number}', Path('x'), **known)


def random_cohort(rng):
  """Up to 12 patients of up to 4 scans, shuffled, at 3 sites with a scanner each."""
  rows = []
  for patient in range(rng.integers(4, 13)):
    for number in range(rng.integers(1, 5)):
      site = int(rng.integers(3)) if rng.random() < 0.2 else patient % 3
      known = {'site': f'site {site}', 'scanner': f'scanner {site}'}
      rows.append(row(f'p{patient:02}', number, **known))
  rng.shuffle(rows)
  return rows


def patients_of(rows, scans):
  known = {each.scan_id: each.patient_id for each in rows}
  return {known[scan] for scan in scans}


@pytest.mark.parametrize('by', ['patient', 'site', 'scanner'])
@pytest.mark.parametrize('seed', range(15))
def test_every_scan_is_tested_once_and_no_patient_trains_and_tests(by, seed):
  rng = np.random.default_rng(seed)
  rows = random_cohort(rng)
  folds = make_folds(rows, by=by, n=int(rng.integers(2, 5)), seed=seed)
  tested = [scan for fold in folds for scan in fold['val']]
  assert sorted(tested) == sorted(each.scan_id for each in rows)
  for fold in folds:
    aside = patients_of(rows, fold['val'])
    assert not aside & patients_of(rows, fold['train'])
    # Nobody else is left out.
    others = [each.scan_id for each in rows if each.patient_id not in aside]
    assert fold['train'] == others


@pytest.mark.parametrize('n', [2, 3, 5, 11])
def test_folds_of_patients_are_even_and_all_scans_of_a_patient_in_one(n):
  rng = np.random.default_rng(n)
  rows = [row(f'p{p}', i) for p in range(11) for i in range(rng.integers(1, 5))]
  folds = make_folds(rows, by='patient', n=n, seed=0)
  sizes = [len(patients_of(rows, fold['val'])) for fold in folds]
  assert len(folds) == n and sum(sizes) == 11 and max(sizes) - min(sizes) <= 1


def test_the_seed_alone_draws_whatever_the_order_of_the_manifest():
  rows = [row(f'p{p}', i) for p in range(10) for i in range(2)]

  def tested(rows, seed):
    folds = make_folds(rows, by='patient', n=5, seed=seed)
    return [sorted(fold['val']) for fold in folds]

  assert tested(rows, 3) == tested(rows[::-1], 3)
  assert tested(rows, 3) != tested(rows, 4)


def test_one_site_is_left_out_and_who_was_scanned_at_two_trains_for_neither():
  rows = [
    row('a', 1, site='north'),
    row('b', 1, site='south'),
    row('both', 1, site='north'),
    row('both', 2, site='south'),
    row('c', 1, site='west'),
  ]
  north, south, west = make_folds(rows, by='site', n=9, seed=0)
  assert north == {'train': ['b-1', 'c-1'], 'val': ['a-1', 'both-1']}
  assert south == {'train': ['a-1', 'c-1'], 'val': ['b-1', 'both-2']}
  assert west == {'train': ['a-1', 'b-1', 'both-1', 'both-2'], 'val': ['c-1']}


@pytest.mark.parametrize(
  ('rows', 'options', 'words'),
  [
    ('ab', {'by': 'hospital'}, "by: 'hospital'; use one of patient, site, scanner"),
    ('ab', {'n': 3}, 'folds: 3 of 2 patients; use 2 to as many as patients'),
    ('ab', {'n': 1}, 'folds: 1 of 2 patients'),
    ('', {'n': 2}, 'folds: 2 of 0 patients'),
    ('ab', {'by': 'site'}, 'does not give that of a-1, b-1; fill in the column site'),
    ('ab', {'by': 'scanner'}, '1 fold by scanner, of 2 scans; two or more'),
  ],
)
def test_folds_that_cannot_be_are_named(rows, options, words):
  rows = [row(name, 1, scanner='x') for name in rows]
  with pytest.raises(ConfigError, match=words):
    make_folds(rows, **{'by': 'patient', 'n': 2, 'seed': 0} | options)


def test_a_fold_in_which_nobody_is_left_to_train_is_named():
  rows = [row(p, i, site=f's{i}') for p in 'ab' for i in range(2)]
  with pytest.raises(ConfigError, match=r'fold 0 has nobody to train: .* by=.patient'):
    make_folds(rows, by='site', n=2, seed=0)


SCANS = {f'{p}-{i}': p for p in 'abcdefghij' for i in range(3)}


@pytest.mark.parametrize(('share', 'n'), [(0.2, 2), (0.34, 3), (0.0, 1), (0.01, 1)])
def test_hold_out_parts_by_patient_at_least_one_validates(share, n):
  training, validation = hold_out(list(SCANS), SCANS, share=share, seed=0)
  held_out = {SCANS[scan] for scan in validation}
  assert len(held_out) == n and not held_out & {SCANS[scan] for scan in training}
  assert sorted(training + validation) == sorted(SCANS)


def test_hold_out_is_drawn_by_the_seed_whatever_the_order():
  def held_out(scans, seed):
    return set(hold_out(scans, SCANS, share=0.3, seed=seed)[1])

  scans = list(SCANS)
  assert held_out(scans, 1) == held_out(scans[::-1], 1)
  drawn = {frozenset(held_out(scans, seed)) for seed in range(8)}
  assert len(drawn) > 4


def test_hold_out_leaves_somebody_to_train():
  for scans, share in ((list(SCANS), 0.96), (['a-0', 'a-1'], 0.1)):
    with pytest.raises(ConfigError, match='patients validate; lower it'):
      hold_out(scans, SCANS, share=share, seed=0)


MADE = {f's{i:03}': [f's{i:03}-sim-{k}' for k in range(4)] for i in range(400)}


def per_scan(chosen):
  parents = [name.split('-')[0] for name in chosen]
  return [parents.count(scan) for scan in MADE]


@pytest.mark.parametrize('ratio', [0, 1, 2, 4])
def test_a_whole_ratio_is_so_many_of_every_scan(ratio):
  chosen = choose_simulated(MADE, float(ratio), seed=0)
  assert len(set(chosen)) == len(chosen)
  assert set(per_scan(chosen)) == {ratio}


@pytest.mark.parametrize('ratio', [0.5, 1.25])
def test_a_broken_ratio_is_a_probability(ratio):
  """Within 4 standard deviations of a coin that falls so, thrown 400 times."""
  counts = np.array(per_scan(choose_simulated(MADE, ratio, seed=0)))
  low, share = int(ratio), ratio % 1
  assert set(counts) == {low, low + 1}
  sd = np.sqrt(share * (1 - share) / len(counts))
  assert abs((counts - low).mean() - share) < 4 * sd


def test_a_smaller_ratio_takes_a_part_of_what_a_larger_one_takes():
  ratios = (0.0, 0.3, 0.5, 0.9, 1.0, 1.5, 2.0, 3.7)
  chosen = [set(choose_simulated(MADE, ratio, seed=1)) for ratio in ratios]
  for smaller, larger in itertools.pairwise(chosen):
    assert smaller < larger


def test_which_are_taken_is_drawn_by_the_seed():
  one, same, other = (set(choose_simulated(MADE, 1.0, seed=s)) for s in (1, 1, 2))
  assert one == same and one != other
  # Not the first of each: any of the four.
  assert {name[-1] for name in one} == set('0123')


def test_more_than_were_simulated_is_named():
  made = {'a': ['a-sim-0', 'a-sim-1'], 'b': ['b-sim-0']}
  with pytest.raises(ConfigError, match=r'2 simulated scans per scan, but b has 1'):
    choose_simulated(made, 2.0, seed=0)
  assert len(choose_simulated(made, 1.0, seed=0)) == 2


def test_scans_from_which_nothing_was_simulated_go_without_but_not_all_of_them():
  made = {'a': ['a-sim-0', 'a-sim-1'], 'b': []}
  assert choose_simulated(made, 2.0, seed=0) == ['a-sim-0', 'a-sim-1']
  assert choose_simulated({'a': [], 'b': []}, 0.0, seed=0) == []
  with pytest.raises(ConfigError, match='ratios: 2, but nothing was simulated; run'):
    choose_simulated({'a': [], 'b': []}, 2.0, seed=0)
