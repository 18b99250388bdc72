"""A cross-validation of two methods: complete, honest, resumable, and leaks stop it."""

import csv
import dataclasses
import json
import os
import shutil
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import serial_scans
from conftest import CACHE, finish, run_job, start_program
from scipy import ndimage

from configs import crossval as crossval_config
from covid3way.base import ConfigError, InputError, LeakError
from covid3way.evaluation import metrics, results
from covid3way.jobs import runs, testing
from covid3way.jobs.batch import Shard, SomeFailedError
from covid3way.jobs.runs import Run, Task
from covid3way.jobs.workers import Workers
from covid3way.scans import nifti, store
from covid3way.scans.manifest import read_manifest, write_manifest
from covid3way.segmentation.model import read_model

RUNS = ('three_way-200', 'three_way-200-xy', 'unet_3d-200')
COHORT = {'a': (0.0, 1.0), 'b': (0.0,), 'c': (0.0,), 'd': (0.0,)}
SCANS = {'a-1', 'a-2', 'b-1', 'c-1', 'd-1'}


@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
  return serial_scans.write_cohort(tmp_path_factory.mktemp('cohort'), **COHORT)


@pytest.fixture(scope='module')
def study(manifest, tmp_path_factory):
  """The workdir of the smoke variant, run as it is: each training in its process."""
  workdir = tmp_path_factory.mktemp('study')
  with pytest.MonkeyPatch.context() as patch:
    for name, value in CACHE.items():
      patch.setenv(name, value)
    run_job('crossval', workdir, input=str(manifest))
  return workdir


@pytest.fixture
def copy(study, tmp_path):
  return shutil.copytree(study, tmp_path / 'copy')


@pytest.fixture
def inline(monkeypatch):
  """All is done in this process, for tests that look at what is done."""

  def begin(self, call, *given):
    future = Future()
    try:
      future.set_result(call(*given))
    except Exception as error:
      future.set_exception(error)
    return future

  monkeypatch.setattr(Workers, 'begin', begin)


@pytest.fixture
def begun(inline, monkeypatch):
  """Trainings that would begin: (run, fold, tested rows, store); none does."""
  asked = []

  def do(task, fold, settings, workdir, rows):
    stored = runs.store_folder(workdir, task.training)
    asked.append((task.training.name, fold, rows, stored))

  monkeypatch.setattr(runs, 'do', do)
  return asked


def table(path):
  return results.read_rows(path / 'results.csv', results.RESULTS)


def split_of(workdir, run, fold):
  return json.loads((workdir / 'runs' / run / f'fold{fold}' / 'split.json').read_text())


def test_every_run_fold_scan_and_evaluation_has_a_row(study):
  folds = json.loads((study / 'splits_final.json').read_text())
  wanted = [
    (run, k, scan, kind)
    for run in RUNS
    for k in range(2)
    for scan in folds[k]['val']
    for kind in results.EVALUATIONS
  ]
  rows = table(study)
  got = [(r['run'], r['fold'], r['scan_id'], r['evaluation']) for r in rows]
  assert sorted(got) == sorted(wanted) and len(wanted) == 3 * 5 * 3
  assert {row['status'] for row in rows} == {'ok'}
  assert {r['patient_id'] == r['scan_id'][0] for r in rows} == {True}
  costs = results.read_rows(study / 'costs.csv', results.COSTS)
  assert [(r['run'], r['fold']) for r in costs] == [
    (r, k) for r in RUNS for k in (0, 1)
  ]
  for row in costs:
    model = read_model(study / 'runs' / row['run'] / f'fold{row["fold"]:g}' / 'model')
    assert row['parameters'] == model.parameters
    assert row['threshold'] == model.aggregator.threshold
    assert row['training_s'] > 0 and row['prediction_s'] > 0 and row['peak_gib'] > 0.1


