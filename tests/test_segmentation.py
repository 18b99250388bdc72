"""Aggregation, probability maps and quantification: known answers."""

import functools

import jax
import numpy as np
import pytest
from conftest import hurried

from covid3way.base import LEFT, RIGHT, WarningKind
from covid3way.segmentation import aggregators, quantify, three_way
from covid3way.segmentation.maps import probability_map
from covid3way.segmentation.model import Model, ModelSpec
from covid3way.training.step import fresh_variables
from covid3way.training.views import NORMAL_AXIS

SUM = aggregators.plain(('xy', 'yz', 'xz'))


def test_aggregate_is_the_sum_over_two():
  maps = {
    'xy': np.array([255, 255, 170, 171, 0], np.uint8).reshape(5, 1, 1),
    'yz': np.array([255, 255, 170, 171, 0], np.uint8).reshape(5, 1, 1),
    'xz': np.array([1, 0, 170, 171, 0], np.uint8).reshape(5, 1, 1),
  }
  lungs = np.ones((5, 1, 1), np.uint8)
  probability, mask = three_way.aggregate(maps, lungs, SUM)
  # 510 / 255 is 2, and 2 is not above 2.
  assert mask.ravel().tolist() == [True, False, False, True, False]
  np.testing.assert_allclose(
    probability.ravel(), np.array([511, 510, 510, 513, 0]) / 765, atol=5e-4
  )


def test_aggregate_ends_at_the_lungs():
  maps = {v: np.full((2, 1, 1), 200, np.uint8) for v in ('xy', 'yz', 'xz')}
  lungs = np.array([1, 0], np.uint8).reshape(2, 1, 1)
  probability, mask = three_way.aggregate(maps, lungs, SUM)
  assert mask.ravel().tolist() == [True, False]
  assert probability.ravel()[1] == 0


@pytest.fixture(scope='module')
def model():
  """Three small untrained networks, each its own."""
  spec = ModelSpec('infection', (32, 32, 48), (-30.0, 0.0, 30.0), (4, 8))
  variables = {
    view: fresh_variables(spec.network, jax.random.key(i), (16, 16, 3))
    for i, view in enumerate(NORMAL_AXIS)
  }
  return Model(spec, variables, SUM)


@pytest.mark.parametrize('view', NORMAL_AXIS)
def test_probability_map_equals_slice_by_slice_evaluation(model, view):
  """Each view through its own network, each slice where it belongs."""
  rng = np.random.default_rng(0)
  signal = rng.normal(size=model.spec.space_shape).astype(np.float32)
  lungs = np.zeros(signal.shape, np.uint8)
  lungs[8:20, 5:25, 10:41] = 1
  got = probability_map(model, view, signal, lungs, batch_size=8)
  axis = NORMAL_AXIS[view]
  offsets = [round(mm / model.spec.space.spacing_mm[axis]) for mm in (-30, 0, 30)]
  n = signal.shape[axis]
  apply = hurried(functools.partial(model.spec.network.apply, train=False))
  for index in range(n):
    crossing = lungs.take(index, axis=axis).any()
    plane = got.take(index, axis=axis)
    if not crossing:
      assert not plane.any()
      continue
    if index % 5:
      continue
    stack = np.stack(
      [signal.take(np.clip(index + o, 0, n - 1), axis=axis) for o in offsets], -1
    )
    logits = apply(model.variables[view], stack[None])
    expected = jax.nn.softmax(logits)[0, ..., 1]
    np.testing.assert_allclose(plane / 255, expected, atol=0.6 / 255)


