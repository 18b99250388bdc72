"""Every config builds; its smoke variant runs and reads every field it has."""

import csv
import importlib
import inspect
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, inputs_of, make_ready, run_job
from ml_collections import ConfigDict

from configs import default
from covid3way.base import ConfigError, InputError
from covid3way.jobs import runs, usage, watching
from covid3way.jobs.batch import Shard
from covid3way.scans import nifti, source, store
from covid3way.scans.manifest import read_manifest
from covid3way.segmentation.model import read_model

NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py') if p.stem != 'default')

# Sections whose fields a study may extend: read as a whole.
TABLES = ('scanners', 'W', 'settings')
# Handed on whole to another process, or read where an ablation asks for it.
HANDED_ON = {
  'crossval': (
    'space.',
    'window.',
    'simulator.',
    'fit.',
    'augmentation.',
    'training.',
    'aggregation.',
    'prediction.',
    'crossval.settings',
    'crossval.padded_mm',
  ),
}


class Recorder:
  """A config that remembers which of its leaves were read."""

  def __init__(self, config: ConfigDict, seen: set[str], prefix: str = ''):
    self.__dict__.update(_config=config, _seen=seen, _prefix=prefix)

  def __getattr__(self, field):
    value, name = self._config[field], f'{self._prefix}{field}'
    if isinstance(value, ConfigDict) and field not in TABLES:
      return Recorder(value, self._seen, f'{name}.')
    self._seen.add(name)
    return value

  __getitem__ = __getattr__

  def __setattr__(self, field, value):
    self._config[field] = value

  def copy_and_resolve_references(self):
    copied = self._config.copy_and_resolve_references()
    return Recorder(copied, self._seen, self._prefix)

  def to_dict(self):
    return self._config.to_dict()  # Settings are noted as a whole: not a use.


def leaves(config: ConfigDict, prefix: str = ''):
  for field, value in config.items():
    if isinstance(value, ConfigDict) and field not in TABLES:
      yield from leaves(value, f'{prefix}{field}.')
    else:
      yield f'{prefix}{field}'


@pytest.mark.parametrize('name', NAMES)
def test_config_names_a_job_and_takes_its_fields_from_the_default(name):
  module = importlib.import_module(f'configs.{name}')
  every = set(leaves(default.get_config())) | {'job'}
  for variant in ('', 'smoke'):
    config = module.get_config(variant)
    assert set(leaves(config)) <= every
    importlib.import_module(f'covid3way.jobs.{config.job}')
  assert '--config=configs/' in module.__doc__


@pytest.mark.parametrize('name', sorted(usage.JOBS))
def test_a_job_asks_for_what_the_command_line_is_held_to(name):
  job = importlib.import_module(f'covid3way.jobs.{name}')
  asked = re.findall(r"required\(config, '(\w+)'\)", inspect.getsource(job))
  assert tuple(asked) == usage.JOBS[name].needs
  in_shards = 'shard' in inspect.signature(job.run).parameters
  assert in_shards == usage.JOBS[name].in_shards
  assert name in {
    importlib.import_module(f'configs.{n}').get_config().job for n in NAMES
  }


def test_default_has_no_field_that_no_config_takes():
  taken = set()
  for name in NAMES:
    taken |= set(leaves(importlib.import_module(f'configs.{name}').get_config()))
  assert set(leaves(default.get_config())) <= taken


# The benchmark hands its config on to other processes; test_benchmark runs it.
@pytest.mark.parametrize('name', sorted(set(NAMES) - {'quickstart', 'benchmark'}))
def test_smoke_variant_reads_every_field(name, quickstart, tmp_path, monkeypatch):
  if name == 'crossval':  # Its trainings are other processes; test_crossval has them.
    monkeypatch.setattr(runs, 'missing', lambda *_: ())
  config = importlib.import_module(f'configs.{name}').get_config('smoke')
  inputs = inputs_of(name, quickstart)
  make_ready(name, tmp_path, inputs, quickstart)
  config.update(inputs)
  seen = set()
  job = importlib.import_module(f'covid3way.jobs.{config.job}')
  job.run(Recorder(config, seen), tmp_path)
  elsewhere = HANDED_ON.get(name, ('-',))
  unread = set(leaves(config)) - {'job'} - seen
  assert not {field for field in unread if not field.startswith(elsewhere)}


