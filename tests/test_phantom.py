import dataclasses

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial

from covid3way import base
from covid3way.phantom import (
  acquire,
  anatomy,
  cohort,
  course,
  fields,
  lesions,
  patient,
  protocols,
  trees,
)
from covid3way.simulator import histogram, parameters, population

SPACING_MM = 3.0
SCOPE = protocols.find_protocol('siemens-scope-4')


def make_healthy(seed, protocol=SCOPE):
  rng = np.random.default_rng(seed)
  return anatomy.make_anatomy(rng, protocol, spacing_mm=SPACING_MM)


@pytest.fixture(scope='module', params=[1, 2])
def healthy(request):
  return make_healthy(request.param)


def make_patient(seed, days=(0.0,), **options):
  options = {'stage': 'progressive', 'protocol': SCOPE} | options
  return list(patient.make_patient(seed, days=days, spacing_mm=SPACING_MM, **options))


@pytest.fixture(scope='module')
def serial():
  """One patient on three days."""
  return make_patient(7, days=(0.0, 1.0, 3.0))


@pytest.fixture(scope='module')
def sick(serial):
  return serial[0]


def world(mask, spacing_mm, origin_mm):
  return np.argwhere(mask) * spacing_mm + origin_mm


def draw(healthy, seed=0, share=0.1, **style):
  return lesions.draw_onset(
    np.random.default_rng(seed),
    healthy.lungs,
    healthy.susceptible(),
    share=share,
    spacing_mm=SPACING_MM,
    style=lesions.LesionStyle(**style),
  )


# Fields


@pytest.mark.parametrize('fwhm', [2.0, 9.0, 40.0])
def test_smooth_noise_has_unit_variance_and_the_asked_width(fwhm):
  rng = np.random.default_rng(0)
  noise = np.stack([fields.smooth_noise(rng, (60, 8, 8), fwhm) for _ in range(400)])
  assert abs(noise.mean()) < 0.2
  assert np.std(noise) == pytest.approx(1, abs=0.1)
  # White noise through a Gaussian of width s correlates as exp(-d^2 / 4 s^2).
  sigma = max(fwhm, 1) / fields.FWHM_PER_SIGMA
  lag = max(1, round(sigma))
  measured = np.corrcoef(noise[:, lag:].ravel(), noise[:, :-lag].ravel())[0, 1]
  assert measured == pytest.approx(np.exp(-((lag / sigma) ** 2) / 4), abs=0.1)


def test_sample_blurs_like_scipy_and_keeps_a_ramp():
  rng = np.random.default_rng(0)
  volume = rng.standard_normal((30, 25, 20)).astype(np.float32)
  weights = [
    fields.gaussian_weights(np.arange(n), n, s, norm=1)
    for n, s in zip(volume.shape, (1.0, 1.5, 2.0), strict=True)
  ]
  reference = scipy.ndimage.gaussian_filter(
    volume, (1.0, 1.5, 2.0), mode='nearest', truncate=3
  )
  np.testing.assert_allclose(fields.sample(volume, weights), reference, atol=0.01)
  targets = np.array([5.0, 7.25, 10.6])
  line = fields.gaussian_weights(targets, 30, 1.0, norm=1) @ np.arange(30.0)
  np.testing.assert_allclose(line, targets, atol=0.02)


# Trees


@pytest.mark.parametrize('radius', [0.4, 1.0, 3.0])
def test_a_stamped_tube_has_its_volume(radius):
  tube = trees.chain([(8.3, 20.1, 19.7), (51.0, 21.9, 22.4)], [radius])
  length = np.linalg.norm(tube.end - tube.start)
  field = trees.stamp(tube, (30, 20, 20), np.zeros(3), 2.0)
  volume = np.pi * radius**2 * length + 4 / 3 * np.pi * radius**3
  assert field.sum() * 8 == pytest.approx(volume, rel=0.15)


def test_trees_branch_and_taper(healthy):
  tubes = healthy.tubes
  for tree in (tubes.airways, tubes.arteries, tubes.veins):
    assert tree.generation.max() >= 5
    children = np.flatnonzero(tree.parent >= 0)
    parents = tree.parent[children]
    np.testing.assert_allclose(tree.start[children], tree.end[parents], atol=1e-9)
    forks = tree.generation[children] > tree.generation[parents]
    assert forks.sum() > 50
    assert (tree.radius_mm[children] < tree.radius_mm[parents])[forks].all()