def test_figures_are_those_of_the_masks_that_were_written(study, manifest):
  known = {row.scan_id: row for row in read_manifest(manifest)}
  seen = set()
  for row in table(study):
    folder = study / 'runs' / row['run'] / f'fold{row["fold"]:g}' / 'predictions'
    path, about = folder / f'{row["scan_id"]}.nii.gz', known[row['scan_id']]
    predicted, grid = nifti.read_volume(path, scan_id='test')
    reference, lungs = (
      nifti.read_mask(p, grid, scan_id='test') > 0
      for p in (about.infection_mask, about.lung_mask)
    )
    masks, spacing_mm = [reference, predicted > 0], grid.spacing_mm
    assert not masks[1][~lungs].any()
    if row['evaluation'] == 'dilated':
      masks = [ndimage.binary_dilation(m, np.ones((3, 3, 3))) for m in masks]
    if row['evaluation'] == 'standard':
      given, own = (
        store.open_group(store.group_path(f, row['scan_id']))
        for f in (study / 'store', folder)
      )
      masks = [each.volumes['infection'].read().result() > 0 for each in (given, own)]
      spacing_mm = serial_scans.SPACE.spacing_mm
    overlap, size = (masks[0] & masks[1]).sum(), masks[0].sum() + masks[1].sum()
    assert row['dice'] == pytest.approx(2 * overlap / size, rel=1e-12)
    wanted = metrics.scan_metrics(*masks, lungs, spacing_mm)
    assert {m: row[m] for m in results.METRICS} == pytest.approx(wanted, nan_ok=True)
    seen.add(row['dice'])
  assert len(seen) > 10  # Not the same for all.


def test_the_chosen_aggregator_is_among_those_whose_dice_is_told(study):
  tried = results.read_rows(study / 'aggregators.csv', results.AGGREGATORS)
  assert len(tried) > len(RUNS) * len(SCANS)
  found = {(r['run'], r['scan_id'], r['aggregator']): r['dice'] for r in tried}
  for row in table(study):
    if row['evaluation'] == 'standard':
      chosen = found[row['run'], row['scan_id'], 'sum']
      assert row['dice'] == pytest.approx(chosen, rel=1e-12)


def test_folds_are_of_nnunets_form_and_the_same_for_all_methods(study):
  folds = json.loads((study / 'splits_final.json').read_text())
  assert len(folds) == 2 and {tuple(fold) for fold in folds} == {('train', 'val')}
  assert sorted(folds[0]['val'] + folds[1]['val']) == sorted(SCANS)
  for k, fold in enumerate(folds):
    split = split_of(study, 'three_way-200', k)
    assert split == split_of(study, 'unet_3d-200', k)
    assert split['test'] == fold['val']
    real = [scan for scan in split['training'] if '-sim-' not in scan]
    assert sorted(real + split['validation']) == sorted(fold['train'])
    patients = [{scan[0] for scan in split[side]} for side in split]
    assert all(patients) and sum(map(len, patients)) == len(set.union(*patients)) == 4
    assert len(split['training']) == 3 * len(real)  # Two simulated ones for each.


def test_a_second_run_trains_nothing_and_tells_the_same(
  study, manifest, inline, monkeypatch
):
  def content():
    return {
      p: (p.stat().st_mtime_ns, p.read_bytes())
      for p in (study / 'runs').rglob('*')
      if p.is_file()
    }

  before, told = content(), (study / 'results.csv').read_bytes()
  (study / 'results.csv').unlink()
  monkeypatch.setattr(runs, 'do', lambda *_: pytest.fail('a training begins'))
  run_job('crossval', study, input=str(manifest))
  assert content() == before and len(before) > 100
  assert (study / 'results.csv').read_bytes() == told


def without_costs(folder):
  return [(folder / f'{name}.csv').read_text() for name in ('results', 'aggregators')]


def test_shards_and_a_gathering_make_again_what_was_removed_and_it_is_the_same(
  study, copy, manifest, inline
):
  """And what was only tested is tested again, without training."""
  given = {'input': str(manifest), 'crossval': {'methods': ('unet_3d',)}}
  shutil.rmtree(copy / 'runs' / 'unet_3d-200')
  again = copy / 'runs' / 'three_way-200-xy' / 'fold1'
  (again / 'scans.csv').unlink()
  trained = (again / 'model' / 'model.json').stat().st_mtime_ns
  for path in copy.glob('*.csv'):
    path.unlink()
  for number in (1, 0):
    run_job('crossval', copy, shard=Shard(number, 2), **given)
    assert (copy / 'runs' / 'unet_3d-200' / f'fold{number}' / 'scans.csv').exists()
    assert not (copy / 'results.csv').exists()
  run_job('crossval', copy, **given)
  kept = {(row['run'], row['fold']) for row in table(copy)}
  assert kept == {(run, k) for run in RUNS for k in (0, 1)} - {('three_way-200-xy', 1)}
  run_job('crossval', copy, input=str(manifest))  # With the other method, too.
  assert without_costs(copy) == without_costs(study)
  assert (again / 'model' / 'model.json').stat().st_mtime_ns == trained


