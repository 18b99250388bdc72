"""Fit and augment on small serial scans of known progression, files in, files out."""

import dataclasses
import filecmp
import importlib
import itertools
import json
import shutil

import numpy as np
import pytest
import serial_scans
from conftest import run_job
from scipy import ndimage
from serial_scans import SPACE, TRUE_W, course, lungs

from covid3way.base import (
  ConfigError,
  Grid,
  InputError,
  LeakError,
  ParameterError,
  SerialError,
)
from covid3way.jobs import cohort as jobs_cohort
from covid3way.jobs import laws, train
from covid3way.jobs.batch import SomeFailedError
from covid3way.jobs.cohort import open_cohort
from covid3way.scans import nifti, source, store
from covid3way.scans.manifest import read_manifest, write_manifest
from covid3way.simulator.parameters import BOUNDS, Bound, as_dict, from_free
from covid3way.training.slices import Masks, Slices, every, find_candidates

DAYS = {'p1': (0.0, 1.0, 3.0), 'p2': (4.5,)}
SHAPE = {'space': {'shape': SPACE.shape}}


def job(name, workdir, manifest, **changes):
  shape = {} if name == 'augment' else SHAPE
  run_job(name, workdir, input=str(manifest), **shape, **changes)


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  """The manifest of two patients, scanned three times and once."""
  return serial_scans.write_cohort(tmp_path_factory.mktemp('cohort'), **DAYS)


@pytest.fixture(scope='module')
def done(cohort, tmp_path_factory):
  """A workdir in which they were fitted and augmented."""
  workdir = tmp_path_factory.mktemp('workdir')
  job('fit', workdir, cohort)
  job('augment', workdir, cohort)
  return workdir


@pytest.fixture
def workdir(done, tmp_path_factory):
  """A copy of it, free to be damaged; beside it, for manifests have relative paths."""
  copy = tmp_path_factory.mktemp('copy')
  return shutil.copytree(done, copy, dirs_exist_ok=True)


def fitted(done, workdir):
  """A workdir as the fit job leaves it: without simulated scans."""
  simulated = shutil.ignore_patterns('*-sim-*', 'aug*')
  return shutil.copytree(done, workdir, ignore=simulated, dirs_exist_ok=True)


def fits(workdir, patient_id='p1'):
  return json.loads((workdir / 'fits' / f'{patient_id}.json').read_text())


def groups(workdir):
  """Stored scans: the real ones, and the simulated ones."""
  scans = [store.open_group(path) for path in store.list_groups(workdir / 'store')]
  kinds = {kind: [] for kind in (False, True)}
  for scan in scans:
    kinds['simulated' in scan.attributes].append(scan)
  return kinds[False], kinds[True]


def read(scan):
  return {name: volume.read().result() for name, volume in scan.volumes.items()}


# Fit.


def test_every_pair_is_fitted_and_the_first_begins_at_the_invented_start(done):
  pairs = fits(done)['pairs']
  assert [(p['from_scan'], p['to_scan'], p['transitions']) for p in pairs] == [
    (None, 'p1-1', 300),
    ('p1-1', 'p1-2', 100),
    ('p1-2', 'p1-3', 200),
  ]
  (single,) = fits(done, 'p2')['pairs']
  assert (single['from_scan'], single['to_scan']) == (None, 'p2-1')
  for pair in (*pairs, single):
    assert set(pair['W']) == set(BOUNDS)
    assert all(BOUNDS[k].low <= v <= BOUNDS[k].high for k, v in pair['W'].items())
    assert pair['seconds'] >= 0 and len(pair['history']) >= 1
    assert len(pair['predicted']) == len(pair['bin_edges']) - 1
  assert (done / 'fits' / 'p1.png').stat().st_size > 10_000
  assert {'jax', 'flax', 'numpy', 'scipy'} < set(fits(done)['versions'])


def test_histograms_are_those_of_the_infected_voxels(done):
  pairs = fits(done)['pairs']
  for number, state in enumerate(course(DAYS['p1'])):
    infected = np.asarray(state.signal)[np.asarray(state.infection)]
    got, edges = (np.array(pairs[number][k]) for k in ('observed_to', 'bin_edges'))
    assert got.sum() == pytest.approx(len(infected), rel=1e-5)
    # Storing rounds signals to float16, so compare counts below any edge.
    want = np.searchsorted(np.sort(infected), edges[1:-1])
    assert abs(np.cumsum(got)[:-1] - want).max() <= 0.02 * len(infected)
  for first, then in itertools.pairwise(pairs):
    assert then['observed_from'] == first['observed_to']