def test_quickstart_compares_with_the_references(quickstart):
  results = json.loads((quickstart / 'results.json').read_text())
  (scan,) = results['scans']
  without = 'dice_mean_without_augmentation'
  assert set(results) == {'dice_mean', without, 'dice_per_view', 'scans', 'seconds'}
  assert set(results['dice_per_view']) == {'xy', 'yz', 'xz'}
  assert results['dice_mean'] == scan['dice']
  assert results[without] == scan['dice_without_augmentation']
  attributes = [
    store.open_group(p).attributes for p in store.list_groups(quickstart / 'store')
  ]
  parents = [a['simulated']['parent_scan'] for a in attributes if 'simulated' in a]
  real = {a['scan_id'] for a in attributes if 'simulated' not in a}
  assert len(parents) == 2 * len(real) and set(parents) == real
  rows = read_manifest(quickstart / 'cohort' / 'manifest.csv')
  row = next(r for r in rows if r.scan_id == scan['scan_id'])
  reference, lungs = (
    nifti.read_volume(path, scan_id='test')[0] > 0
    for path in (row.infection_mask, row.lung_mask)
  )
  assert scan['infected_percent_true'] == pytest.approx(
    100 * (reference & lungs).sum() / lungs.sum(), abs=1e-3
  )
  assert (quickstart / 'pictures' / f'{row.scan_id}.png').stat().st_size > 10_000
  assert (quickstart / 'training.png').stat().st_size > 10_000


def test_held_out_patients_are_in_no_store_and_their_references_in_no_manifest(
  quickstart,
):
  (held_out,) = read_manifest(quickstart / 'held_out.csv')
  stored = {
    store.open_group(p).scan_id for p in store.list_groups(quickstart / 'store')
  }
  assert stored and held_out.scan_id not in stored
  assert held_out.infection_mask is None and held_out.lung_mask is None


def test_prediction_has_the_scans_grid_and_consistent_numbers(quickstart):
  (row,) = read_manifest(quickstart / 'held_out.csv')
  scan = source.read_scan(row)
  folder = quickstart / 'predictions' / row.scan_id
  volumes = {}
  for name in ('infection', 'probability', 'lungs'):
    volumes[name], grid = nifti.read_volume(folder / f'{name}.nii.gz', scan_id='test')
    assert grid.native_shape == scan.grid.native_shape
    np.testing.assert_allclose(grid.native_affine, scan.grid.native_affine, atol=1e-4)
  assert set(np.unique(volumes['lungs'])) == {0, 1, 2}
  assert set(np.unique(volumes['infection'])) <= {0, 1}
  assert 0 <= volumes['probability'].min() and volumes['probability'].max() <= 1
  inside = volumes['lungs'] > 0
  assert not volumes['infection'][~inside].any()
  report = json.loads((folder / 'quantification.json').read_text())
  share = 100 * (volumes['infection'] > 0).sum() / inside.sum()
  assert report['infected_percent'] == pytest.approx(share, abs=1e-3)
  assert report['lung_ml'] == pytest.approx(inside.sum() * scan.grid.voxel_ml, rel=1e-4)
  assert report['window']['source'] == 'scanner table'
  assert report['model']['space_shape'] == [64, 64, 96]
  with (quickstart / 'predictions' / 'quantification.csv').open() as table:
    (line,) = csv.DictReader(table)
  assert float(line['infected_percent']) == report['infected_percent']
  assert float(line['left_percent']) == report['per_lung']['left']['infected_percent']


def test_same_seed_same_cohort_bytes(quickstart, tmp_path):
  config = importlib.import_module('configs.quickstart').get_config('smoke')
  importlib.import_module('covid3way.jobs.phantom').run(config, tmp_path)
  files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*') if p.is_file())
  assert len(files) > 20
  for file in files:
    again, first = tmp_path / file, quickstart / 'cohort' / file
    assert again.read_bytes() == first.read_bytes(), file