def test_vessels_reach_all_of_the_lung(healthy):
  lung = world(healthy.lungs > 0, SPACING_MM, healthy.origin_mm)[::50]
  for tree in (healthy.tubes.arteries, healthy.tubes.veins):
    distance, _ = scipy.spatial.cKDTree(tree.end).query(lung)
    assert np.quantile(distance, 0.95) < 12


# Anatomy


def test_lungs_have_plausible_size(healthy):
  litres = [(healthy.lungs == s).sum() * SPACING_MM**3 / 1e6 for s in (1, 2)]
  left, right = litres
  assert 2.5 < left + right < 5.5
  assert 0.75 < left / right < 1
  size = np.ptp(world(healthy.lungs > 0, SPACING_MM, healthy.origin_mm), axis=0)
  assert (size > (225, 140, 200)).all()
  assert (size < (290, 210, 300)).all()


def test_lungs_lie_inside_and_apart(healthy):
  edge = healthy.lungs.copy()
  edge[2:-2, 2:-2, 2:-2] = 0
  assert not edge.any()
  for side in (1, 2):
    parts, _ = scipy.ndimage.label(healthy.lungs == side)
    assert np.bincount(parts.ravel())[1:].max() > 0.99 * (healthy.lungs == side).sum()
  grown = scipy.ndimage.binary_dilation(healthy.lungs == 1)
  assert not (grown & (healthy.lungs == 2)).any()


def test_left_is_left_and_back_is_back(healthy):
  x, y, z = world(healthy.lungs > 0, SPACING_MM, healthy.origin_mm).T
  side = healthy.lungs[healthy.lungs > 0]
  assert x[side == 1].mean() > x[side == 2].mean() + 80
  # The liver pushes the right dome up; the heart takes room from the left lung.
  inner = np.abs(np.abs(x) - 70) < 10
  low = [np.quantile(z[inner & (side == s) & (np.abs(y) < 15)], 0.01) for s in (1, 2)]
  assert low[1] > low[0]
  heart_level = np.abs(z + 45) < 5
  assert (heart_level & (side == 2)).sum() > 1.15 * (heart_level & (side == 1)).sum()

  def centroid(low_hu, high_hu, half_width):
    points = world(
      (healthy.hu > low_hu) & (healthy.hu < high_hu), SPACING_MM, healthy.origin_mm
    )
    near = (np.abs(points[:, 2] + 45) < 20) & (np.abs(points[:, 0]) < half_width)
    return points[near & (np.abs(points[:, 1]) < 100)].mean(axis=0)

  bone, soft = centroid(150, 2000, 30), centroid(20, 90, 70)
  assert bone[1] > soft[1] + 20
  assert bone[1] > 30
  assert soft[0] > bone[0] + 5


def test_airways_are_air_and_lead_into_the_lungs(healthy):
  airways = healthy.tubes.airways
  wide = airways.radius_mm > 3
  middle = ((airways.start + airways.end) / 2 - healthy.origin_mm) / SPACING_MM
  at = tuple(np.round(middle).astype(int).T)
  assert np.median(healthy.hu[at][wide]) < -800
  trunks = airways.select(airways.generation <= 1)
  drawn = trees.stamp(trunks, healthy.hu.shape, healthy.origin_mm, SPACING_MM)
  assert (healthy.lungs[drawn > 0.5] == 0).all()
  deep = tuple(i[airways.generation >= 4] for i in at)
  assert np.mean(healthy.lungs[deep] > 0) > 0.9


@pytest.mark.parametrize('row', [0, 6])
def test_parenchyma_lies_at_the_asked_level_and_is_denser_behind(row):
  protocol = protocols.PROTOCOLS[row]
  healthy = make_healthy(4, protocol)
  free = healthy.susceptible(0.99)
  assert np.median(protocol.to_signal(healthy.hu[free])) == pytest.approx(
    -0.2, abs=0.02
  )
  y = np.nonzero(free)[1]
  slope = np.polyfit(y * SPACING_MM, healthy.hu[free], 1)[0]
  assert 30 < slope * 170 < 90


