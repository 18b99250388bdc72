"""Serial scans: their time line, what cannot be fitted, what is kept."""

import jax
import numpy as np
import pytest

from covid3way.base import SerialError, WarningKind
from covid3way.simulator import serial

PAIR = serial.Pair('p1', 'a', 'b', 300, 200)


def test_the_time_line_is_the_papers():
  pairs = serial.adjacent_pairs('p1', 'abc', [10.0, 12.0, 20.0])
  assert pairs == (
    serial.Pair('p1', None, 'a', 0, 300),
    serial.Pair('p1', 'a', 'b', 300, 200),
    serial.Pair('p1', 'b', 'c', 500, 800),
  )


def test_fractional_days_are_rounded_on_the_line_not_between_scans():
  days = [0.0, 0.333, 0.666, 1.0]
  pairs = serial.adjacent_pairs('p1', 'abcd', days)
  assert [p.transitions for p in pairs] == [300, 33, 34, 33]
  assert [p.start for p in pairs] == [0, 300, 333, 367]


@pytest.mark.parametrize('day', [None, 4.0])
def test_a_single_scan_has_the_pair_with_the_invented_start(day):
  (pair,) = serial.adjacent_pairs('p1', ['a'], [day])
  assert (pair.from_scan, pair.to_scan, pair.transitions) == (None, 'a', 300)


@pytest.mark.parametrize(
  'days,words',
  [
    ([0.0, 3.0, 3.0], r'days 3 and 3 are equal'),
    ([0.0, 3.0, 3.001], r'days 3 and 3.001 are equal'),
    ([0.0, 3.0, 2.0], r'days 3 and 2 are out of order'),
    ([0.0, 3.0, None], r'scan c has no day'),
  ],
)
def test_days_that_do_not_ascend_name_patient_and_pair(days, words):
  with pytest.raises(SerialError, match=rf'^patient p1, pair b -> c: {words}; give'):
    serial.adjacent_pairs('p1', 'abc', days)


def test_the_first_scan_without_a_day_is_told_too():
  with pytest.raises(SerialError, match='pair a -> b: scan a has no day'):
    serial.adjacent_pairs('p1', 'ab', [None, 1.0])


def masks(outside):
  """1000 infected voxels, so many of them outside the lungs."""
  infection, lungs = np.zeros((2, 10, 10, 20), np.uint8)
  infection[:, :, :10], lungs[:] = 1, 2
  lungs.reshape(-1, 20)[:outside, 0] = 0
  return infection, lungs


def take(infection, lungs, least=100):
  return serial.take_infection(
    infection, lungs, subject=PAIR.subject, scan_id='b', least=least
  )


def test_a_mask_within_the_lungs_is_taken_as_it_is():
  infection, lungs = masks(0)
  mask, warnings = take(infection, lungs)
  assert mask.dtype == bool and warnings == ()
  np.testing.assert_array_equal(mask, infection)


def test_what_strays_over_the_border_of_the_lungs_is_dropped_and_said():
  infection, lungs = masks(100)
  mask, (warning,) = take(infection, lungs)
  np.testing.assert_array_equal(mask, (infection > 0) & (lungs > 0))
  assert warning.kind == WarningKind.INFECTION_OUTSIDE_LUNGS
  assert warning.message.startswith('100 of 1000 infected voxels of scan b lie outside')


def nothing(infection, lungs):
  return infection * 0, lungs


def elsewhere(infection, lungs):
  lungs[:, :, :3] = 0  # 30 % of the mask.
  return infection, lungs


@pytest.mark.parametrize(
  'damage,least,words',
  [
    (nothing, 100, 'mask of scan b is empty'),
    (elsewhere, 100, '300 of 1000 infected voxels of scan b .* up to 20%'),
    (lambda *m: m, 1001, '1000 infected voxels in .* scan b; at least 1001 are needed'),
  ],
)
def test_masks_that_cannot_be_simulated_name_patient_and_pair(damage, least, words):
  with pytest.raises(SerialError, match=rf'^patient p1, pair a -> b: .*{words}'):
    take(*damage(*masks(0)), least)


def test_errors_of_the_first_pair_call_its_start_invented():
  (pair,) = serial.adjacent_pairs('p1', ['a'], [None])
  with pytest.raises(SerialError, match='patient p1, pair invented start -> a: '):
    serial.take_infection(
      *nothing(*masks(0)), subject=pair.subject, scan_id='a', least=1
    )


def test_the_invented_start_is_the_papers():
  rng = np.random.default_rng(0)
  signal = rng.uniform(-0.3, 0.3, (12, 10, 8)).astype(np.float32)
  infection = rng.random(signal.shape) < 0.5
  state = serial.invented_start(jax.random.key(0), signal, infection)
  np.testing.assert_array_equal(
    state.signal, np.where(infection, np.float32(-0.15), signal)
  )
  chosen = np.asarray(state.infection)
  assert not chosen[~infection].any()
  assert chosen.sum() == round(0.1 * infection.sum())
  again = serial.invented_start(jax.random.key(0), signal, infection)
  other = serial.invented_start(jax.random.key(1), signal, infection)
  np.testing.assert_array_equal(again.infection, chosen)
  assert not np.array_equal(other.infection, chosen)


def test_every_infected_voxel_is_chosen_equally_often():
  infection = np.zeros((5, 4, 3), bool)
  infection[1:, 1:] = True  # 36 voxels, 4 of them chosen.
  n = 400
  keys = jax.random.split(jax.random.key(3), n)
  counts = sum(
    np.asarray(serial.invented_start(k, np.zeros((5, 4, 3)), infection).infection, int)
    for k in keys
  )
  expected, chance = n / 9, 1 / 9
  spread = np.sqrt(n * chance * (1 - chance))
  assert abs(counts[infection] - expected).max() < 4.5 * spread


def test_one_infected_voxel_gives_a_start():
  infection = np.zeros((3, 3, 3), bool)
  infection[1, 2, 0] = True
  state = serial.invented_start(jax.random.key(0), np.zeros((3, 3, 3)), infection)
  np.testing.assert_array_equal(state.infection, infection)


def kept(ratio, seed=0, steps=200):
  return serial.kept_transitions(np.random.default_rng(seed), ratio, steps)


@pytest.mark.parametrize('ratio', [0, 1, 2, 3, 4, 200])
def test_a_whole_ratio_keeps_as_many_distinct_transitions(ratio):
  for seed in range(20):
    drawn = kept(ratio, seed)
    assert len(drawn) == ratio and (np.diff(drawn) > 0).all()
    assert not len(drawn) or (1 <= drawn[0] and drawn[-1] <= 200)


def test_half_keeps_one_for_every_other_scan():
  sizes = [len(kept(0.5, seed)) for seed in range(400)]
  assert set(sizes) == {0, 1}
  assert 0.42 < np.mean(sizes) < 0.58  # More than three standard deviations.


def test_every_transition_is_kept_equally_often():
  counts = np.bincount(np.concatenate([kept(2, s, 20) for s in range(2000)]))[1:]
  # 20 transitions, each kept with chance 0.1 of 2000: 200 +- 13.4.
  assert len(counts) == 20 and abs(counts - 200).max() < 60


def test_a_higher_ratio_adds_to_a_lower_one():
  for seed in range(10):
    assert set(kept(1, seed)) <= set(kept(2, seed)) <= set(kept(4, seed))
