"""Batches: what is read is what was stored, drawn evenly and as told."""

import numpy as np
import pytest

from covid3way.scans import store
from covid3way.training import pipeline, views

SHAPE = (16, 12, 20)
WHOLE = tuple(slice(0, n) for n in SHAPE)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
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
  return [store.open_group(path) for path in store.list_groups(folder)]


def slices(scans, view, *, offsets=(-2, 0, 2), region='lungs', window=WHOLE):
  return pipeline.Slices(
    scans, view=view, target='infection', region=region, offsets=offsets, window=window
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


def test_foreground_and_background_are_told_apart(scans):
  known = slices(scans, 'xy')
  assert known.foreground.tolist() == [[0, z] for z in range(2, 18)] + [[1, 9]]
  assert known.background.tolist() == [[1, z] for z in range(2, 18) if z != 9]


def test_window_cuts_planes_and_leaves_numbers_of_slices(scans):
  window = (slice(4, 12), slice(0, 12), slice(8, 16))
  known = slices(scans, 'xy', window=window)
  assert known.foreground.tolist() == [[0, z] for z in range(8, 16)] + [[1, 9]]
  whole = slices(scans, 'xy').read(np.array([[0, 8]]))
  cut = known.read(np.array([[0, 8]]))
  np.testing.assert_array_equal(cut['stacks'], whole['stacks'][:, 4:12])


def test_region_all_counts_everywhere(scans):
  assert slices(scans, 'yz', region='all').read(np.array([[0, 0]]))['weights'].all()


def drawn(scans, n, **options):
  """Scan, whether infected, and both axes' directions of n * 4 drawn stacks."""
  known = slices(scans, 'xy')
  rows = []
  for number in range(n):
    batch = pipeline.batch_at(number, known, batch_size=4, seed=0, **options)
    for stack, label in zip(batch['stacks'], batch['labels'], strict=True):
      number = int(stack[..., 1].mean())  # What is added to it stays below 1.
      across = np.sign(np.diff(stack[:, 0, 1])).mean()
      rows.append((number, bool(label.any()), across))
  return np.array(rows, float)


def test_every_scan_is_drawn_equally_often_however_sick(scans):
  rows = drawn(scans, 100, foreground_share=1.0)
  assert rows[:, 1].all()
  assert 0.4 < rows[:, 0].mean() < 0.6


def test_foreground_share_is_kept(scans):
  assert 0.2 < drawn(scans, 100, foreground_share=0.3)[:, 1].mean() < 0.4


def test_half_of_the_stacks_are_flipped_with_their_labels(scans):
  assert abs(drawn(scans, 100, foreground_share=1.0)[:, 2].mean()) < 0.2
  known = slices(scans, 'xy')
  batch = pipeline.batch_at(0, known, batch_size=16, foreground_share=1.0, seed=1)
  for stack, label in zip(batch['stacks'], batch['labels'], strict=True):
    inside = stack[..., 1][label > 0]
    # The lesion covers x 5 to 8 and y 4 to 6 of its slice, flipped or not.
    spread = inside.max() - inside.min()
    assert spread == pytest.approx(3 / 64 + 2 / 1024, abs=1e-6)


def test_a_batch_depends_on_its_number_and_the_seed_alone(scans):
  known = slices(scans, 'xz')
  first, again, later, other = (
    pipeline.batch_at(number, known, batch_size=4, foreground_share=0.5, seed=seed)
    for number, seed in ((2, 3), (2, 3), (3, 3), (2, 4))
  )
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
  assert not np.array_equal(later['stacks'], first['stacks'])
  assert not np.array_equal(other['stacks'], first['stacks'])