def test_a_second_run_skips_what_is_finished(quickstart, tmp_path):
  (row,) = read_manifest(quickstart / 'held_out.csv')
  inputs = inputs_of('predict', quickstart)
  run_job('predict', tmp_path, **inputs)
  first = (tmp_path / row.scan_id / 'infection.nii.gz').stat().st_mtime_ns
  run_job('predict', tmp_path, **inputs)
  assert (tmp_path / row.scan_id / 'infection.nii.gz').stat().st_mtime_ns == first


def test_model_directory_keeps_its_space_and_three_networks(quickstart):
  model = read_model(quickstart / 'model')
  assert model.spec.space_shape == (64, 64, 96)
  assert set(model.variables) == {'xy', 'yz', 'xz'}
  kernels = [v['params']['Conv_0']['kernel'] for v in model.variables.values()]
  assert not np.array_equal(kernels[0], kernels[1])
  assert not np.array_equal(kernels[1], kernels[2])


def assert_same_model(one, other):
  one, other = (read_model(folder / 'model') for folder in (one, other))
  jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
  assert one.sha256 == other.sha256


def test_views_as_shards_a_whole_job_after_them_and_an_interrupted_one_end_the_same(
  quickstart, tmp_path
):
  inputs = inputs_of('train', quickstart)
  plain, shards = tmp_path / 'plain', tmp_path / 'shards'
  run_job('train', plain, **inputs)
  for number in (2, 0, 1):
    run_job('train', shards, shard=Shard(number, 3), **inputs)
    assert not (shards / 'model').exists()
  xy = shards / 'training' / 'xy'
  kept = (xy / 'step_6').stat().st_mtime_ns
  shutil.rmtree(shards / 'training' / 'yz')  # As if stopped before this view.
  run_job('train', shards, **inputs)
  assert (xy / 'step_6').stat().st_mtime_ns == kept
  assert [row['epoch'] for row in watching.rows(xy)] == [1, 2]
  assert_same_model(shards, plain)


def test_simulated_scans_are_made_anew_every_so_many_epochs(quickstart, tmp_path):
  """Of the training's patients alone, and other ones each time."""
  inputs = inputs_of('train', quickstart)
  changes = {'renew_epochs': 1, 'views': ('xy',), 'validation_share': 0.5}
  run_job('train', tmp_path / 'a', training=changes, **inputs)
  (made,) = (tmp_path / 'a' / 'training' / 'xy' / 'simulated').iterdir()
  assert made.name == '1'  # What the first epoch had is gone.
  stored = list(map(store.open_group, store.finished_groups(quickstart / 'store')))
  fresh = list(map(store.open_group, store.finished_groups(made)))
  about = [scan.attributes['simulated'] for scan in fresh]
  real = {s.scan_id: s.attributes for s in stored if 'simulated' not in s.attributes}
  patients = {known['patient_id'] for known in real.values()}
  trained = {real[each['parent_scan']]['patient_id'] for each in about}
  assert len(patients) == 2 and len(trained) == 1
  assert len(fresh) == 2 * sum(k['patient_id'] in trained for k in real.values())
  assert {each['seed'] for each in about} == {2}
  of_old = {s.scan_id: s.volumes['signal'].read().result() for s in stored}
  for scan in fresh:
    own = scan.volumes['signal'].read().result()
    assert not any(np.array_equal(own, old) for old in of_old.values())
  run_job(
    'train', tmp_path / 'stored', training=changes | {'renew_epochs': 0}, **inputs
  )
  losses = [
    [row['loss'] for row in watching.rows(tmp_path / name / 'training' / 'xy')]
    for name in ('a', 'stored')
  ]
  assert losses[0] != losses[1]


def test_lungs_are_learned_by_the_same_job(quickstart, tmp_path):
  """From every slice of the space, those without lung as well."""
  changes = {'target': 'lungs', 'region': 'all', 'views': ('xz',), 'epochs': 3}
  learning = {'steps_per_epoch': 80, 'learning_rate': 1e-2}
  inputs = inputs_of('train', quickstart)
  run_job('train', tmp_path, training=changes | learning, **inputs)
  assert read_model(tmp_path / 'model').spec.target == 'lungs'
  assert watching.rows(tmp_path / 'training' / 'xz')[-1]['validation_dice'] > 0.7
  with (tmp_path / 'aggregators.csv').open() as file:
    assert max(float(row['dice_mean']) for row in csv.DictReader(file)) > 0.7


