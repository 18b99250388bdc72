"""No patient is on both sides of a split, whatever is in the store."""

import itertools

import numpy as np
import pytest

from covid3way.base import ConfigError, InputError, LeakError
from covid3way.scans.store import StoredScan
from covid3way.training.split import (
  check_unseen,
  identities,
  named_split,
  split,
)


def real(scan_id, patient_id, **known):
  attributes = {'scan_id': scan_id, 'patient_id': patient_id, **known}
  return StoredScan(scan_id, {}, attributes)


def simulated(scan_id, parent, /, **changes):
  attributes = {
    'scan_id': scan_id,
    'patient_id': parent.attributes['patient_id'],
    'simulated': {'parent_scan': parent.scan_id},
  }
  return StoredScan(scan_id, {}, attributes | changes)


def random_store(rng):
  """Up to 8 patients, up to 4 scans each, up to 5 simulated ones of each, shuffled."""
  scans = []
  for patient in range(rng.integers(2, 9)):
    for number in range(rng.integers(1, 5)):
      parent = real(f's{patient}-{number}', f'p{patient}')
      scans.append(parent)
      for k in range(rng.integers(0, 6)):
        scans.append(simulated(f'{parent.scan_id}-sim-{k:04}', parent))
  rng.shuffle(scans)
  return scans


def patients(scans):
  return {scan.attributes['patient_id'] for scan in scans}


@pytest.mark.parametrize('seed', range(60))
def test_no_patient_real_or_simulated_is_on_both_sides(seed):
  rng = np.random.default_rng(seed)
  scans, share = random_store(rng), rng.uniform(0, 0.7)
  how = {'validation_share': share, 'seed': int(rng.integers(100))}
  training, validation = split(scans, simulated=True, **how)
  assert not patients(training) & patients(validation)
  # The parents' own patients, too: an attribute alone could lie.
  parents = {s.attributes.get('simulated', {}).get('parent_scan') for s in training}
  assert not parents & {s.scan_id for s in validation}
  assert not any('simulated' in s.attributes for s in validation)
  # All else is used, once.
  names = [s.scan_id for s in (*training, *validation)]
  assert len(names) == len(set(names))
  unused = [s for s in scans if s.scan_id not in names]
  assert all('simulated' in s.attributes for s in unused)
  assert patients(unused) <= patients(validation)
  assert len(patients(validation)) == round(share * len(patients(scans)))
  # Simulated scans are left out of training on demand, and change nothing else.
  without, same = split(scans, simulated=False, **how)
  only_real = [s for s in scans if 'simulated' not in s.attributes]
  assert without == [s for s in training if 'simulated' not in s.attributes]
  assert same == validation
  assert split(only_real, simulated=True, **how) == (without, validation)


A, B = real('a', 'p1'), real('b', 'p2')
SOUND = simulated('a-sim-0010', A)


@pytest.mark.parametrize(
  'tampered,words',
  [
    # Said to be another patient's.
    (simulated('a-sim-0020', A, patient_id='p2'), 'it says patient p2, .*patient p1'),
    # A parent that is elsewhere, simulated itself, or not told.
    (simulated('c-sim-0020', real('c', 'p3')), "from 'c', which is no real scan"),
    (simulated('a-sim-0020', SOUND), "from 'a-sim-0010', which is no real scan"),
    (simulated('a-sim-0020', A, simulated={}), 'from None, which is no real scan'),
    (simulated('a-sim-0020', A, simulated=None), 'from None, which is no real scan'),
    # Copied or renamed, also as if it were real.
    (simulated('a-sim-0020', A, scan_id='a-sim-0010'), "of scan 'a-sim-0010'"),
    (StoredScan('b-copy', {}, dict(B.attributes)), "of scan 'b'"),
    (StoredScan('d', {}, {'scan_id': 'd'}), 'belongs to no patient'),
  ],
)
def test_a_group_whose_patient_is_in_doubt_is_a_leak(tampered, words):
  for scans in itertools.permutations([A, B, SOUND, tampered]):
    with pytest.raises(LeakError, match=words):
      split(scans, validation_share=0.5, simulated=True, seed=0)
  # Left out of training they would still be a sign of a mixed store.
  with pytest.raises(LeakError):
    split([A, B, tampered], validation_share=0.5, simulated=False, seed=0)


def test_the_same_seed_holds_out_the_same_patients_in_any_order():
  scans = [real(f's{i}', f'p{i}') for i in range(6)]
  how = {'validation_share': 0.5, 'simulated': True}
  first, again, other = (
    patients(split(order, seed=seed, **how)[1])
    for order, seed in ((scans, 1), (scans[::-1], 1), (scans, 2))
  )
  assert first == again != other


def test_someone_must_be_left_to_train_on():
  with pytest.raises(ConfigError, match='none is left to train'):
    split([A, B], validation_share=1.0, simulated=True, seed=0)