def test_quantify_known_answers():
  lungs = np.zeros((4, 2, 9), np.uint8)
  lungs[2:, :, :] = LEFT
  lungs[:2, :, :] = RIGHT
  infection = np.zeros_like(lungs, bool)
  infection[2:, :, :3] = True  # left, lower third: 12 voxels
  infection[0, 0, 8] = True  # right, upper third: 1 voxel
  numbers = quantify.quantify(infection, lungs, voxel_ml=0.5)
  assert numbers['infected_percent'] == pytest.approx(100 * 13 / 72, abs=1e-4)
  assert (numbers['infection_ml'], numbers['lung_ml']) == (6.5, 36.0)
  left, right = numbers['per_lung']['left'], numbers['per_lung']['right']
  assert (left['infection_ml'], right['infection_ml']) == (6.0, 0.5)
  assert left['infected_percent'] == pytest.approx(100 * 12 / 36, abs=1e-4)
  thirds = numbers['per_third']
  assert [thirds[n]['infection_ml'] for n in ('upper', 'middle', 'lower')] == [
    0.5,
    0,
    6.0,
  ]


def test_infection_outside_the_lungs_does_not_count():
  lungs = np.zeros((2, 2, 3), np.uint8)
  lungs[0] = RIGHT
  numbers = quantify.quantify(np.ones_like(lungs, bool), lungs, voxel_ml=1.0)
  assert numbers['infected_percent'] == 100
  assert numbers['infection_ml'] == 6
  assert numbers['per_lung']['left']['infected_percent'] is None


def test_no_lung_has_no_thirds():
  with pytest.raises(ValueError, match='empty'):
    quantify.quantify(*np.zeros((2, 2, 2, 2), np.uint8), 1.0)


def blocks(columns):
  """Lungs with a block of 1000 voxels per lung third and side, and its infection.

  `columns` gives the infected voxels of (left, right) per third, lower one first.
  """
  lungs = np.zeros((4, 100, 33), np.uint8)
  infection = np.zeros(lungs.shape, bool)
  for third, counts in enumerate(columns):
    for x, side, count in zip((2, 0), (LEFT, RIGHT), counts, strict=True):
      block = np.zeros((2, 50, 10), bool)
      block.ravel()[:count] = True
      where = slice(x, x + 2), slice(0, 50), slice(1 + 10 * third, 11 + 10 * third)
      lungs[where], infection[where] = side, block
  return lungs, infection


@pytest.mark.parametrize(
  ('infected', 'points'),
  [
    (0, 0),
    (1, 1),
    (49, 1),
    (50, 2),  # 5 %
    (250, 2),  # 25 %
    (251, 3),
    (499, 3),
    (500, 4),  # 50 %
    (750, 4),  # 75 %
    (751, 5),
    (1000, 5),
  ],
)
def test_points_of_a_lobe(infected, points):
  lungs, infection = blocks([(0, 0), (infected, 0), (0, 0)])
  lobes = np.where(lungs == RIGHT, 5, lungs)
  lobes[:, :, 11:21][lungs[:, :, 11:21] == LEFT] = 2
  found = quantify.quantify(infection, lungs, 0.5, lobes=lobes)['severity']
  assert found['parts']['left_lower']['points'] == found['total'] == points
  assert found['parts']['left_lower']['infected_percent'] == infected / 10
  assert found['maximum'] == 25 and 'Pan' in found['source']
  assert list(found['scale']) == ['0', '1', '2', '3', '4', '5']


@pytest.mark.parametrize(
  ('infected', 'points'),
  [
    (0, 0),
    (1, 1),
    (249, 1),
    (250, 2),  # 25 %
    (499, 2),
    (500, 3),  # 50 %
    (749, 3),
    (750, 4),  # 75 %
    (1000, 4),
  ],
)
def test_points_of_a_zone(infected, points):
  lungs, infection = blocks([(0, 0), (0, infected), (0, 0)])
  found = quantify.quantify(infection, lungs, 0.5)['severity']
  assert found['parts']['right_middle']['points'] == found['total'] == points
  assert (
    found['maximum'] == 24 and 'zones' in found['name'] and 'Ooi' in found['source']
  )
  assert list(found['scale']) == ['0', '1', '2', '3', '4']


def test_severity_is_the_sum_of_its_parts():
  lungs, infection = blocks([(10, 300), (600, 1000), (0, 249)])
  found = quantify.quantify(infection, lungs, 0.5)['severity']
  points = {name: part['points'] for name, part in found['parts'].items()}
  assert points == {
    'left_upper': 0,
    'left_middle': 3,
    'left_lower': 1,
    'right_upper': 1,
    'right_middle': 4,
    'right_lower': 2,
  }
  assert found['total'] == 11
  everything = quantify.quantify(lungs > 0, lungs, 0.5)['severity']
  assert everything['total'] == everything['maximum'] == 24