def test_the_invented_start_is_a_tenth_of_the_first_mask_at_the_threshold(done):
  pair = fits(done)['pairs'][0]
  start, edges = np.array(pair['observed_from']), np.array(pair['bin_edges'])
  n = round(0.1 * int(course(DAYS['p1'])[0].infection.sum()))
  assert start.sum() == pytest.approx(n)
  middle = (edges[:-1] + edges[1:]) / 2
  assert (start * middle).sum() / start.sum() == pytest.approx(-0.15, abs=0.001)
  assert not start[abs(middle + 0.15) > 0.0065].any()


def test_the_report_compares_forecasts_with_the_trivial_ones(done):
  report = json.loads((done / 'fit_report.json').read_text())
  kinds = {k: n['forecasts'] for k, n in report['forecasts'].items()}
  assert kinds == {'invented start': 1, 'two scans': 1}
  assert report['fitted']['pairs'] == 4
  first, second = report['rows']
  assert (first['fitted_to'], first['foretold']) == ('p1-1', 'p1-2')
  assert (second['fitted_from'], second['fitted_to']) == ('p1-1', 'p1-2')
  pair = fits(done)['pairs'][2]
  b, c = (np.array(pair[k]) for k in ('observed_from', 'observed_to'))
  scaled = b * c.sum() / b.sum()
  for name, predicted in (('copy_last', b), ('scaled', scaled)):
    expected = ((predicted - c) ** 2).sum() / (c**2).sum()
    assert second[name] == pytest.approx(expected, rel=1e-4)
  best = min(second['copy_last'], second['scaled'])
  assert second['better'] == (second['law'] < best)
  table = (done / 'fit_report.csv').read_text().splitlines()
  assert len(table) == 3 and table[0].split(',') == list(first)


def test_a_second_fit_skips_what_is_finished_and_adds_what_is_new(
  workdir, cohort, tmp_path
):
  paths = [workdir / 'fits' / f'{p}.json' for p in DAYS]
  before = [p.stat().st_mtime_ns for p in paths]
  job('fit', workdir, cohort)
  assert [p.stat().st_mtime_ns for p in paths] == before
  # A patient whose scans are others now is fitted again.
  rows = [r for r in read_manifest(cohort) if r.scan_id != 'p1-3']
  write_manifest(tmp_path / 'fewer.csv', rows)
  job('fit', workdir, tmp_path / 'fewer.csv')
  assert len(fits(workdir)['pairs']) == 2
  assert paths[1].stat().st_mtime_ns == before[1]


def test_a_scan_that_is_stored_is_not_cast_again(workdir, cohort, tmp_path):
  shutil.rmtree(workdir / 'fits')
  rows = [dataclasses.replace(r, image=tmp_path) for r in read_manifest(cohort)]
  write_manifest(tmp_path / 'elsewhere.csv', rows)
  job('fit', workdir, tmp_path / 'elsewhere.csv')
  assert len(fits(workdir)['pairs']) == 3


def of_day(number, day):
  return lambda row, n: dataclasses.replace(row, day=day) if n == number else row


def of_mask(number, change):
  """Rewrites the infection mask of a scan."""

  def damage(row, n):
    if n != number:
      return row
    state = course(DAYS['p1'])[n]
    infection = change(np.asarray(state.infection))
    return serial_scans.write_scan(
      row.image.parent, row, state.replace(infection=infection)
    )

  return damage


def only(n):
  def change(infection):
    mask = np.zeros_like(infection)
    mask.flat[np.flatnonzero(infection)[:n]] = True
    return mask

  return change