def test_a_run_that_failed_has_rows_that_say_so_and_no_numbers(
  copy, manifest, inline, monkeypatch
):
  for run in ('three_way-200', 'three_way-200-xy'):
    shutil.rmtree(copy / 'runs' / run / 'fold1')

  def broken(*_):
    raise MemoryError('no memory is left')

  monkeypatch.setattr(runs, 'do', broken)
  with pytest.raises(SomeFailedError, match='1 of 4 runs failed, see '):
    run_job('crossval', copy, input=str(manifest))
  failures = json.loads((copy / 'failures.json').read_text())
  (told,) = failures.items()
  assert told[0] == 'three_way-200, fold 1' and 'no memory is left' in told[1]
  with (copy / 'results.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 45
  lost = [r for r in rows if r['run'].startswith('three_way') and r['fold'] == '1']
  assert lost and {row['status'] for row in lost} == {'not run'}
  assert {row[name] for row in lost for name in results.METRICS} == {''}
  assert {row['status'] for row in rows if row not in lost} == {'ok'}


def test_a_scan_that_cannot_be_cast_trains_nobody_and_the_others_go_on(
  manifest, tmp_path, begun
):
  rows = list(read_manifest(manifest))
  (tmp_path / 'cut.nii.gz').write_bytes(rows[2].image.read_bytes()[:5000])
  rows[2] = dataclasses.replace(rows[2], image=tmp_path / 'cut.nii.gz')
  write_manifest(tmp_path / 'manifest.csv', rows)
  workdir = tmp_path / 'out'
  changes = {'ratios': (0.0,), 'methods': ('three_way',), 'folds': 4}
  given = {'input': str(tmp_path / 'manifest.csv'), 'crossval': changes}
  run_job('crossval', workdir, **given)
  report = json.loads((workdir / 'failures-preprocess.json').read_text())
  assert list(report) == ['b-1']
  sides = [split_of(workdir, 'three_way-0', k) for k in range(4)]
  assert not any('b-1' in scans for split in sides for scans in split.values())
  assert sum('b-1' in tested for _, _, tested, _ in begun) == 1  # For its row.


def test_a_tested_scan_that_was_not_cast_has_rows_that_say_so(copy, manifest):
  folder = copy / 'runs' / 'unet_3d-200' / 'fold0'
  split = split_of(copy, 'unet_3d-200', 0)
  lost, *others = split['test']
  for path in (copy / 'store').glob(f'{lost}*.zarr'):
    shutil.rmtree(path)
  (folder / 'split.json').write_text(json.dumps(split | {'test': others}))
  (folder / 'scans.csv').unlink()
  rows = {r.scan_id: r for r in read_manifest(manifest) if r.scan_id in split['test']}
  task, config = Run('unet_3d', 2.0), crossval_config.get_config('smoke')
  runs.do(Task(task, (task,)), 0, config.to_dict(), copy, rows)
  with (folder / 'scans.csv').open() as file:
    found = {(row['scan_id'], row['evaluation']): row for row in csv.DictReader(file)}
  assert len(found) == 3 * len(rows)
  for (scan_id, _), row in found.items():
    if scan_id == lost:
      assert row['status'] == 'not cast: see failures-preprocess.json'
      assert {row[name] for name in results.METRICS} == {''}
    else:
      assert row['status'] == 'ok' and float(row['dice']) > 0


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'methods': ('unet_4d',)}, r"methods: \['unet_4d'\]; use some of three_way, un"),
    ({'ablations': ('zy',)}, r"ablations: \['zy'\]; use some of padded, unaugmented"),
    ({'ratios': (2.0, -0.5)}, r'-0\.5\); give one or more, ratios 0 or more'),
    ({'ratios': ()}, 'give one or more'),
    ({'methods': ()}, 'give one or more'),
    ({'by': 'hospital'}, r"by: 'hospital'; use one of patient, site, scanner"),
    ({'by': 'site'}, r"by: 'site', but the manifest does not give that"),
    ({'folds': 5}, '5 of 4 patients'),
  ],
)
def test_what_cannot_be_is_named_before_anything_is_written(
  changes, words, manifest, tmp_path, begun
):
  with pytest.raises(ConfigError, match=words):
    run_job('crossval', tmp_path, input=str(manifest), crossval=changes)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'training': {'epochs': 9}}, 'training differ'),
    ({'crossval': {'seed': 1}}, 'seed differ'),
    ({'crossval': {'folds': 4}}, 'folds differ'),
    ({'crossval': {'settings': {'unet_3d': {'epochs': 9}}}}, 'settings differ'),
  ],
)
def test_other_settings_are_refused_in_the_same_workdir(
  changes, words, study, manifest, begun
):
  with pytest.raises(ConfigError, match=rf'{words} from the earlier crossval run'):
    run_job('crossval', study, input=str(manifest), **changes)
  assert not begun