def test_lobes_and_what_is_in_none_add_up_to_the_lungs():
  rng = np.random.default_rng(3)
  lungs = rng.integers(0, 3, (9, 8, 7), np.uint8)
  lobes = rng.integers(0, 6, lungs.shape, np.uint8)
  lobes[lobes == 4] = 0  # A lobe that was removed.
  infection = rng.random(lungs.shape) < 0.3
  found = quantify.quantify(infection, lungs, 0.25, lobes=lobes)
  names = ('left_upper', 'left_lower', 'right_upper', 'right_middle', 'right_lower')
  assert list(found['per_lobe']) == list(names)
  for label, name in enumerate(names, start=1):
    part = (lobes == label) & (lungs > 0)
    infected = np.count_nonzero(part & infection)
    assert found['per_lobe'][name]['lung_ml'] == 0.25 * np.count_nonzero(part)
    assert found['per_lobe'][name]['infection_ml'] == 0.25 * infected
  for amount in ('lung_ml', 'infection_ml'):
    parts = [*found['per_lobe'].values(), found['outside_lobes']]
    assert sum(part[amount] for part in parts) == found[amount]
  assert found['per_lobe']['right_middle']['infected_percent'] is None
  assert found['severity']['parts']['right_middle']['points'] is None
  # Lobes change nothing else.
  without = quantify.quantify(infection, lungs, 0.25)
  assert {k: found[k] for k in without if k != 'severity'} == {
    k: without[k] for k in without if k != 'severity'
  }


def test_quantify_needs_a_lung():
  with pytest.raises(ValueError, match='empty'):
    quantify.quantify(np.ones((2, 2, 3), bool), np.zeros((2, 2, 3), np.uint8), 1.0)


def test_densities_by_hand():
  values = [-1024, -951, -950, -701, -700, -301, -300, 199, 200, 3071]
  hu = np.array(values, np.float32).reshape(1, 2, 5)
  lungs = np.ones(hu.shape, np.uint8)
  infection = hu > -702
  found = quantify.densities(hu, infection, lungs, voxel_ml=2.0)
  bands = found['bands']
  limits = {name: (band['from_hu'], band['below_hu']) for name, band in bands.items()}
  assert limits == {
    'low_attenuation': (None, -950),
    'normal': (-950, -700),
    'ground_glass': (-700, -300),
    'consolidation': (-300, None),
  }
  assert [band['lung_voxels'] for band in bands.values()] == [2, 2, 2, 4]
  assert [band['infection_voxels'] for band in bands.values()] == [0, 1, 2, 4]
  assert bands['consolidation']['lung_ml'] == 8
  assert bands['consolidation']['lung_percent'] == 40
  assert bands['ground_glass']['infection_ml'] == 4
  assert bands['ground_glass']['infected_percent'] == 20
  assert found['edges_hu'][0] == -1025 and found['edges_hu'][-1] == 200
  # Nothing below the first edge; 200 and above in the last place.
  assert (found['lung_voxels'][0], found['lung_voxels'][-1]) == (0, 2)


def test_densities_count_every_voxel_of_lung_once():
  rng = np.random.default_rng(5)
  hu = rng.uniform(-1300, 400, (11, 9, 10)).astype(np.float32)
  # On the edges and just below them, where rounding would move a voxel.
  edges = np.arange(-1025, 201, 25, dtype=np.float32)
  hu.ravel()[: len(edges)] = edges
  hu.ravel()[100 : 100 + len(edges)] = np.nextafter(edges, np.float32(-np.inf))
  lungs = rng.integers(0, 3, hu.shape, np.uint8)
  infection = rng.random(hu.shape) < 0.4
  found = quantify.densities(hu, infection, lungs, voxel_ml=0.7)
  for name, part in (('lung', lungs > 0), ('infection', (lungs > 0) & infection)):
    counts, inside = found[f'{name}_voxels'], hu[part].astype(float)
    bins = np.histogram(inside, np.array([-np.inf, *edges, np.inf]))[0]
    assert counts == bins.tolist()
    bands = [band[f'{name}_voxels'] for band in found['bands'].values()]
    assert sum(bands) == sum(counts) == np.count_nonzero(part)
  shares = quantify.quantify(infection, lungs, 0.7)
  infected = sum(band['infected_percent'] for band in found['bands'].values())
  assert infected == pytest.approx(shares['infected_percent'], abs=3e-4)


