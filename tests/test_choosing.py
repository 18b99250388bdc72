"""The choice of an aggregation function g: known answers, then brute force."""

import json

import numpy as np
import pytest
from test_aggregators import VIEWS, column, columns

from covid3way.evaluation import metrics
from covid3way.segmentation import aggregators, choosing
from covid3way.segmentation.aggregators import Aggregator


def measured(scans):
  return [choosing.tally(*each) for each in scans]


def chosen_of(row):
  fields = ('name', 'kind', 'weights', 'threshold')
  return aggregators.from_json({field: row[field] for field in fields})


def random_scan(rng, views=VIEWS, *, levels=256, shape=(7, 6, 5)):
  """Maps that know something of the labels, labels also outside, region."""
  labels = rng.random(shape) < 0.4
  maps = {
    view: (rng.integers(0, levels, shape) * (0.3 + 0.7 * labels)).astype(np.uint8)
    for view in views
  }
  return maps, labels.astype(np.uint8), (rng.random(shape) < 0.8).astype(np.uint8)


def noisy_scan(seed, shape=(16, 16, 16)):
  """Two views see the infection, the third sees nothing but its own noise."""
  rng = np.random.default_rng(seed)
  labels = rng.random(shape) < 0.3
  maps = {
    view: np.clip(128 + 60 * (2 * labels - 1) + rng.normal(0, 70, shape), 0, 255)
    for view in ('xy', 'yz')
  }
  maps['xz'] = rng.integers(0, 256, shape)
  maps = {view: each.astype(np.uint8) for view, each in maps.items()}
  return maps, labels, np.ones(shape, bool)


@pytest.fixture(scope='module')
def noisy():
  return measured(noisy_scan(seed) for seed in range(3))


def test_tally_known_answers():
  maps = {'xy': column(7, 7, 7, 9, 9), 'yz': column(1, 1, 1, 0, 0)}
  scan = choosing.tally(maps, column(1, 0, 1, 0, 1), column(1, 1, 2, 1, 0))
  rows = zip(*scan.levels.tolist(), scan.infected, scan.counts, strict=True)
  assert sorted(rows) == [(7, 1, False, 1), (7, 1, True, 2), (9, 0, False, 1)]
  assert (scan.views, scan.outside, scan.reference) == (('xy', 'yz'), 1, 3)
  only_xy = {'xy': 3.0, 'yz': 0.0}
  # All four voxels are predicted, two rightly; the reference has one more outside.
  assert choosing.dice(Aggregator('', 'linear', only_xy, 0.05), scan) == 4 / 7
  assert choosing.dice(Aggregator('', 'linear', only_xy, 0.09), scan) == 0
  other_order = {'yz': 0.0, 'xy': 3.0}
  assert choosing.dice(Aggregator('', 'linear', other_order, 0.05), scan) == 4 / 7


def fixed(scans, views, name):
  """A candidate that is chosen however it compares, and its row of the table."""
  g, rows = choosing.choose(scans, views, name=name)
  return g, [row for row in rows if row['name'] == name]


def test_threshold_is_the_middle_between_the_scores_beside_it():
  scan = {'xy': column(0, 10, 20, 40)}, column(0, 0, 1, 1), column(1, 1, 1, 1)
  g, rows = fixed(measured([scan]), ['xy'], name='sum')
  assert (g.weights, g.threshold) == ({'xy': 3.0}, pytest.approx(3 * 15 / 255))
  assert [row['dice_mean'] for row in rows] == [1.0]
  g, _ = fixed(measured([scan]), ['xy'], name='product')
  assert g.threshold == pytest.approx(15 / 255)
  # With 40 alone infected the gap is wide.
  scan = scan[0], column(0, 0, 0, 1), scan[2]
  g, _ = fixed(measured([scan]), ['xy'], name='sum')
  assert g.threshold == pytest.approx(3 * 30 / 255)


def test_equal_dice_on_both_sides_of_a_score_is_one_plateau():
  """The first scan loses at 20 what the second wins: 2/3 and 1, or 1 and 2/3."""
  region = column(1, 1, 1)
  first = {'xy': column(0, 20, 90)}, column(0, 1, 1), region
  second = {'xy': column(0, 20, 90)}, column(0, 0, 1), region
  g, rows = fixed(measured([first, second]), ['xy'], name='sum')
  assert rows[0]['dice_mean'] == pytest.approx(5 / 6)
  assert g.threshold == pytest.approx(3 * 45 / 255)