def test_methods_ratios_and_ablations_may_be_added_later(copy, manifest, begun):
  changes = {
    'methods': ('three_way', 'unet_3d', 'unet_2d'),
    'ratios': (2.0, 0.5),
    'ablations': ('unaugmented', 'offsets_2', 'xy', 'xz'),
  }
  run_job('crossval', copy, input=str(manifest), crossval=changes)
  # The single view xz is tested with the networks that there are.
  added = [f'{method}-{r}' for method in changes['methods'] for r in ('200', '50')]
  added += ['three_way-0', 'three_way-200-offsets_2']
  added.remove('unet_3d-200')
  assert sorted({run for run, *_ in begun}) == sorted(added)
  none, some, all_ = (
    set(split_of(copy, f'three_way-{r}', 0)['training']) for r in ('0', '50', '200')
  )
  assert none <= some < all_ and not any('-sim-' in scan for scan in none)
  missing = {r['run'] for r in table(copy) if r['status'] == 'not run'}
  assert missing == set(added) - {'three_way-200'} | {'three_way-200-xz'}


def test_without_normalisation_scans_are_padded_into_a_store_of_their_own(
  manifest, tmp_path, begun
):
  spacing_mm = (12.0, 11.0, 10.0)
  changes = {'ablations': ('padded',), 'padded_mm': spacing_mm, 'ratios': (0.0,)}
  prepared = changes | {'prepare_only': True}
  run_job('crossval', tmp_path, input=str(manifest), crossval=prepared)
  assert not begun and not (tmp_path / 'results.csv').exists()
  given = {'input': str(manifest), 'crossval': changes}
  run_job('crossval', tmp_path, shard=Shard(1, 2), **given)  # It finds what it needs.
  assert len(begun) == 3
  run_job('crossval', tmp_path, shard=Shard(0, 2), **given)
  own = {run: folder for run, _, _, folder in begun}
  assert set(own) == {'three_way-0', 'three_way-0-padded', 'unet_3d-0'}
  stores = {run: folder.relative_to(tmp_path) for run, folder in own.items()}
  assert stores.pop('three_way-0-padded') == Path('padded/store')
  assert set(stores.values()) == {Path('store')}
  plain, padded = (
    store.open_group(store.group_path(own[run], 'b-1'))
    for run in ('three_way-0', 'three_way-0-padded')
  )
  assert tuple(padded.attributes['placement']['own_spacing_mm']) == spacing_mm
  known = plain.attributes['placement']['own_spacing_mm']
  assert known == pytest.approx(serial_scans.SPACE.spacing_mm)
  assert padded.attributes['window']['source'] == 'none: not normalised'
  assert split_of(tmp_path, 'three_way-0', 0) == split_of(
    tmp_path, 'three_way-0-padded', 0
  )


def given_splits(workdir, manifest, folds, **inputs):
  """A job on folds that somebody else made; without simulated scans, for speed."""
  path = workdir.parent / 'given.json'
  path.write_text(json.dumps(folds))
  changes = {'splits': str(path), 'ratios': (0.0,), 'methods': ('unet_3d',)}
  given = {'input': str(manifest), 'crossval': changes} | inputs
  run_job('crossval', workdir, **given)


def test_folds_of_nnunet_are_taken_as_they_are(manifest, tmp_path, begun):
  folds = [
    {'train': ['a-1', 'b-1', 'c-1'], 'val': ['d-1']},
    {'train': ['d-1', 'b-1', 'c-1'], 'val': ['a-2']},
    {'train': ['a-2', 'd-1'], 'val': ['b-1', 'c-1']},
  ]
  given_splits(tmp_path / 'out', manifest, folds)
  assert json.loads((tmp_path / 'out' / 'splits_final.json').read_text()) == folds
  assert [(k, list(tested)) for _, k, tested, _ in begun] == [
    (k, fold['val']) for k, fold in enumerate(folds)
  ]
  for k, fold in enumerate(folds):
    split = split_of(tmp_path / 'out', 'unet_3d-0', k)
    assert sorted(split['training'] + split['validation']) == sorted(fold['train'])