def test_no_simulator_beside_the_store_is_an_error(quickstart, tmp_path):
  shutil.copytree(quickstart / 'store', tmp_path / 'store')
  with pytest.raises(ConfigError, match=r'renew_epochs: no augment job ran in'):
    run_job(
      'train',
      tmp_path / 'model',
      input=str(tmp_path / 'store'),
      training={'renew_epochs': 1},
    )


def test_a_model_says_where_it_comes_from(quickstart):
  known = json.loads((quickstart / 'model' / 'model.json').read_text())
  assert known['settings']['epochs'] == 2
  assert known['settings']['input'] == str(quickstart / 'store')
  assert sum(window['scans'] for window in known['windows']) > 0
  assert known['windows'][0]['source'] == 'scanner table'
  assert set(known['training']) == set(known['sha256']) == {'xy', 'yz', 'xz'}
  assert 'images_per_s' not in known['training']['xy'][0]
  names = [row['name'] for row in known['aggregators']]
  assert names[0] == 'sum > 2' and known['aggregator']['name'] in names
  with (quickstart / 'aggregators.csv').open() as file:
    assert [row['name'] for row in csv.DictReader(file)] == names


def test_export_writes_the_model_of_a_training_again(quickstart, tmp_path):
  make_ready('export', tmp_path, {}, quickstart)
  run_job('export', tmp_path)
  again, first = (f / 'model' / 'model.json' for f in (tmp_path, quickstart))
  assert again.read_bytes() == first.read_bytes()


def test_a_store_that_has_changed_is_not_trained_on_further(quickstart, tmp_path):
  """Patients might be parted anew: some who trained would validate."""
  folder = shutil.copytree(quickstart / 'store', tmp_path / 'store')
  run_job('train', tmp_path / 'a', input=str(folder), shard=Shard(0, 3))
  noted = json.loads((tmp_path / 'a' / 'train.json').read_text())
  simulated = next(name for name in noted['trains_on'] if '-sim-' in name)
  shutil.rmtree(store.group_path(folder, simulated))
  with pytest.raises(ConfigError, match=r'(trains|validates)_on differ'):
    run_job('train', tmp_path / 'a', input=str(folder), shard=Shard(0, 3))
  with pytest.raises(InputError, match='it holds other scans than when the training'):
    run_job('export', tmp_path / 'a')


def test_export_takes_the_aggregator_that_it_is_told_to(quickstart, tmp_path):
  make_ready('export', tmp_path, {}, quickstart)
  run_job('export', tmp_path, aggregation={'choice': 'product'})
  assert read_model(tmp_path / 'model').aggregator.name in ('product', 'sum > 2')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [({'aggregation': {'choice': 'mean'}}, "'mean'; use one of best, sum > 2")],
)
def test_export_refuses(changes, words, quickstart, tmp_path):
  with pytest.raises(ConfigError, match=words):
    run_job('export', tmp_path, **changes)
  with pytest.raises(InputError, match='no training began here'):
    run_job('export', tmp_path)


def test_a_training_is_watched(quickstart):
  """A log, a picture, TensorBoard's events: one row per epoch."""
  folder = quickstart / 'training' / 'yz'
  rows = watching.rows(folder)
  assert [(row['epoch'], row['step']) for row in rows] == [(1, 3), (2, 6)]
  assert all(row['images_per_s'] > 0 and 0 <= row['waiting_share'] < 1 for row in rows)
  assert (folder / 'progress.png').stat().st_size > 10_000
  (events,) = (folder / 'tensorboard').iterdir()
  assert b'validation_dice' in events.read_bytes()


def test_without_tensorboard_all_else_is_written(quickstart, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  run_job('train', tmp_path, shard=Shard(0, 3), **inputs_of('train', quickstart))
  names = {path.name for path in (tmp_path / 'training' / 'xy').iterdir()}
  assert {'metrics.jsonl', 'progress.png'} < names and 'tensorboard' not in names