@pytest.mark.parametrize('count', [1, 2, 3])
@pytest.mark.parametrize('kind', ['linear', 'product'])
def test_dice_of_a_tally_is_dice_of_the_masks(kind, count):
  rng = np.random.default_rng(count)
  seen = set()
  for _ in range(30):
    maps, labels, region = random_scan(rng, VIEWS[:count])
    scan = choosing.tally(maps, labels, region)
    assert scan.counts.sum() == region.sum()
    weights = np.ones(count)
    if kind == 'linear':
      weights = rng.integers(-500, 3001, count) / 1000
    weights = dict(zip(VIEWS, weights.tolist(), strict=False))
    g = Aggregator('', kind, weights, float(rng.uniform(0, 0.8)))
    mask = aggregators.apply(g, maps, region)
    score = [w * maps[v].astype(float) / 255 for v, w in weights.items()]
    score = np.sum(score, axis=0) if kind == 'linear' else np.prod(score, axis=0)
    np.testing.assert_array_equal(mask, (score > g.threshold) & (region > 0))
    assert choosing.dice(g, scan) == metrics.dice(labels, mask)
    seen.add(metrics.dice(labels, mask))
  assert len(seen) > 15


def best_mean_dice(scans, scores):
  """Of all cuts that are not negative, on volumes."""

  def mean_dice(cut):
    pairs = zip(scans, scores, strict=True)
    return np.mean([metrics.dice(s[1], (e > cut) & (s[2] > 0)) for s, e in pairs])

  distinct = np.unique(np.concatenate([each.ravel() for each in scores]))
  return max(mean_dice(cut) for cut in [0, *distinct[distinct > 0]])


@pytest.mark.parametrize('name', ['sum', 'product'])
@pytest.mark.parametrize('seed', range(3))
def test_threshold_is_the_best_of_all(name, seed):
  rng = np.random.default_rng(seed)
  scans = [random_scan(rng, levels=11, shape=(3 + i, 6, 5)) for i in range(3)]
  reduce = np.sum if name == 'sum' else np.prod
  scores = [reduce([*s[0].values()], axis=0, dtype=int) for s in scans]
  best = best_mean_dice(scans, scores)
  _, (row,) = fixed(measured(scans), VIEWS, name=name)
  assert row['dice_mean'] == pytest.approx(best, abs=1e-12)
  assert best > 0.3


@pytest.mark.parametrize('name', ['logistic', 'svm'])
def test_threshold_is_the_best_of_all_where_a_view_counts_against(name):
  rng = np.random.default_rng(0)
  scans = [random_scan(rng, levels=11) for _ in range(2)]
  for maps, labels, _ in scans:
    maps['xz'] = (6 - 4 * labels + rng.integers(0, 6, labels.shape)).astype(np.uint8)
    maps.update({view: 4 * each for view, each in maps.items()})
  _, (row,) = fixed(measured(scans), VIEWS, name=name)
  weights = row['weights']
  assert weights['xz'] < -0.1
  assert sum(map(abs, weights.values())) == pytest.approx(3, abs=0.002)
  parts = {view: round(1000 * w) for view, w in weights.items()}
  scores = [sum(parts[v] * m.astype(int) for v, m in s[0].items()) for s in scans]
  best = best_mean_dice(scans, scores)
  assert row['dice_mean'] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize('seed', range(6))
def test_learned_is_the_best_of_all_weights(seed):
  """Levels are multiples of 4, so that nothing is lost where they are coarser."""
  rng = np.random.default_rng(seed)
  scans = [random_scan(rng, VIEWS[:2], levels=9) for _ in range(2)]
  scans = [({v: 4 * m for v, m in maps.items()}, *rest) for maps, *rest in scans]
  found = [
    best_mean_dice(
      scans,
      [i * s[0]['xy'].astype(int) + (12 - i) * s[0]['yz'] for s in scans],
    )
    for i in range(13)
  ]
  _, (row,) = fixed(measured(scans), VIEWS[:2], name='learned')
  assert row['dice_mean'] == pytest.approx(max(found), abs=1e-12)
  assert found[round(row['weights']['xy'] * 4)] == pytest.approx(max(found), abs=1e-12)
  assert max(found) > found[6]


def test_learned_weights_are_even_where_nothing_speaks_for_one_view():
  each = column(0, 100, 200, 255)
  scan = dict.fromkeys(VIEWS, each), column(0, 0, 1, 1), column(1, 1, 1, 1)
  g, _ = fixed(measured([scan]), VIEWS, name='learned')
  assert g.weights == dict.fromkeys(VIEWS, 1.0)