@pytest.mark.parametrize(
  ('folds', 'error', 'words'),
  [
    ([{'train': ['a-1', 'b-1'], 'val': ['a-2']}], LeakError, 'patients a train and va'),
    ([{'train': ['b-1', 'x-1'], 'val': ['a-2']}], InputError, 'unknown cases x-1'),
    ([{'train': ['a-1', 'b-1']}], InputError, 'fold 0 has not just train and val'),
  ],
)
def test_given_folds_that_leak_or_are_none_stop_it(
  folds, error, words, manifest, tmp_path, begun
):
  with pytest.raises(error, match=words):
    given_splits(tmp_path / 'out', manifest, folds)
  assert not begun and not (tmp_path / 'out').exists()


# Leaks, planted.


@pytest.mark.parametrize('taken', [False, True])
@pytest.mark.parametrize('side', ['training', 'validation'])
def test_a_tested_scan_among_those_that_train_or_validate_stops_it(
  side, taken, copy, manifest, begun
):
  folder = copy / 'runs' / 'unet_3d-200' / 'fold1'
  split = split_of(copy, 'unet_3d-200', 1)
  shutil.rmtree(folder)
  folder.mkdir()
  split[side].append(split['test'].pop() if taken else split['test'][0])
  (folder / 'split.json').write_text(json.dumps(split))
  with pytest.raises(LeakError, match=f'{side} and test: the same patients'):
    run_job('crossval', copy, input=str(manifest))
  assert not begun


def test_a_simulated_scan_of_a_tested_patient_stops_it(copy, manifest, begun):
  folder = copy / 'runs' / 'unet_3d-200' / 'fold0'
  split = split_of(copy, 'unet_3d-200', 0)
  shutil.rmtree(folder)
  folder.mkdir()
  tested = split['test'][0]
  split['training'].append(next((copy / 'store').glob(f'{tested}-sim-*')).stem)
  (folder / 'split.json').write_text(json.dumps(split))
  with pytest.raises(LeakError, match='training and test: the same patients'):
    run_job('crossval', copy, input=str(manifest))
  assert not begun


def test_a_copy_of_a_tested_scan_under_other_names_stops_it(manifest, tmp_path, begun):
  rows = read_manifest(manifest)
  original = next(row for row in rows if row.scan_id == 'b-1')
  image = shutil.copy(original.image, tmp_path / 'e.nii.gz')
  twin = dataclasses.replace(original, patient_id='e', scan_id='e-1', image=image)
  write_manifest(tmp_path / 'manifest.csv', [*rows, twin])
  folds = [{'train': ['a-1', 'e-1', 'c-1'], 'val': ['b-1']}]
  with pytest.raises(LeakError, match='the same voxels on both sides'):
    given_splits(tmp_path / 'out', tmp_path / 'manifest.csv', folds)
  assert not begun
  # Not of names, but of what they name: without the twin it goes on.
  folds = [{'train': ['a-1', 'c-1', 'd-1'], 'val': ['b-1']}]
  given_splits(tmp_path / 'other', tmp_path / 'manifest.csv', folds)
  assert len(begun) == 1


def test_a_model_predicts_nobody_whom_it_saw(study, manifest):
  known = {row.scan_id: row for row in read_manifest(manifest)}
  split = split_of(study, 'three_way-200', 0)
  model = read_model(study / 'runs' / 'three_way-200' / 'fold0' / 'model')

  def predict(model, scan_id):
    scan = store.open_group(store.group_path(study / 'store', scan_id))
    return testing.predict(model, scan, known[scan_id], batch_size=4)

  tested = split['test'][0]
  assert predict(model, tested).native.shape == serial_scans.SPACE.shape
  for scan_id in ('a-1', 'd-1'):
    assert scan_id in split['training'] + split['validation']
    with pytest.raises(LeakError, match=f'{scan_id} and the model: the same patients'):
      predict(model, scan_id)
  planted = {'patients': [*model.saw['patients'], tested[0]]}
  with pytest.raises(LeakError, match=f'on both sides: {tested[0]}; put'):
    predict(dataclasses.replace(model, saw=planted), tested)
  voxels = store.open_group(store.group_path(study / 'store', tested)).attributes
  planted = {'voxels': [voxels['voxels_sha256']]}
  with pytest.raises(LeakError, match='the same voxels on both sides'):
    predict(dataclasses.replace(model, saw=planted), tested)