@pytest.mark.parametrize(
  'damage,words',
  [
    (of_day(1, 0.0), 'pair p1-1 -> p1-2: days 0 and 0 are equal'),
    (of_day(2, 0.5), 'pair p1-2 -> p1-3: days 1 and 0.5 are out of order'),
    (of_day(1, None), 'pair p1-1 -> p1-2: scan p1-2 has no day'),
    (of_mask(0, np.zeros_like), 'pair invented start -> p1-1: .* p1-1 is empty'),
    (of_mask(1, np.zeros_like), 'pair p1-1 -> p1-2: .* p1-2 is empty'),
    (
      of_mask(1, lambda infection: lungs() == 0),
      'pair p1-1 -> p1-2: .* of scan p1-2 lie outside the lungs',
    ),
    (of_mask(0, only(20)), 'pair invented start -> p1-1: 20 infected voxels .* least'),
  ],
)
def test_bad_series_name_patient_and_pair(damage, words, tmp_path):
  rows = serial_scans.write_patient(tmp_path, 'p1', DAYS['p1'])
  rows = [damage(row, n) for n, row in enumerate(rows)]
  write_manifest(tmp_path / 'm.csv', rows)
  with pytest.raises(SerialError, match=f'^patient p1, {words}'):
    job('fit', tmp_path / 'out', tmp_path / 'm.csv', fit={'iterations': 1})


def test_a_mask_that_was_corrected_is_fitted_once_its_group_is_removed(tmp_path):
  (row,) = serial_scans.write_patient(tmp_path, 'p1', DAYS['p1'][:1])
  manifest, out = tmp_path / 'm.csv', tmp_path / 'out'
  write_manifest(manifest, [of_mask(0, np.zeros_like)(row, 0)])
  with pytest.raises(
    SerialError, match=r'correct it.*remove p1-1\.zarr from the store'
  ):
    job('fit', out, manifest)
  write_manifest(manifest, serial_scans.write_patient(tmp_path, 'p1', DAYS['p1'][:1]))
  shutil.rmtree(out / 'store' / 'p1-1.zarr')
  job('fit', out, manifest)
  assert len(fits(out)['pairs']) == 1


def test_one_bad_patient_does_not_stop_the_others(cohort, tmp_path):
  rows = read_manifest(cohort)
  rows = [dataclasses.replace(r, day=0.0) for r in rows]
  write_manifest(tmp_path / 'm.csv', rows)
  with pytest.raises(SomeFailedError, match='1 of 2 patients failed'):
    job('fit', tmp_path / 'out', tmp_path / 'm.csv')
  failures = json.loads((tmp_path / 'out' / 'failures.json').read_text())
  assert list(failures) == ['p1'] and 'are equal' in failures['p1']
  assert len(fits(tmp_path / 'out', 'p2')['pairs']) == 1


def test_scans_without_a_mask_are_left_out_and_any_name_of_a_patient_will_do(
  cohort, tmp_path
):
  known = read_manifest(cohort)
  bare = {'infection_mask': None}
  rows = [
    dataclasses.replace(known[0], patient_id='Ward 3/no. 7'),
    dataclasses.replace(known[1], patient_id='Ward 3/no. 7', **bare),
    dataclasses.replace(known[3], **bare),
  ]
  write_manifest(tmp_path / 'm.csv', rows)
  job('fit', tmp_path / 'out', tmp_path / 'm.csv')
  (path,) = (tmp_path / 'out' / 'fits').glob('*.json')
  assert path.name.startswith('patient-') and '/' not in path.name
  (pair,) = json.loads(path.read_text())['pairs']
  assert pair['to_scan'] == 'p1-1'
  job('augment', tmp_path / 'out', tmp_path / 'm.csv')
  _, simulated = groups(tmp_path / 'out')
  assert {s.attributes['patient_id'] for s in simulated} == {'Ward 3/no. 7'}


def test_a_cohort_without_any_mask_is_told(cohort, tmp_path):
  rows = [dataclasses.replace(r, infection_mask=None) for r in read_manifest(cohort)]
  write_manifest(tmp_path / 'm.csv', rows)
  for name in ('fit', 'augment'):
    with pytest.raises(InputError, match='no scan has an infection mask'):
      job(name, tmp_path / 'out', tmp_path / 'm.csv')


