"""Batches: what is read is what was stored, drawn evenly and as told."""

import collections
import dataclasses
import itertools
import shutil

import numpy as np
import pytest
import tensorstore as ts

from covid3way.base import DamagedFileError, InputError
from covid3way.scans import store
from covid3way.training import pipeline, views
from covid3way.training.slices import (
  Masks,
  Slices,
  every,
  find_candidates,
  naming,
)

SHAPE = (16, 12, 20)
WHOLE = tuple(slice(0, n) for n in SHAPE)
HOW = pipeline.Sampling(
  batch_size=4,
  foreground_share=0.5,
  simulated_ratio=0.0,
  open_slabs=2,
  stacks_per_slab=2,
  seed=0,
)


def sampling(**options):
  return dataclasses.replace(HOW, **options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two scans whose signal is a code of scan and place; the first is far sicker."""
  folder = tmp_path_factory.mktemp('store')
  x, y, z = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing='ij')
  for number, sick in enumerate((slice(2, 18), slice(9, 10))):
    lungs, infection = np.zeros((2, *SHAPE), np.uint8)
    lungs[3:13, 3:9, 2:18] = 1
    infection[5:9, 4:7, sick] = 1
    signal = number + x / 64 + y / 1024 + z / 256
    volumes = {'signal': signal, 'lungs': lungs, 'infection': infection}
    store.write_group(store.group_path(folder, f's{number}'), volumes, {})
  return folder


@pytest.fixture(scope='module')
def scans(folder):
  return [store.open_group(path) for path in store.list_groups(folder)]


def slices(scans, view='xy', *, offsets=(-2, 0, 2), region='lungs', window=WHOLE):
  masks = Masks('infection', region, window)
  return Slices(
    scans,
    [find_candidates(scan, masks)[view] for scan in scans],
    view=view,
    offsets=offsets,
    spacing_mm=(0.5, 1.0, 2.0),
    masks=masks,
  )


@pytest.mark.parametrize('view', views.NORMAL_AXIS)
def test_stacks_labels_and_weights_are_the_stored_planes(scans, view):
  axis = views.NORMAL_AXIS[view]
  got = slices(scans, view).read(np.array([[0, 6], [1, 9]]))
  for b, (number, index) in enumerate(((0, 6), (1, 9))):
    volumes = {k: v.read().result() for k, v in scans[number].volumes.items()}
    for d, offset in enumerate((-2, 0, 2)):
      plane = volumes['signal'].take(index + offset, axis=axis)
      np.testing.assert_array_equal(got['stacks'][b, ..., d], plane)
    np.testing.assert_array_equal(
      got['labels'][b], volumes['infection'].take(index, axis=axis)
    )
    np.testing.assert_array_equal(
      got['weights'][b], volumes['lungs'].take(index, axis=axis)
    )


@pytest.mark.parametrize(
  ('view', 'mm'), [('xy', (0.5, 1.0)), ('yz', (1.0, 2.0)), ('xz', (0.5, 2.0))]
)
def test_pixels_have_the_size_of_their_view(scans, view, mm):
  got = slices(scans, view).read(np.array([[0, 6], [1, 9]]))
  assert got['pixels_mm'].tolist() == [list(mm)] * 2


def test_a_stack_beyond_the_end_repeats_the_last_slice(scans):
  stack = slices(scans).read(np.array([[0, 19]]))['stacks'][0]
  np.testing.assert_array_equal(stack[..., 2], stack[..., 1])
  assert (stack[..., 0] != stack[..., 1]).all()


def candidates(known):
  return [(each.foreground.tolist(), each.background.tolist()) for each in known]


def test_foreground_and_background_are_told_apart(scans):
  known = slices(scans)
  inside = list(range(2, 18))
  assert candidates(known.candidates) == [
    (inside, []),
    ([9], [z for z in inside if z != 9]),
  ]
  assert every(known).tolist() == [
    *([0, z] for z in inside),
    [1, 9],
    *([1, z] for z in inside if z != 9),
  ]


def test_region_all_counts_everywhere_and_draws_from_every_slice(scans):
  known = slices(scans, region='all')
  assert known.read(np.array([[0, 0]]))['weights'].all()
  assert candidates(known.candidates)[1] == ([9], [z for z in range(20) if z != 9])


def test_window_cuts_planes_and_leaves_numbers_of_slices(scans):
  window = (slice(4, 12), slice(0, 12), slice(8, 16))
  known = slices(scans, window=window)
  assert candidates(known.candidates)[0] == (list(range(8, 16)), [])
  whole = slices(scans).read(np.array([[0, 8]]))
  cut = known.read(np.array([[0, 8]]))
  np.testing.assert_array_equal(cut['stacks'], whole['stacks'][:, 4:12])


def drawn(scans, n, **options):
  """Scan and slice numbers of n * 4 drawn stacks."""
  sampler = pipeline.Sampler(slices(scans), sampling(**options))
  return np.concatenate([sampler.draw(i, range(4))[0] for i in range(n)])


def is_sick(rows):
  return (rows[:, 0] == 0) | (rows[:, 1] == 9)


def test_every_scan_is_drawn_equally_often_however_sick(scans):
  rows = drawn(scans, 300, foreground_share=1.0)
  assert is_sick(rows).all()
  assert 0.4 < rows[:, 0].mean() < 0.6


def test_foreground_share_is_kept(scans):
  rows = drawn(scans, 300, foreground_share=0.3)
  assert 0.2 < is_sick(rows[rows[:, 0] == 1]).mean() < 0.4


def test_background_alone_where_there_is_some(scans):
  rows = drawn(scans, 50, foreground_share=0.0)
  assert not is_sick(rows[rows[:, 0] == 1]).any()
  assert (rows[:, 0] == 0).any()  # All of its slices are infected.


@pytest.mark.parametrize(('ratio', 'share'), [(0.0, 0.0), (1.0, 0.5), (3.0, 0.75)])
def test_simulated_stacks_come_at_the_wanted_ratio(scans, ratio, share):
  simulated = store.StoredScan(
    scans[1].scan_id, scans[1].volumes, {'simulated': {'parent_scan': 's0'}}
  )
  # Three simulated scans and one real: what counts is the ratio that was asked for.
  rows = drawn([scans[0], *[simulated] * 3], 300, simulated_ratio=ratio)
  assert (rows[:, 0] > 0).mean() == pytest.approx(share, abs=0.08)


def test_a_batch_depends_on_its_number_and_the_seed_alone(scans):
  def batch(number, seed):
    return pipeline.Sampler(slices(scans), sampling(seed=seed)).batch(number, range(4))

  first, again, later, other = batch(2, 3), batch(2, 3), batch(3, 3), batch(2, 4)
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
  for different in (later, other):
    assert not np.array_equal(different['stacks'], first['stacks'])
    assert not set(different['seeds']) & set(first['seeds'])


def test_hosts_read_the_rows_of_one_and_the_same_batch(scans):
  sampler = pipeline.Sampler(slices(scans), HOW)
  whole, parts = (
    sampler.batch(5, range(4)),
    [sampler.batch(5, range(a, a + 2)) for a in (0, 2)],
  )
  for name in whole:
    joined = np.concatenate([part[name] for part in parts])
    np.testing.assert_array_equal(joined, whole[name])


@pytest.fixture(scope='module')
def long_scans(tmp_path_factory):
  """Three scans of five slabs; each slab its own signal."""
  folder, shape = tmp_path_factory.mktemp('long'), (4, 4, 320)
  for number in range(3):
    infection = np.zeros(shape, np.uint8)
    infection[1, 1, number::3] = 1
    signal = np.broadcast_to(np.arange(320) // 64 + 8.0 * number, shape)
    volumes = {'signal': signal, 'lungs': np.ones(shape), 'infection': infection}
    store.write_group(store.group_path(folder, f's{number}'), volumes, {})
  return sorted(store.list_groups(folder))


def test_a_slab_stays_open_for_as_many_stacks_as_told(long_scans):
  """Lanes change at different times, and every slab has its turn."""
  scans = [store.open_group(path) for path in long_scans]
  known = slices(scans, window=tuple(slice(0, n) for n in scans[0].shape))
  how = sampling(batch_size=8, open_slabs=4, stacks_per_slab=16)
  sampler = pipeline.Sampler(known, how)
  lanes, changes = collections.defaultdict(list), collections.Counter()
  for number in range(1600):
    chosen, _ = sampler.draw(number, range(8))
    for row, (scan, index) in enumerate(chosen):
      lanes[row // 2].append((scan, index // 64))
  for lane, slabs in lanes.items():
    for number, (one, other) in enumerate(itertools.pairwise(slabs)):
      if one != other:
        changes[(number + 1) // 2] += 1
        assert ((number + 1) // 2 + 2 * lane) % 8 == 0
  assert max(changes.values()) == 1
  turns = collections.Counter(slab for slabs in lanes.values() for slab in slabs[::16])
  # 800 turns at random among 15 slabs: each 53, give or take 4 times 7.
  assert len(turns) == 15 and sum(turns.values()) == 800
  assert all(abs(n - 53) < 28 for n in turns.values())


def test_no_cube_is_decoded_twice_while_its_slab_is_open(long_scans):
  scans = [store.open_group(p, chunks=store.cache(2**26)) for p in long_scans]
  known = slices(
    scans, offsets=(0,), window=tuple(slice(0, n) for n in scans[0].shape)
  )  # fmt: skip
  sampler = pipeline.Sampler(known, sampling(open_slabs=2, stacks_per_slab=32))

  def reads():
    found = ts.experimental_collect_matching_metrics('/tensorstore/kvstore/file/read')
    return next(m for m in found if m['name'].endswith('/read'))['values'][0]['value']

  before = reads()
  for number in range(16):  # One visit, or two, of each of two lanes: 64 stacks.
    sampler.batch(number, range(4))
  visited = {
    (scan, index // 64)
    for n in range(16)
    for scan, index in sampler.draw(n, range(4))[0]
  }
  # Signal, lungs and infection of each; lungs and infection were read for the index.
  assert 0 < reads() - before <= 3 * len(visited)


def test_batches_are_read_ahead_in_order(scans):
  sampler = pipeline.Sampler(slices(scans), HOW)
  ahead = pipeline.read_ahead(sampler, range(3, 9), range(4), threads=3, batches=2)
  for number, batch in zip(range(3, 9), ahead, strict=True):
    expected = sampler.batch(number, range(4))
    for name in expected:
      np.testing.assert_array_equal(batch[name], expected[name])


def test_storage_that_does_not_answer_is_not_a_damaged_scan(scans):
  with pytest.raises(InputError, match='s0: its storage does not answer'):
    with naming(scans[0]):
      raise TimeoutError('600 s')


def test_no_slices_to_draw_is_an_error(scans):
  empty = [store.StoredScan(s.scan_id, s.volumes, {}) for s in scans]
  known = slices(empty, window=(slice(0, 2), slice(0, 12), slice(0, 20)))
  with pytest.raises(InputError, match='no slice crosses a lung'):
    pipeline.Sampler(known, HOW)


def test_what_a_reading_thread_meets_names_the_scan(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / 'store')
  scans = [store.open_group(path) for path in store.list_groups(copy)]
  sampler = pipeline.Sampler(slices(scans), sampling(foreground_share=1.0))
  for chunk in (copy / 's1.zarr' / 'signal' / 'c').rglob('*'):
    if chunk.is_file():
      chunk.write_bytes(b'damaged')
  ahead = pipeline.read_ahead(sampler, range(20), range(4), threads=2, batches=2)
  with pytest.raises(DamagedFileError, match='s1: cannot be read from the store'):
    list(ahead)