def test_densities_need_a_lung():
  with pytest.raises(ValueError, match='empty'):
    quantify.densities(np.zeros((2, 2, 3)), *np.zeros((2, 2, 2, 3), bool), 1.0)


def views(*masks):
  return dict(zip(('xy', 'yz', 'xz'), masks, strict=False))


def test_disagreement_by_hand():
  #        seen by   all  xy   xy,yz none  outside the lungs
  levels = np.array(
    [
      [255, 128, 200, 127, 255],
      [255, 0, 128, 127, 0],
      [128, 127, 0, 0, 0],
    ],
    np.uint8,
  )
  maps = views(*levels.reshape(3, 5, 1, 1))
  lungs = np.array([1, 1, 2, 2, 0], np.uint8).reshape(5, 1, 1)
  found = quantify.disagreement(maps, lungs)
  assert found == {
    'pair_dice': {'xy-yz': 0.8, 'xy-xz': 0.5, 'yz-xz': 0.6667},
    'mean_pair_dice': 0.6556,
    'disputed_percent': 50,
    'infected_percent': {'xy': 75, 'yz': 50, 'xz': 25},
    'relative_spread': 1,
    'reliable': True,
  }
  floats = {view: each / np.float32(255) for view, each in maps.items()}
  assert quantify.disagreement(floats, lungs) == found
  assert not quantify.disagreement_warnings(found)


def test_a_view_finds_what_is_above_one_half():
  half = np.full((1, 1, 2), 0.5)
  found = quantify.disagreement(views(half, half + 1e-9), np.ones((1, 1, 2)))
  assert found['infected_percent'] == {'xy': 0, 'yz': 100}


def overlapping(shared, alone, lung):
  """Two maps that share voxels and each have some alone."""
  first, second = np.zeros((2, lung, 1, 1))
  first[: shared + alone] = 1
  second[:shared] = second[shared + alone : shared + 2 * alone] = 1
  return views(first, second), np.ones((lung, 1, 1), np.uint8)


@pytest.mark.parametrize(
  ('shared', 'alone', 'lung', 'reliable'),
  [
    (10, 10, 100, True),  # A Dice of 0.5 is enough.
    (10, 11, 100, False),
    (0, 10, 1000, True),  # 1 % is too little to say.
    (0, 11, 1000, False),
    (0, 0, 100, True),
  ],
)
def test_when_views_are_not_reliable(shared, alone, lung, reliable):
  found = quantify.disagreement(*overlapping(shared, alone, lung))
  assert found['reliable'] is reliable
  told = quantify.disagreement_warnings(found)
  assert [w.kind for w in told] == [] if reliable else [WarningKind.VIEWS_DISAGREE]
  if not reliable:
    assert f'{found["disputed_percent"]:.1f} % of the lungs' in told[0].message


def test_views_that_find_nothing_agree():
  found = quantify.disagreement(*overlapping(0, 0, 10))
  assert found['pair_dice'] == {'xy-yz': 1} and found['relative_spread'] is None


def test_a_single_map_has_nobody_to_disagree_with():
  one = quantify.disagreement({'xyz': np.ones((2, 2, 2))}, np.ones((2, 2, 2)))
  assert one is None and quantify.disagreement_warnings(one) == ()


def test_disagreement_needs_a_lung():
  with pytest.raises(ValueError, match='empty'):
    quantify.disagreement(views(*np.ones((3, 2, 2, 2))), np.zeros((2, 2, 2)))