def test_a_scan_that_was_cast_without_its_mask_is_told(cohort, tmp_path):
  rows = read_manifest(cohort)[3:]
  write_manifest(
    tmp_path / 'bare.csv', [dataclasses.replace(r, infection_mask=None) for r in rows]
  )
  write_manifest(tmp_path / 'm.csv', rows)
  job('preprocess', tmp_path / 'out', tmp_path / 'bare.csv')
  with pytest.raises(InputError, match=r'p2-1: .*remove .*p2-1\.zarr'):
    job('fit', tmp_path / 'out', tmp_path / 'm.csv')


# Augment.


def test_twice_as_many_simulated_scans_as_scans(done):
  real, simulated = groups(done)
  assert len(real) == 4 and len(simulated) == 8
  parents = [s.attributes['simulated']['parent_scan'] for s in simulated]
  # The invented start and the first pair begin at the first scan.
  assert {p: parents.count(p) for p in parents} == {'p1-1': 4, 'p1-2': 2, 'p2-1': 2}


def test_simulated_groups_have_the_form_of_real_ones(done):
  real, simulated = groups(done)
  plain = {s.scan_id: s for s in real}

  def form(scan):
    """Metadata of its arrays, as they lie on the disk."""
    folder = store.group_path(done / 'store', scan.scan_id)
    return {
      str(path.relative_to(folder)): path.read_text()
      for path in folder.rglob('zarr.json')
      if path.parent != folder
    }

  for scan in simulated:
    about = scan.attributes['simulated']
    parent = plain[about['parent_scan']]
    assert form(scan) == form(parent)
    assert {n: v.dtype for n, v in scan.volumes.items()} == {
      n: v.dtype for n, v in parent.volumes.items()
    }
    assert set(scan.attributes) == set(parent.attributes) | {'simulated'}
    assert scan.attributes['scan_id'] == scan.scan_id
    own = ('scan_id', 'day', 'simulated')
    for name in set(parent.attributes) - set(own):
      assert scan.attributes[name] == parent.attributes[name]


def test_provenance_is_that_of_pair_and_fit(done):
  pairs = {(p['from_scan'], p['to_scan']): p for p in fits(done)['pairs']}
  first = {None: -3.0, 'p1-1': 0.0, 'p1-2': 1.0}
  for scan in groups(done)[1]:
    about = scan.attributes['simulated']
    if scan.attributes['patient_id'] == 'p1':
      pair = pairs[about['from_scan'], about['to_scan']]
      assert about['W'] == pair['W']
      day = first[about['from_scan']] + about['transitions'] / 100
      assert scan.attributes['day'] == pytest.approx(day)
    assert about['law'] == 'covid3way.simulator.law.LAW'
    assert set(about['settings']) >= {'clustering', 'seeding', 'noise_mm'}
    assert 1 <= about['transitions'] <= 20


def test_normal_voxels_keep_their_bits_and_infection_stays_in_the_lungs(done):
  real, simulated = groups(done)
  plain = {s.scan_id: read(s) for s in real}
  for scan in simulated:
    now, before = read(scan), plain[scan.attributes['simulated']['parent_scan']]
    np.testing.assert_array_equal(now['lungs'], before['lungs'])
    assert not now['infection'][now['lungs'] == 0].any()
    assert set(np.unique(now['infection'])) == {0, 1}
    changed = now['signal'] != before['signal']
    # Born and recovered since, so no mask holds them: few in 20 transitions.
    gone = changed & (now['infection'] == 0) & (before['infection'] == 0)
    assert changed.any() and gone.sum() < 0.02 * before['infection'].sum()
    assert np.isfinite(now['signal']).all()


def test_from_the_invented_start_all_of_the_first_mask_begins_at_the_threshold(done):
  real, simulated = groups(done)
  mask = read(next(s for s in real if s.scan_id == 'p1-1'))['infection'] > 0
  invented = [
    s
    for s in simulated
    if s.attributes['simulated']['to_scan'] == 'p1-1' and s.attributes['day'] < 0
  ]
  assert len(invented) == 2
  for scan in invented:
    now = read(scan)
    infected = now['infection'] > 0
    assert infected.sum() < 0.4 * mask.sum()
    untouched = now['signal'][mask & ~infected]
    at_start = untouched == np.float16(-0.15)
    assert at_start.mean() > 0.8 and (untouched[~at_start] < -0.15).all()


