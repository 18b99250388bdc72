"""Aggregation functions g: known answers."""

import fractions

import numpy as np
import pytest

from covid3way.segmentation import aggregators
from covid3way.segmentation.aggregators import Aggregator

VIEWS = ('xy', 'yz', 'xz')


def column(*levels):
  """One voxel after the other."""
  return np.array(levels, np.uint8).reshape(-1, 1, 1)


def columns(*voxels):
  """Maps of voxels that are given as their levels in each view."""
  return {
    v: column(*each) for v, each in zip(VIEWS, zip(*voxels, strict=True), strict=False)
  }


def applied(aggregator, *voxels):
  maps = columns(*voxels)
  region = np.ones((len(voxels), 1, 1), np.uint8)
  return aggregators.apply(aggregator, maps, region).ravel().tolist()


def test_two_is_not_above_two():
  voxels = [(255, 255, 1), (255, 255, 0), (170, 170, 170), (170, 170, 171), (0, 0, 0)]
  paper = aggregators.plain(VIEWS)
  assert paper.name == 'sum > 2'
  assert applied(paper, *voxels) == [True, False, False, True, False]


def test_fewer_views_answer_to_their_share():
  assert applied(aggregators.plain(['xy']), (170,), (171,)) == [False, True]
  two = aggregators.plain(['xy', 'yz'])
  assert applied(two, (170, 170), (170, 171), (255, 85)) == [False, True, False]


@pytest.mark.parametrize('count', [1, 2, 3])
def test_decimal_thresholds_are_decided_as_exact_fractions(count):
  """0.6 x 255 is 153, and no binary fraction is 0.6."""
  for tenths in range(31):
    share = fractions.Fraction(tenths * count, 30)
    sums = [min(max(int(share * 255) + i, 0), 255 * count) for i in (-1, 0, 1, 2)]
    voxels = [[min(max(s - 255 * i, 0), 255) for i in range(count)] for s in sums]
    plain = aggregators.plain(VIEWS[:count], tenths / 10)
    assert applied(plain, *voxels) == [fractions.Fraction(s, 255) > share for s in sums]


def test_weights_multiply_each_its_own_view_in_any_order():
  weights = {'xz': 0.25, 'xy': 2.25, 'yz': 0.5}
  g = Aggregator('mine', 'linear', weights, 1.5)
  # 2.25 * 170 is 382.5, and 1.5 * 255 is too; 0.25 * 1 is more, 0.5 * 255 alone less.
  voxels = [(170, 0, 0), (170, 0, 1), (169, 3, 3), (169, 3, 4), (0, 255, 255)]
  assert applied(g, *voxels) == [False, True, False, True, False]


def test_negative_weights_and_a_product():
  g = Aggregator('mine', 'linear', {'xy': 2.0, 'yz': -1.0}, 0.0)
  assert applied(g, (100, 199), (100, 200), (0, 0), (0, 9)) == [True, *[False] * 3]
  g = Aggregator('product', 'product', dict.fromkeys(VIEWS, 1), 0.5)
  voxels = [(255, 255, 127), (128, 255, 255), (255, 255, 0), (203, 203, 203)]
  # 203^3 is 8 365 427, half of 255^3 is 8 290 687.5.
  assert applied(g, *voxels) == [False, True, False, True]


def test_a_weight_at_a_threshold_of_its_own_size_is_not_above_it():
  """In binary fractions 2.01 x 255 000 is less than 512 550."""
  assert applied(Aggregator('', 'linear', {'xy': 2.01}, 2.01), (255,)) == [False]


def test_apply_ends_at_the_region():
  maps = {'xy': column(255, 255, 255)}
  region = np.array([2, 0, 1]).reshape(3, 1, 1)
  mask = aggregators.apply(aggregators.plain(['xy']), maps, region)
  assert mask.dtype == bool
  assert mask.ravel().tolist() == [True, False, True]


GOOD = {'name': 'a', 'kind': 'linear', 'weights': {'xy': 3.0}, 'threshold': 2.0}


@pytest.mark.parametrize(
  'change',
  [
    {'kind': 'other'},
    {'weights': {}},
    {'weights': dict.fromkeys('abcd', 0.75)},
    {'weights': [1.0]},
    {'weights': {'xy': 0.1234}},
    {'weights': {'xy': 3.5}},
    {'weights': {'xy': float('nan')}},
    {'kind': 'product'},
    {'threshold': -0.1},
    {'threshold': float('inf')},
    {'threshold': '2'},
    {'more': 1},
  ],
  ids=str,
)
def test_what_is_no_aggregator_is_an_error(change):
  assert aggregators.to_json(aggregators.from_json(GOOD)) == GOOD
  with pytest.raises(ValueError):
    aggregators.from_json(GOOD | change)


def test_foreign_maps_are_errors():
  region = column(1, 1)
  maps = dict.fromkeys(VIEWS, column(9, 200))
  aggregators.apply(aggregators.plain(VIEWS), maps, region)
  for foreign in (
    {view: maps[view] for view in VIEWS[:2]},
    {view: each / np.float32(255) for view, each in maps.items()},
    {view: each[1:] for view, each in maps.items()},
  ):
    with pytest.raises(ValueError):
      aggregators.apply(aggregators.plain(VIEWS), foreign, region)