def test_regressions_are_those_of_all_voxels():
  """As fitted to the voxels themselves; levels are multiples of 4 as above."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.svm import LinearSVC

  maps, labels, region = noisy_scan(0)
  maps = {view: each // 4 * 4 for view, each in maps.items()}
  _, rows = choosing.choose(measured([(maps, labels, region)]), VIEWS)
  found = {row['name']: [row['weights'][view] for view in VIEWS] for row in rows}
  levels = np.stack([maps[view].ravel() / 255 for view in VIEWS], axis=-1)
  for name, model in {
    'logistic': LogisticRegression(C=10),
    'svm': LinearSVC(dual=False, C=10),
  }.items():
    (weights,) = model.fit(levels, labels.ravel()).coef_
    expected = 3 * weights / np.abs(weights).sum()
    np.testing.assert_allclose(found[name], expected, atol=0.003)
  assert np.abs(np.subtract(found['logistic'], found['svm'])).max() > 0.006


def test_every_candidate_is_measured_as_it_is_applied():
  scans = [random_scan(np.random.default_rng(seed)) for seed in range(2)]
  _, rows = choosing.choose(measured(scans), VIEWS)
  assert tuple(row['name'] for row in rows) == choosing.NAMES
  for row in rows:
    g = chosen_of(row)
    every = [metrics.dice(s[1], aggregators.apply(g, s[0], s[2])) for s in scans]
    assert row['dice'] == every
    assert row['dice_worst'] == min(every)
    assert row['dice_mean'] == pytest.approx(np.mean(every))
    assert all(type(value) is float for value in [*row['dice'], row['dice_mean']])
  assert json.loads(json.dumps(rows)) == rows


def test_a_view_of_noise_is_weighed_down(noisy):
  g, rows = choosing.choose(noisy, VIEWS)
  row = {each['name']: each for each in rows}
  for name in ('weighted', 'learned', 'logistic', 'svm'):
    assert row[name]['weights']['xz'] == min(row[name]['weights'].values())
    assert row[name]['dice_mean'] > row['sum']['dice_mean'] + 0.005
  for name in ('learned', 'logistic', 'svm'):
    assert abs(row[name]['weights']['xz']) < 0.3
    assert sum(map(abs, row[name]['weights'].values())) == pytest.approx(3, abs=0.002)
  assert g.name == max(rows, key=lambda each: each['dice_mean'])['name']


def test_weighted_is_proportional_to_own_dice():
  maps = columns((200, 200, 0), (128, 0, 0), (127, 200, 0), (0, 0, 127))
  scan = maps, column(1, 1, 0, 0), column(1, 1, 1, 1)
  g, _ = fixed(measured([scan]), VIEWS, name='weighted')
  # Own Dice: 1, 1/2 and 0.
  assert g.weights == {'xy': 2.0, 'yz': 1.0, 'xz': 0.0}


def test_a_simple_rule_is_kept_within_the_margin(noisy):
  _, rows = choosing.choose(noisy, VIEWS)
  means = {row['name']: row['dice_mean'] for row in rows}
  best = max(means, key=means.get)
  over_paper, over_sum = means[best] - means['sum > 2'], means[best] - means['sum']
  assert over_paper > over_sum + 0.01 > 0.02

  def name(margin):
    return choosing.choose(noisy, VIEWS, margin=margin)[0].name

  assert name(over_paper + 1e-6) == 'sum > 2'
  assert name(over_paper - 1e-6) == name(over_sum + 1e-6) == 'sum'
  assert name(over_sum - 1e-6) == best


def test_the_paper_s_rule_is_kept_where_none_is_better():
  rng = np.random.default_rng(0)
  maps = {view: rng.integers(0, 256, (9, 9, 9)).astype(np.uint8) for view in VIEWS}
  labels = sum(each.astype(int) for each in maps.values()) > 510
  scans = measured([(maps, labels, np.ones(labels.shape))])
  g, rows = choosing.choose(scans, VIEWS, margin=0.0)
  assert g == aggregators.plain(VIEWS)
  assert [row['dice_mean'] for row in rows][:2] == [1.0, 1.0]


def test_every_scan_weighs_the_same():
  """One of the scans sees with another view; it may be eight times as large."""
  first = noisy_scan(0, (8, 8, 8))
  maps, labels, region = noisy_scan(1, (8, 8, 8))
  maps = {'xy': maps['xz'], 'yz': maps['yz'], 'xz': maps['xy']}
  large = {view: np.tile(each, (8, 1, 1)) for view, each in maps.items()}
  small = measured([first, (maps, labels, region)])
  tiled = np.tile(labels, (8, 1, 1)), np.tile(region, (8, 1, 1))
  tallies = measured([first, (large, *tiled)])
  for one, other in zip(
    choosing.choose(small, VIEWS)[1],
    choosing.choose(tallies, VIEWS)[1],
    strict=True,
  ):
    assert one['weights'] == pytest.approx(other['weights'], abs=0.002)
    assert one['dice_mean'] == pytest.approx(other['dice_mean'], abs=0.002)


def test_one_candidate_can_be_fixed(noisy):
  _, rows = choosing.choose(noisy, VIEWS)
  for row in rows:
    g, alone = fixed(noisy, VIEWS, name=row['name'])
    assert (g, alone) == (chosen_of(row), [row])


def test_a_scan_without_infection_steers_nothing_but_is_told(noisy):
  maps, labels, region = noisy_scan(7)
  healthy = choosing.tally(maps, np.zeros_like(labels), region)
  g, rows = choosing.choose(noisy, VIEWS)
  with_it = choosing.choose([healthy, *noisy], VIEWS)
  assert with_it[0] == g
  for row, other in zip(rows, with_it[1], strict=True):
    assert other == {**row, 'dice': [0.0, *row['dice']]}
  # What finds nothing in it agrees with it wholly.
  assert choosing.dice(aggregators.plain(VIEWS, 3.0), healthy) == 1.0


@pytest.mark.parametrize('name', ['best', 'learned'])
def test_without_infection_the_paper_s_rule_stays(name):
  maps = columns((255, 255, 255), (9, 9, 9))
  scan = choosing.tally(maps, column(0, 0), column(1, 1))
  empty = choosing.tally(maps, column(0, 0), column(0, 0))
  for scans, every in [([], []), ([scan], [0.0]), ([empty], [1.0])]:
    g, rows = choosing.choose(scans, VIEWS, name=name)
    assert g == aggregators.plain(VIEWS)
    figures = {'dice_mean': None, 'dice_worst': None, 'dice': every}
    assert rows == [aggregators.to_json(g) | figures]


@pytest.mark.parametrize('levels', [(0, 0), (3, 3), (3, 1), (255, 255)])
@pytest.mark.parametrize('labels', [(1, 1), (1, 0)])
def test_maps_that_tell_little_are_no_error(levels, labels):
  """Untrained networks: nothing to weigh, or nothing left where levels are coarse."""
  scan = columns(*([each] * 3 for each in levels)), column(*labels), column(1, 1)
  g, rows = choosing.choose(measured([scan]), VIEWS)
  best = max(row['dice_mean'] for row in rows)
  found = {(0, 0): 0.0, (3, 1): 1.0}.get(levels, 2 * sum(labels) / (2 + sum(labels)))
  assert best == pytest.approx(found)
  assert g.name == ('sum > 2' if levels in ((0, 0), (255, 255)) else 'sum')


def test_json_round_trip_decides_the_same(noisy):
  for row in choosing.choose(noisy, VIEWS)[1]:
    g = chosen_of(row)
    again = aggregators.from_json(json.loads(json.dumps(aggregators.to_json(g))))
    assert (again, again.cut) == (g, g.cut)


def test_foreign_maps_and_names_are_errors(noisy):
  maps, labels, region = noisy_scan(0)
  for foreign in (
    {view: each / np.float32(255) for view, each in maps.items()},
    {view: each[1:] for view, each in maps.items()},
  ):
    with pytest.raises(ValueError, match='uint8'):
      choosing.tally(foreign, labels, region)
  with pytest.raises(ValueError, match='1 to 3'):
    choosing.tally({**maps, 'more': maps['xy']}, labels, region)
  with pytest.raises(ValueError, match='labels'):
    choosing.tally(maps, labels[1:], region)
  with pytest.raises(ValueError, match='no candidate'):
    choosing.choose(noisy, VIEWS, name='median')
  with pytest.raises(ValueError, match='tallied with'):
    choosing.choose(noisy, VIEWS[:2])
  with pytest.raises(ValueError, match='views'):
    choosing.dice(aggregators.plain(VIEWS[:2]), noisy[0])