def test_the_training_pipeline_reads_them_as_it_reads_real_ones(done):
  real, simulated = groups(done)
  window = tuple(slice(0, n) for n in SPACE.shape)
  masks = Masks('infection', 'lungs', window)
  how = {'offsets': (-1, 0, 1), 'spacing_mm': SPACE.spacing_mm, 'masks': masks}
  both = [(s, [find_candidates(x, masks) for x in s]) for s in (real, simulated)]
  for view in ('xy', 'yz', 'xz'):
    one, other = (
      Slices(scans, [found[view] for found in candidates], view=view, **how)
      for scans, candidates in both
    )
    assert all(len(each.foreground) for each in other.candidates)
    ours, theirs = (s.read(every(s)[:2]) for s in (other, one))
    for name, array in ours.items():
      assert (array.shape, array.dtype) == (theirs[name].shape, theirs[name].dtype)
    assert ours['labels'].any((1, 2)).all()


def test_train_opens_the_store_and_splits_it_by_patient(done):
  config = importlib.import_module('configs.train').get_config('smoke')
  config.training.validation_share = 0.5
  for seed in range(4):
    config.training.seed = seed
    cohort = open_cohort(done / 'store', config.training)
    training, validation = cohort.training, cohort.validation
    (held_out,) = {s.attributes['patient_id'] for s in validation}
    assert {s.attributes['patient_id'] for s in training} == {'p1', 'p2'} - {held_out}
    assert not any('simulated' in s.attributes for s in validation)
    assert any('simulated' in s.attributes for s in training)


def test_masks_are_looked_at_once_for_all_views(done, monkeypatch):
  looked, find = [], jobs_cohort.find_candidates
  counting = lambda scan, masks: looked.append(scan.scan_id) or find(scan, masks)  # noqa: E731
  monkeypatch.setattr(jobs_cohort, 'find_candidates', counting)
  config = importlib.import_module('configs.train').get_config('smoke')
  cohort = open_cohort(done / 'store', config.training)
  foreground = {}
  for view in ('xy', 'yz', 'xz'):
    known = cohort.samples(cohort.training, view)
    foreground[view] = known.candidates[0].foreground.tolist()
  assert sorted(looked) == sorted(scan.scan_id for scan in cohort.training)
  assert len({str(numbers) for numbers in foreground.values()}) == 3


@pytest.mark.parametrize('damage', ['patient', 'parent', 'renamed', 'parent removed'])
def test_a_store_in_which_a_patient_is_in_doubt_cannot_be_trained_on(damage, workdir):
  folder = workdir / 'store'
  path = min(folder.glob('p1-2-sim-*'))
  scan = store.open_group(path)
  attributes = json.loads(json.dumps(scan.attributes))
  volumes = {name: each.read().result() for name, each in scan.volumes.items()}
  if damage == 'patient':
    attributes['patient_id'] = 'p2'
  if damage == 'parent':
    attributes['simulated']['parent_scan'] = 'p2-1'
  store.write_group(path, volumes, attributes)
  if damage == 'renamed':
    path.rename(folder / 'p2-2.zarr')
  if damage == 'parent removed':
    shutil.rmtree(folder / 'p1-2.zarr')
  config = importlib.import_module('configs.train').get_config('smoke')
  config.input = str(folder)
  with pytest.raises(LeakError):
    train.run(config, workdir / 'model')


def same_group(one, other):
  names = sorted(str(p.relative_to(one)) for p in one.rglob('*') if p.is_file())
  equal, _, _ = filecmp.cmpfiles(one, other, names, shallow=False)
  return len(names) > 3 and sorted(equal) == names


def test_what_is_made_depends_on_the_seed_not_on_the_order_or_the_others(
  done, cohort, tmp_path
):
  """Patient p2 alone, and both in another order: the same bytes."""
  known = read_manifest(cohort)
  for name, rows in (('alone', known[3:]), ('turned', [known[3], *known[:3]])):
    manifest = tmp_path / f'{name}.csv'
    write_manifest(manifest, rows)
    workdir = fitted(done, tmp_path / name)
    job('augment', workdir, manifest)
    made = sorted((workdir / 'store').glob('*-sim-*'))
    assert len(made) == (2 if name == 'alone' else 8)
    for path in made:
      assert same_group(path, done / 'store' / path.name), path.name
  fitted(done, tmp_path / 'other')
  job('augment', tmp_path / 'other', tmp_path / 'alone.csv', augmentation={'seed': 1})
  other = {p.name for p in (tmp_path / 'other' / 'store').glob('*-sim-*')}
  assert other != {p.name for p in (tmp_path / 'alone' / 'store').glob('*-sim-*')}