# Lesions


@pytest.mark.parametrize('share', [0.003, 0.05, 0.2, 0.35])
def test_lesions_begin_sparse_within_the_share_they_will_fill(healthy, share):
  onset = draw(healthy, share=share)
  lung = (healthy.lungs > 0).sum()
  assert (onset.prior == 1).sum() >= 0.98 * share * lung
  inside = (onset.prior == 1) & healthy.susceptible()
  assert inside.sum() / lung == pytest.approx(share, rel=0.02)
  assert not (onset.infection & ~inside).any()
  assert onset.infection.sum() / inside.sum() == pytest.approx(0.5, abs=0.05)
  started = onset.signal[onset.infection]
  assert started.min() > -0.145 and started.max() < 0.145
  assert np.mean(started > 0) == pytest.approx(0.25, abs=0.05)
  assert (onset.signal[~onset.infection] == 0).all()
  assert onset.prior.min() > 0


def test_lesion_levels_in_window_units(healthy):
  rng = np.random.default_rng(0)
  infection = scipy.ndimage.binary_erosion(draw(healthy, share=0.15).prior == 1)
  infection &= healthy.susceptible()
  signal = np.where(rng.random(infection.shape) < 0.3, 0.1, -0.025).astype(np.float32)
  sick = patient.infect(healthy, infection, signal, SCOPE)
  assert set(np.unique(sick.kinds)) == {0, lesions.GGO, lesions.CONSOLIDATION}
  assert (sick.kinds[infection & (signal > 0)] == lesions.CONSOLIDATION).all()
  # Nothing but lung tissue changes.
  change = sick.hu - healthy.hu
  full = SCOPE.to_hu(signal) - healthy.parenchyma_hu
  expected = (healthy.parenchyma * full)[infection]
  np.testing.assert_allclose(change[infection], expected, atol=0.1)
  most = healthy.parenchyma * full[infection].max()
  assert (np.abs(change)[~infection] <= most[~infection] + 0.1).all()


def test_lesions_prefer_the_rim_the_back_and_the_base(healthy):
  free = healthy.susceptible()
  depth = scipy.ndimage.distance_transform_edt(healthy.lungs > 0)
  where = [np.argwhere(draw(healthy, seed, share=0.03).infection) for seed in range(12)]
  infected = np.concatenate(where)
  assert depth[tuple(infected.T)].mean() < 0.85 * depth[free].mean()
  _, y, z = infected.mean(axis=0) - np.argwhere(free).mean(axis=0)
  assert y * SPACING_MM > 8
  assert z * SPACING_MM < -4


def test_lesions_range_from_specks_to_a_third_of_a_lung(healthy):
  sizes = []
  for seed, share in ((0, 0.01), (1, 0.05), (2, 0.35)):
    region = (draw(healthy, seed, share).prior == 1) & healthy.susceptible()
    sizes.extend(np.bincount(scipy.ndimage.label(region)[0].ravel())[1:])
  litres = np.array(sizes) * SPACING_MM**3 / 1e6
  assert (litres < 4e-4).sum() > 3
  assert litres.max() > 0.15


def test_infect_with_nothing_is_the_healthy_chest(healthy):
  none = np.zeros(healthy.lungs.shape, bool)
  sick = patient.infect(healthy, none, np.zeros(none.shape, np.float32), SCOPE)
  np.testing.assert_array_equal(sick.hu, healthy.hu)
  assert not sick.kinds.any()


# Patients


def test_the_seed_decides_everything(serial, sick):
  again, (other,) = make_patient(7, days=(0.0, 1.0)), make_patient(8)
  for first, second in zip(serial, again, strict=False):
    for name in ('hu', 'infection', 'signal', 'lungs'):
      np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
  assert other.hu.shape != sick.hu.shape or (other.hu != sick.hu).mean() > 0.3
  scans = [
    acquire.acquire(sick, SCOPE, matrix=96, rng=np.random.default_rng(s)).hu
    for s in (1, 1, 2)
  ]
  np.testing.assert_array_equal(scans[0], scans[1])
  assert (scans[0] != scans[2]).mean() > 0.5