def test_every_patient_validates_in_exactly_one_fold():
  scans = [real(f's{i}-{k}', f'p{i}') for i in range(11) for k in range(2)]
  how = {'validation_share': 0.1, 'simulated': False, 'seed': 3}
  folds = [split(scans, fold=(k, 4), **how) for k in range(4)]
  held_out = [patients(validation) for _, validation in folds]
  assert sorted(p for each in held_out for p in each) == sorted(patients(scans))
  assert {len(each) for each in held_out} == {2, 3}
  assert all(not patients(t) & patients(v) for t, v in folds)


def test_a_split_that_is_named_is_taken_as_it_is():
  c = real('c', 'p3')
  names = {'training': ['b', 'b-sim'], 'validation': ['c'], 'test': ['a']}
  sides = named_split([A, B, c, SOUND, simulated('b-sim', B)], names)
  found = {side: [s.scan_id for s in scans] for side, scans in sides.items()}
  assert found == names  # And simulated scans of who is tested are nowhere.
  assert named_split([A, B], {'training': ['b'], 'test': []})['test'] == []


def series(sha256):
  return {'provenance': {'series_sha256': sha256}}


@pytest.mark.parametrize(
  ('known', 'other', 'kind'),
  [
    ({}, real('c', 'p1'), 'patients on both sides: p1'),
    # The same patient under two names.
    (series('5e'), real('c', 'p3', **series('5e')), 'series on both sides: 5e'),
    (
      {'voxels_sha256': 'f0'},
      real('c', 'p3', voxels_sha256='f0'),
      'voxels on both sides: f0',
    ),
  ],
  ids=['patient', 'series', 'voxels'],
)
@pytest.mark.parametrize(
  'sides', [('training', 'validation'), ('test', 'training'), ('validation', 'test')]
)
def test_a_named_split_that_leaks_is_refused(known, other, kind, sides):
  scans = [real('a', 'p1', **known), B, other]
  one, another = sides
  free = ({'training', 'validation', 'test'} - set(sides)).pop()
  with pytest.raises(LeakError, match=f'the same {kind}') as told:
    named_split(scans, {one: ['a'], free: ['b'], another: ['c']})
  assert one in str(told.value) and another in str(told.value)
  # On one side they may be together.
  named_split(scans, {one: ['a', 'c'], another: ['b']})
  # And each patient apart where nothing else is known of the scans.
  named_split([A, B, real('c', 'p3')], {one: ['a'], another: ['c'], free: ['b']})


@pytest.mark.parametrize('side', ['validation', 'test'])
def test_a_simulated_scan_is_for_training_alone(side):
  with pytest.raises(LeakError, match=f'a-sim-0010: a simulated scan on the {side}'):
    named_split([A, B, SOUND], {'training': ['b'], side: ['a-sim-0010']})


def test_a_simulated_scan_brings_its_patient_along():
  with pytest.raises(LeakError, match='the same patients on both sides: p1'):
    named_split([A, B, SOUND], {'training': ['b', 'a-sim-0010'], 'test': ['a']})


def test_a_scan_that_the_store_does_not_hold_is_named():
  with pytest.raises(InputError, match='z: the test side of the split names it'):
    named_split([A, B], {'training': ['a'], 'test': ['b', 'z']})


def test_a_named_split_of_a_mixed_store_is_refused_whoever_is_named():
  renamed = StoredScan('c', {}, dict(B.attributes))
  with pytest.raises(LeakError, match="of scan 'b'"):
    named_split([A, B, renamed], {'training': ['a'], 'test': ['b']})


@pytest.mark.parametrize(
  'known', [{'voxels_sha256': 'f0'}, series('5e')], ids=['voxels', 'series']
)
def test_a_scan_under_two_patients_names_is_refused_where_it_leaks(known):
  twins = [real('a', 'p1', **known), real('b', 'p2', **known)]
  for fold in ((0, 2), (1, 2)):
    with pytest.raises(LeakError, match=r'the same (voxels|series) on both sides'):
      split(twins, validation_share=0.5, fold=fold, simulated=False, seed=0)
  training, validation = split(twins, validation_share=0.0, simulated=False, seed=0)
  assert training == twins and validation == []


def test_what_was_seen_is_refused_by_each_of_its_marks():
  scan = real('a', 'p1', voxels_sha256='f0', **series('5e'))
  seen = identities([scan, B])
  assert seen == {'patients': ['p1', 'p2'], 'series': ['5e'], 'voxels': ['f0']}
  for held_out, kind in (
    (real('x', 'p2'), 'patients on both sides: p2'),
    (real('x', 'p9', **series('5e')), 'series on both sides: 5e'),
    (real('x', 'p9', voxels_sha256='f0'), 'voxels on both sides: f0'),
  ):
    with pytest.raises(LeakError, match=f'a model and a cohort: the same {kind}'):
      check_unseen(seen, identities([held_out]), 'a model and a cohort')
  unknown = real('x', 'p9', voxels_sha256='f1', **series('5f'))
  check_unseen(seen, identities([unknown, real('y', 'p8')]), 'a model and a cohort')
  # An older model does not tell what it saw.
  check_unseen({}, identities([scan]), 'a model and a cohort')