def test_a_second_run_makes_only_what_is_missing_and_makes_it_the_same(
  workdir, done, cohort
):
  made = sorted((workdir / 'store').glob('p1-2-sim-*'))
  shutil.rmtree(made[1])  # The later one: it goes on from a state that is not stored.
  kept = (made[0] / 'zarr.json').stat().st_mtime_ns
  job('augment', workdir, cohort)
  assert (made[0] / 'zarr.json').stat().st_mtime_ns == kept
  assert same_group(made[1], done / 'store' / made[1].name)


def test_what_a_killed_run_left_is_not_taken_for_a_scan(workdir, cohort):
  """It wrote aside, and whether its last file was whole nobody knows."""
  before = (workdir / 'augmented.csv').read_text()
  made = min((workdir / 'store').glob('p1-2-sim-*'))
  aside = made.with_name(f'.1.partial.{made.name}')
  shutil.copytree(made, aside)
  shutil.rmtree(made)
  job('augment', workdir, cohort)
  assert (workdir / 'augmented.csv').read_text() == before
  assert aside not in store.list_groups(workdir / 'store') and made.exists()


@pytest.mark.parametrize('ratio,count', [(0, 0), (1, 4), (4, 16)])
def test_the_ratio_is_scans_per_scan(ratio, count, done, cohort, tmp_path):
  fitted(done, tmp_path)
  job('augment', tmp_path, cohort, augmentation={'ratio': float(ratio)})
  assert len(list((tmp_path / 'store').glob('*-sim-*'))) == count
  assert len(read_manifest(tmp_path / 'augmented.csv')) == 4 + count


def test_later_begins_at_the_later_scan_of_each_pair(done, cohort, tmp_path):
  fitted(done, tmp_path)
  job('augment', tmp_path, cohort, augmentation={'begin': 'later'})
  simulated = groups(tmp_path)[1]
  assert len(simulated) == 8
  days = {'p1-1': 0.0, 'p1-2': 1.0, 'p1-3': 3.0, 'p2-1': 4.5}
  for scan in simulated:
    about = scan.attributes['simulated']
    assert about['parent_scan'] == about['to_scan']
    day = days[about['to_scan']] + about['transitions'] / 100
    assert scan.attributes['day'] == pytest.approx(day)


def born(workdir):
  """Per simulated scan that runs on from a real one, (x, y, z) bool: new infection."""
  real, simulated = groups(workdir)
  before = {s.scan_id: read(s)['infection'] > 0 for s in real}
  for scan in simulated:
    about = scan.attributes['simulated']
    if about['from_scan']:
      yield (read(scan)['infection'] > 0) & ~before[about['parent_scan']]


def test_with_a_rim_new_infection_is_nearer_to_the_pleura(done, cohort, tmp_path):
  fitted(done, tmp_path)
  location = {'rim_mm': 8.0, 'posterior': 1.0, 'basal': 1.0}
  job('augment', tmp_path, cohort, simulator=location)
  depth_mm = ndimage.distance_transform_edt(lungs(), SPACE.spacing_mm)
  even, rim = (
    np.concatenate([depth_mm[mask] for mask in born(workdir)])
    for workdir in (done, tmp_path)
  )
  assert min(len(even), len(rim)) > 50
  assert rim.mean() < 0.75 * even.mean()
  for scan in groups(tmp_path)[1]:
    assert location.items() <= scan.attributes['simulated']['settings'].items()