def with_other_reference(study, rows, scans, folder):
  """A copy of store and manifest's rows: all the lungs of some scans are infected."""
  stored = shutil.copytree(study / 'store', folder / 'store')
  rows = dict(rows)
  for scan_id in scans:
    path = store.group_path(stored, scan_id)
    scan = store.open_group(path)
    volumes = {name: each.read().result() for name, each in scan.volumes.items()}
    shutil.rmtree(path)
    infection = volumes['lungs'] > 0
    store.write_group(path, volumes | {'infection': infection}, scan.attributes)
    row = rows[scan_id]
    rows[scan_id] = dataclasses.replace(row, infection_mask=row.lung_mask)
  return stored, rows


def test_tested_references_change_neither_weights_nor_threshold_but_validating_ones_do(
  study, manifest, tmp_path
):
  rows = {row.scan_id: row for row in read_manifest(manifest)}
  split, task = split_of(study, 'three_way-200', 0), Run('three_way', 2.0)
  config = crossval_config.get_config('smoke')
  config.training.update(views=('xy',), steps_per_epoch=2)
  found = {}
  for name, changed in (
    ('plain', []),
    ('tested', split['test']),
    ('validating', split['validation']),
  ):
    folder = tmp_path / name
    stored, known = with_other_reference(study, rows, changed, folder)
    own = folder / 'runs' / task.name / 'fold0'
    own.mkdir(parents=True)
    (own / 'split.json').write_text(json.dumps(split))
    known = {scan: known[scan] for scan in split['test']}
    assert stored == runs.store_folder(folder, task)
    runs.do(Task(task, (task,)), 0, config.to_dict(), folder, known)
    model = json.loads((own / 'model' / 'model.json').read_text())
    scans = results.read_rows(own / 'scans.csv', results.RESULTS)
    dice = [row['dice'] for row in scans if row['evaluation'] == 'native']
    found[name] = model['sha256'], model['aggregator'], dice
  assert found['tested'][:2] == found['plain'][:2]
  assert found['tested'][2] != found['plain'][2]  # They are what it is compared with.
  assert found['validating'][1] != found['plain'][1]


def die(*_):
  os._exit(1)


def test_a_process_that_is_killed_is_told(copy, manifest, monkeypatch):
  """It ends without a word, as when memory is short."""
  shutil.rmtree(copy / 'runs' / 'unet_3d-200' / 'fold1')
  monkeypatch.setattr(runs, 'do', die)
  with pytest.raises(SomeFailedError, match='1 of 4 runs failed'):
    run_job('crossval', copy, input=str(manifest))
  (told,) = json.loads((copy / 'failures.json').read_text()).items()
  assert told[0] == 'unet_3d-200, fold 1' and 'terminated abruptly' in told[1]
  lost = [row for row in table(copy) if row['status'] == 'not run']
  assert {(row['run'], row['fold']) for row in lost} == {('unet_3d-200', 1)}


@pytest.mark.slow
def test_sigterm_keeps_what_is_trained_and_the_same_command_goes_on(manifest, tmp_path):
  command = [
    '--config=configs/crossval.py:smoke',
    f'--workdir={tmp_path}',
    f'--config.input={manifest}',
    "--config.crossval.methods=('three_way',)",
    '--config.training.steps_per_epoch=60',
  ]
  program = start_program(*command)
  trained = tmp_path / 'runs' / 'three_way-200' / 'fold0' / 'training'
  for _ in range(600):
    if list(trained.glob('*/step_*')):
      break
    time.sleep(0.2)
  program.terminate()
  (told,) = finish(program)
  last = 'covid3way: stopped by SIGTERM; the same command goes on from there'
  assert told.splitlines()[-1] == last
  assert list(trained.glob('*/step_*')) and not list(tmp_path.glob('**/.*partial*'))
  assert {row['status'] for row in table(tmp_path)} == {'not run'}
  finish(start_program(*command))
  assert {row['status'] for row in table(tmp_path)} == {'ok'}
