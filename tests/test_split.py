"""No patient is on both sides of a split, whatever is in the store."""

import itertools

import numpy as np
import pytest

from covid3way.base import ConfigError, LeakError
from covid3way.scans.store import StoredScan
from covid3way.training.split import split


def real(scan_id, patient_id):
  return StoredScan(scan_id, {}, {'scan_id': scan_id, 'patient_id': patient_id})


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