def test_a_susceptible_mask_is_obeyed_and_kept(done, tmp_path):
  """New infection only in front, where without the mask it is at the back, too."""
  (tmp_path / 'scans').mkdir()
  given = np.ones(SPACE.shape, bool) & (np.arange(SPACE.shape[1])[:, None] < 15)
  allowed = given & (lungs() > 0)  # A mask that strays out of the lungs is cut.
  path = tmp_path / 'scans' / 'susceptible.nii.gz'
  grid = Grid(SPACE.shape, np.diag([*SPACE.spacing_mm, 1.0]))
  nifti.write_volume(path, given, grid, dtype=np.uint8)
  rows = serial_scans.write_patient(tmp_path / 'scans', 'p1', DAYS['p1'])
  rows = [dataclasses.replace(row, susceptible_mask=path) for row in rows]
  manifest = tmp_path / 'scans' / 'manifest.csv'
  write_manifest(manifest, rows)
  job('preprocess', tmp_path, manifest)
  shutil.copytree(done / 'fits', tmp_path / 'fits')
  job('augment', tmp_path, manifest)
  assert sum((mask & ~allowed).sum() for mask in born(done)) > 50
  new = list(born(tmp_path))
  assert sum(mask.sum() for mask in new) > 50
  assert not any((mask & ~allowed).any() for mask in new)
  for scan in groups(tmp_path)[1]:
    np.testing.assert_array_equal(read(scan)['susceptible'] > 0, given)


def test_the_manifest_goes_on_with_the_simulated_scans(done, cohort):
  rows = read_manifest(done / 'augmented.csv')
  simulated = [r for r in rows if r.is_simulated]
  assert [r.scan_id for r in rows[:4]] == [r.scan_id for r in read_manifest(cohort)]
  assert rows[4:] == tuple(simulated) and len(simulated) == 8
  for row in simulated:
    stored = store.open_group(row.image)
    for field in ('patient_id', 'scan_id', 'day', 'stage', 'scanner', 'site'):
      assert getattr(row, field) == stored.attributes[field]
    with pytest.raises(InputError, match=rf'^{row.scan_id}: .*train'):
      source.read_scan(row)


def test_the_augmented_manifest_can_be_given_to_every_job_of_the_workdir(workdir):
  before = sorted(workdir.rglob('*'))
  for name in ('preprocess', 'fit', 'augment'):
    job(name, workdir, workdir / 'augmented.csv')
  assert sorted(workdir.rglob('*')) == before


def with_w(workdir, **changes):
  """Changes W of the pair p1-1 -> p1-2 in the fits."""
  path = workdir / 'fits' / 'p1.json'
  known = json.loads(path.read_text())
  known['pairs'][1]['W'] |= changes
  del known['checksum']  # As a user does who means it.
  path.write_text(json.dumps(known))


@pytest.mark.parametrize(
  'changes,words',
  [
    ({'growth': float('nan')}, 'growth = nan'),
    ({'absorption': float('inf')}, 'absorption = inf'),
    ({'noise': 1.0}, 'noise = 1; use a number from 0.0007 to 0.012'),
    ({'noise': 'much'}, "noise = 'much'"),
    ({'nose': 0.001}, 'nose.*run fit again'),
  ],
)
def test_a_w_that_cannot_be_names_patient_and_pair(
  changes, words, workdir, cohort, tmp_path
):
  with_w(workdir, **changes)
  write_manifest(tmp_path / 'p1.csv', read_manifest(cohort)[:3])
  with pytest.raises(
    ParameterError, match=f'^patient p1, pair p1-1 -> p1-2: .*{words}'
  ):
    job('augment', workdir, tmp_path / 'p1.csv')


def test_simulated_scans_of_another_w_are_not_taken_for_finished(
  workdir, cohort, tmp_path
):
  with_w(workdir, growth=0.001)
  write_manifest(tmp_path / 'p1.csv', read_manifest(cohort)[:3])
  with pytest.raises(ConfigError, match=r'^p1-1-sim-03.*another W.*remove'):
    job('augment', workdir, tmp_path / 'p1.csv')


def test_augment_without_the_fits_of_these_pairs_says_so(workdir, cohort, tmp_path):
  fewer = tmp_path / 'fewer.csv'
  write_manifest(fewer, read_manifest(cohort)[:2])
  with pytest.raises(SerialError, match=r'patient p1: .*other pairs.*run the fit job'):
    job('augment', workdir, fewer)
  (workdir / 'fits' / 'p1.json').unlink()
  with pytest.raises(SerialError, match=r'patient p1: no fits .*run the fit job'):
    job('augment', workdir, fewer)