def test_the_stage_sets_the_infected_share_of_the_first_day(sick):
  low, high = patient.STAGES['progressive']
  assert low < sick.share < 1.1 * high
  assert sick.stage == 'progressive' and sick.day == 0


def test_the_disease_goes_on_in_the_same_chest_as_its_w_says(serial):
  first, second, third = serial
  assert [p.day for p in serial] == [0, 1, 3]
  free = ~(first.infection | second.infection | third.infection)
  rim = scipy.ndimage.binary_dilation(~free, iterations=2)
  # All but specks: satellites that came and went between two scans.
  assert np.mean(first.hu[~rim] != third.hu[~rim]) < 1e-4
  np.testing.assert_array_equal(first.lungs, third.lungs)
  # The population law, which knows no image, foretells the volume.
  edges = histogram.bin_edges()
  counts = np.histogram(first.signal[first.infection], edges)[0]
  for later, transitions in ((second, 100), (third, 300)):
    foretold = population.evolve(first.w, counts, transitions)
    true = np.histogram(later.signal[later.infection], edges)[0]
    assert np.sum(foretold) == pytest.approx(true.sum(), rel=0.1)
    for low, high in ((-0.15, 0), (0, 0.6)):
      part = slice(*np.searchsorted(edges, (low - 1e-6, high - 1e-6)))
      assert np.sum(foretold[part]) == pytest.approx(true[part].sum(), rel=0.15)


def test_lesions_keep_to_lung_tissue(serial):
  last = serial[-1]
  assert (last.lungs[last.infection] > 0).all()
  assert (last.signal[~last.infection] == 0).all()
  healthy = anatomy.make_anatomy(
    patient.streams(7, 'anatomy', 'severity', 'lesions')['anatomy'],
    SCOPE,
    spacing_mm=SPACING_MM,
  )
  assert not (last.infection & ~healthy.susceptible()).any()
  tubes, shape = healthy.tubes, healthy.lungs.shape
  for tree in (tubes.airways, tubes.arteries, tubes.veins):
    drawn = trees.stamp(tree, shape, healthy.origin_mm, SPACING_MM)
    inside = (drawn > 0.5) & (healthy.lungs > 0)
    assert inside.sum() > 300
    assert not last.infection[inside].any()


def test_every_patient_has_a_w_of_its_own_within_bounds():
  drawn = [course.draw_parameters(np.random.default_rng(s)) for s in range(50)]
  for w in drawn:
    parameters.check(w, subject='test')
  growth = [w.growth for w in drawn]
  assert max(growth) > 1.5 * min(growth)


def test_a_wrong_request_is_an_error(healthy):
  with pytest.raises(base.ConfigError, match='late'):
    make_patient(0, stage='late')
  for share in (0.0, 0.9):
    with pytest.raises(base.ConfigError, match='share'):
      draw(healthy, share=share)
  with pytest.raises(base.ConfigError, match='out of reach'):
    draw(dataclasses.replace(healthy, parenchyma=healthy.parenchyma / 2), share=0.5)
  with pytest.raises(base.ConfigError, match='out of reach'):
    draw(healthy, share=0.5, radius_mm=(2.5, 2.6))


def test_a_disease_that_dies_out_is_an_error():
  dying = parameters.Parameters(growth=1e-5, ggo_gain=1e-5, absorption=0.002)
  with pytest.raises(base.ConfigError, match='not reached in'):
    make_patient(0, w=dying)


# Scanners


