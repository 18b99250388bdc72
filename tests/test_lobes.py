"""Lobe masks of other programs are understood, or refused by name."""

import numpy as np
import pytest

from covid3way.base import LEFT, RIGHT, InputError, MaskGridError
from covid3way.scans.lobes import CONVENTIONS, LOBES, named_lobes

SHAPE = (8, 4, 12)
# Where each lobe lies: x grows to the left, z to the head.
PLACES = {
  'left_upper': (slice(4, 8), slice(5, 11)),
  'left_lower': (slice(4, 8), slice(1, 5)),
  'right_upper': (slice(0, 4), slice(8, 11)),
  'right_middle': (slice(0, 4), slice(5, 8)),
  'right_lower': (slice(0, 4), slice(1, 5)),
}


def lungs():
  result = np.zeros(SHAPE, np.uint8)
  result[4:, 1:, 1:11] = LEFT
  result[:4, 1:, 1:11] = RIGHT
  return result


def lobes(ids, **elsewhere):
  """A mask of five lobes with these labels, in the order of `LOBES`."""
  result = np.zeros(SHAPE, np.uint8)
  for label, name in zip(ids, LOBES, strict=True):
    x, z = elsewhere.get(name, PLACES[name])
    result[x, 1:, z] = label
  return result


OWN = lobes((1, 2, 3, 4, 5))


@pytest.mark.parametrize('name', CONVENTIONS)
def test_each_convention_is_known_by_its_labels(name):
  found = named_lobes(lobes(CONVENTIONS[name]), lungs(), scan_id='s')
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, OWN)


# As both programs document them, independent of the tables in the code.
@pytest.mark.parametrize(
  ('labels', 'outside'),
  [
    # TotalSegmentator 2, `total`: spleen 1, liver 5, oesophagus 15, trachea 16,
    # thyroid 17, costal cartilages 117.
    ((10, 11, 12, 13, 14), (1, 5, 15, 16, 17, 117)),
    # TotalSegmentator 1: spleen 1, liver 5, pancreas 10, adrenal glands 11 and 12.
    ((13, 14, 15, 16, 17), (1, 5, 10, 11, 12, 104)),
  ],
)
def test_all_of_a_chest_is_told_apart_by_what_lies_in_the_lungs(labels, outside):
  mask = lobes(labels)
  for z, label in enumerate(outside, start=1):
    mask[:, 0, z] = label
  found = named_lobes(mask, lungs(), scan_id='s')
  np.testing.assert_array_equal(found, OWN)


def test_a_removed_lobe_is_no_mistake():
  mask = lobes((1, 2, 3, 4, 5))
  mask[mask == 4] = 5
  found = named_lobes(mask, lungs(), scan_id='s')
  assert set(np.unique(found)) == {0, 1, 2, 3, 5}


def test_of_one_lung_the_other_lobes_are_not_asked_for():
  one = lungs()
  one[one == RIGHT] = 0
  mask = np.where(one, OWN, 0)
  np.testing.assert_array_equal(named_lobes(mask, one, scan_id='s'), mask)


def refused(kind, mask, *words, of=None):
  with pytest.raises(kind) as caught:
    named_lobes(mask, lungs() if of is None else of, scan_id='scan-7')
  assert caught.value.remedy and caught.value.subject == 'scan-7'
  for word in words:
    assert word in str(caught.value)


def test_labels_of_two_versions_are_not_guessed():
  one = lungs()
  one[one == RIGHT] = 0
  mask = np.zeros(SHAPE, np.uint8)
  mask[4:, 1:, 5:11], mask[4:, 1:, 1:5] = 13, 14
  words = ('13, 14', 'TotalSegmentator 2 and in TotalSegmentator 1', '1 left upper')
  refused(InputError, mask, *words, of=one)


@pytest.mark.parametrize(
  'ids', [(6, 7, 8, 9, 18), (1, 2, 3, 4, 14), (10, 11, 12, 16, 17), (0, 0, 0, 0, 0)]
)
def test_labels_of_no_convention_are_refused(ids):
  refused(InputError, lobes(ids), 'known are lungmask LTRCLobes: 1 to 5')


def test_a_mask_beside_the_lungs_is_refused():
  refused(InputError, np.roll(OWN, 6, axis=2) * (lungs() == 0), 'in the lungs: none')


def test_sides_exchanged_are_told():
  refused(MaskGridError, OWN[::-1], 'lies in the right lung by 100%', 'left to right')


def test_one_lobe_on_the_wrong_side_is_told():
  mask = lobes((1, 2, 3, 5, 4))
  mask[mask == 4] = 2
  mask[4:, 1:, 1:5] = 4
  refused(MaskGridError, mask, 'label 2', 'left lower lobe')


def test_a_mask_of_lungs_is_no_mask_of_lobes():
  refused(MaskGridError, lungs(), 'label 2', 'no lobe mask')
  refused(MaskGridError, (lungs() > 0).astype(np.uint8) * 5, 'covers only 0%')


def test_head_and_feet_exchanged_are_told():
  refused(MaskGridError, OWN[:, :, ::-1], 'upper lobe', 'below', 'head to feet')


def test_lobes_that_leave_most_of_a_lung_bare_are_told():
  mask = OWN.copy()
  mask[:, :3] = 0
  refused(MaskGridError, mask, 'covers only 33% of the left lung')
  mask = OWN.copy()
  mask[:4] = 0
  refused(MaskGridError, mask, 'covers only 0% of the right lung')