@pytest.mark.parametrize(
  'changes,field',
  [
    ({'augmentation': {'ratio': -1.0}}, 'augmentation.ratio'),
    ({'augmentation': {'ratio': 201.0}}, 'augmentation.ratio'),
    ({'augmentation': {'ratio': float('nan')}}, 'augmentation.ratio'),
    ({'augmentation': {'steps': 0}}, 'augmentation.steps'),
    ({'augmentation': {'begin': 'now'}}, 'augmentation.begin'),
    ({'simulator': {'seeding': 1.5}}, 'simulator.seeding'),
    ({'simulator': {'clustering': -0.1}}, 'simulator.clustering'),
    ({'simulator': {'clustering': float('inf')}}, 'simulator.clustering'),
    ({'simulator': {'rim_mm': -1.0}}, 'simulator.rim_mm'),
    ({'simulator': {'posterior': 0.0}}, 'simulator.posterior'),
    ({'simulator': {'basal': float('nan')}}, 'simulator.basal'),
    ({'simulator': {'law': 'no.such.LAW'}}, 'simulator.law'),
  ],
)
def test_settings_that_cannot_be_are_named(changes, field, cohort, tmp_path):
  with pytest.raises(ConfigError, match=rf'^config\.{field}: '):
    job('augment', tmp_path, cohort, **changes)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'dotted,words',
  [
    ('', 'Empty module name'),
    ('LAW', 'Empty module name'),
    ('covid3way.simulator.laws.LAW', 'No module named'),
    ('covid3way.simulator.law.LAWS', "no attribute 'LAWS'"),
    ('covid3way.simulator.law.drift', 'is a function'),
    ('test_fit_augment.UNBOUND', 'no bound for noise'),
    ('test_fit_augment.AT_BOUND', 'growth = 0.004 with'),
    ('test_fit_augment.LOG_0', 'growth = 0.004 with'),
    ('test_fit_augment.SILENT', 'noise with .* use low >= 0.0007'),
  ],
)
def test_a_law_that_is_none_is_told(dotted, words):
  with pytest.raises(ConfigError, match=words):
    laws.load_law(dotted)


UNBOUND = dataclasses.replace(
  laws.load_law('covid3way.simulator.law.LAW'),
  bounds={k: v for k, v in BOUNDS.items() if k != 'noise'},
)


AT_BOUND = dataclasses.replace(
  UNBOUND, bounds=dict(BOUNDS) | {'growth': Bound(0.004, 0.05)}
)
SILENT = dataclasses.replace(
  UNBOUND, bounds=dict(BOUNDS) | {'noise': Bound(1e-5, 0.01)}
)
LOG_0 = dataclasses.replace(UNBOUND, bounds=dict(BOUNDS) | {'growth': Bound(0.0, 0.05)})


@pytest.mark.parametrize('text', ['LAW = (', 'LAW = law.Law()', '1 / 0'])
def test_a_study_whose_file_is_broken_is_told_in_one_line(text, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'broken_study.py').write_text(text)
  with pytest.raises(ConfigError, match=r"'broken_study\.LAW': \w+Error: "):
    laws.load_law('broken_study.LAW')


@pytest.mark.parametrize(
  'field,wrong',
  [('iterations', 0), ('patience', 0), ('restarts', -1), ('tolerance', float('nan'))],
)
def test_a_search_that_cannot_be_is_named(field, wrong, cohort, tmp_path):
  with pytest.raises(ConfigError, match=rf'^config\.fit\.{field}: '):
    job('fit', tmp_path, cohort, fit={field: wrong})


@pytest.mark.parametrize('far', [-40.0, 40.0])
def test_a_fit_that_ends_at_its_bounds_can_be_simulated(far):
  law = laws.load_law('covid3way.simulator.law.LAW')
  w = from_free(np.full(len(BOUNDS), far, np.float32))
  laws.parameters_of(as_dict(w), law, subject='p')


def test_w_comes_back_from_json():
  law = laws.load_law('covid3way.simulator.law.LAW')
  values = json.loads(json.dumps(as_dict(TRUE_W)))
  w = laws.parameters_of(values, law, subject='p')
  assert as_dict(w) == pytest.approx(as_dict(TRUE_W))