@pytest.mark.parametrize('protocol', protocols.PROTOCOLS, ids=lambda p: p.protocol_id)
def test_acquisition_has_the_geometry_of_its_scanner(sick, protocol):
  rng = np.random.default_rng(3)
  scan = acquire.acquire(sick, protocol, matrix=96, rng=rng)
  assert (scan.hu.dtype, scan.infection.dtype, scan.lungs.dtype) == ('i2', 'u1', 'u1')
  assert scan.hu.shape == scan.infection.shape == scan.lungs.shape
  low, high = protocol.field_of_view_mm
  steps = np.diag(scan.affine)[:3]
  assert low <= steps[0] * 96 <= high
  assert steps[0] == steps[1]
  assert steps[2] == protocol.increment_mm
  height = sick.hu.shape[2] * SPACING_MM
  assert height - protocol.increment_mm < scan.hu.shape[2] * steps[2] <= height
  for name in ('infection', 'lungs'):
    there = getattr(sick, name) > 0
    here = getattr(scan, name) > 0
    expected = world(there, SPACING_MM, sick.origin_mm).mean(axis=0)
    found = np.argwhere(here).mean(axis=0) @ scan.affine[:3, :3] + scan.affine[:3, 3]
    # Both grids round their borders: within a voxel, half of it from each.
    assert (np.abs(found - expected) < (steps + SPACING_MM) / 2).all()
    assert here.sum() * steps.prod() == pytest.approx(
      there.sum() * SPACING_MM**3, rel=0.1
    )
  assert (scan.hu[:, :2] < -800).all()


@pytest.mark.parametrize('protocol', protocols.PROTOCOLS, ids=lambda p: p.protocol_id)
@pytest.mark.parametrize('matrix', [64, 256])
def test_noise_is_that_of_the_scanner(sick, protocol, matrix):
  shape = (140, 110, 12)
  plain = dataclasses.replace(
    sick,
    hu=np.full(shape, 40, np.float32),
    infection=np.zeros(shape, bool),
    lungs=np.zeros(shape, np.uint8),
  )
  rng = np.random.default_rng(0)
  scan = acquire.acquire(plain, protocol, matrix=matrix, rng=rng)
  third = matrix // 3
  middle = scan.hu[third : 2 * third, third : 2 * third, 2:-2].astype(float)
  assert middle.mean() == pytest.approx(40, abs=3)
  assert middle.std() == pytest.approx(protocol.noise_hu, rel=0.1)


def test_the_protocol_table_is_table_1():
  rows = protocols.PROTOCOLS
  assert [p.patients for p in rows] == [50, 10, 13, 7, 55, 5, 17, 3]
  assert [p.kvp for p in rows] == [120, 120, 120, 110, 120, 120, 100, 140]
  assert [p.thickness_mm for p in rows] == [1, 1, 5, 2, 1.25, 1, 1, 1]
  windows = [(p.level_hu, p.width_hu) for p in rows]
  assert windows == [
    (-600, 1600), (-600, 1600), (-600, 1200), (-600, 1200),
    (-550, 1500), (-600, 1600), (-400, 1400), (-500, 1500),
  ]  # fmt: skip
  assert {p.window_tags for p in rows} == {
    'lung',
    'mediastinal',
    'two-valued',
    'absent',
  }
  with pytest.raises(base.ConfigError, match='siemens-scope-4'):
    protocols.find_protocol('siemens-scope-5')


# Cohorts


@pytest.mark.parametrize(
  ('patients', 'early', 'progressive', 'severe'),
  [(1, 1, 0, 0), (5, 4, 1, 0), (10, 7, 2, 1), (12, 9, 2, 1), (100, 73, 19, 8)],
)
def test_stages_are_quotas(patients, early, progressive, severe):
  for seed in (0, 1):
    members = cohort.draw_cohort(seed, patients)
    stages = [m.stage for m in members]
    counts = [stages.count(s) for s in ('early', 'progressive', 'severe')]
    assert counts == [early, progressive, severe]
    assert len({m.seed for m in members}) == len({m.patient_id for m in members})
    assert len(members) == patients


def test_patients_have_one_to_five_time_points_in_order():
  members = cohort.draw_cohort(0, 50)
  counts = [len(m.days) for m in members]
  assert [counts.count(n) for n in range(1, 6)] == [10] * 5
  for member in members:
    assert member.days[0] == 0
    assert all(1 <= step <= 3 for step in np.diff(member.days))
  assert {len(m.days) for m in cohort.draw_cohort(0, 9, time_points=(3, 3))} == {3}


def test_cohorts_follow_their_seed_and_table_1():
  first = cohort.draw_cohort(0, 160)
  assert first == cohort.draw_cohort(0, 160)
  assert [m.stage for m in first] != [m.stage for m in cohort.draw_cohort(1, 160)]
  for protocol in protocols.PROTOCOLS:
    assert sum(m.protocol == protocol for m in first) == protocol.patients
