"""The command line: exit codes, one-line mistakes, broken scans in a batch."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, inputs_of, make_ready, run_job

from configs import train as train_config
from covid3way import main
from covid3way.base import ConfigError, Covid3wayError, ModelError, NoLungError
from covid3way.jobs import train
from covid3way.scans import nifti
from covid3way.scans.manifest import read_manifest


def command(*arguments, before=(), **options):
  """Runs the program as a user does."""
  return subprocess.run(
    [*before, sys.executable, '-m', 'covid3way.main', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    **options,
  )


def the_line(done, *, noisy=False):
  """The one line in which a user's mistake ends."""
  assert done.returncode == 2, done.stderr
  assert noisy or 'Traceback' not in done.stderr
  told = [x for x in done.stderr.splitlines() if x.startswith('covid3way: ')]
  assert len(told) == 1, done.stderr
  assert told == done.stderr.splitlines()[-1:], done.stderr
  return told[0]


@pytest.mark.parametrize(
  'arguments,words',
  [
    ([], '--config'),
    (['--config=configs/nothing.py', '--workdir=x'], 'nothing.py'),
    (['--config=configs/predict.py', '--workdir=x', '--config.treshold=1'], 'treshold'),
    (['--config=configs/predict.py', '--workdir=x', '--wrkdir=y'], 'wrkdir'),
    (['--config=configs/predict.py', '--workdir=x'], '--config.model'),
    (
      ['--config=configs/phantom.py', '--workdir=x', '--config.phantom.patients=two'],
      'two',
    ),
    (['--config=configs/phantom.py:typo', '--workdir=x'], 'typo'),
    (['--config=configs/simulate.py', '--workdir=x', '--shard=0/2'], 'leave it out'),
    (['--config=configs/predict.py', '--workdir=x', '--shard=2/2'], '0 to n - 1'),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, words, tmp_path):
  arguments = [a.replace('--workdir=x', f'--workdir={tmp_path}') for a in arguments]
  assert words in the_line(command(*arguments))
  assert list(tmp_path.iterdir()) == []


HEAVY = {'jax', 'flax', 'optax', 'tensorstore', 'matplotlib', 'scipy', 'sklearn'}
HEAVY |= {'orbax', 'grain', 'pydicom', 'highdicom', 'nibabel'}


@pytest.mark.parametrize(
  'arguments,words',
  [
    (['--help'], '--config'),
    (['--config=configs/predict.py', '--workdir=x', '--help'], '--workdir'),
    (['--config=configs/predict.py', '--workdir=x'], 'add --config.model'),
    (['--config=configs/evaluate.py', '--workdir=x', '--config.input=y'], 'not given'),
    (['--config=configs/fit.py', '--workdir=x', '--config.treshold=1'], 'no field'),
    (['--config=configs/fit.py', '--workdir=x', '--shard=2/2'], '0 to n - 1'),
    (['--config=configs/report.py', '--workdir=x', '--shard=0/2'], 'leave it out'),
    (['--config=configs/train.py', '--workdir=x', '--num_processes=2'], 'all three'),
  ],
)
def test_help_and_mistakes_come_before_what_loads_long(arguments, words):
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'covid3way.main', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  lines = done.stderr.splitlines()
  loaded = {x.split('|')[-1].strip() for x in lines if x.startswith('import time:')}
  assert words in done.stdout + lines[-1]
  assert 'covid3way.jobs.usage' in loaded
  assert not {name.partition('.')[0] for name in loaded} & HEAVY


@pytest.mark.parametrize('told', [None, '/elsewhere'])
def test_compiled_code_is_kept_where_jax_is_told_or_in_the_users_cache(
  told, tmp_path, monkeypatch
):
  name = 'JAX_COMPILATION_CACHE_DIR'
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '1')
  monkeypatch.setenv(name, told or '')  # So that it is put back in the end.
  if not told:
    monkeypatch.delenv(name)
  main._keep_compiled()
  (folder,) = (tmp_path / 'covid3way').iterdir()
  assert os.environ[name] == (told or str(folder))
  # A disk that refuses is no reason to stop.
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a file' / 'x'))
  (tmp_path / 'a file').write_text('')
  main._keep_compiled()
  assert os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] == '1'


def test_a_job_that_there_is_not_is_named(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from ml_collections import ConfigDict\n'
    "def get_config():\n  return ConfigDict({'job': 'os'})\n"
  )
  line = the_line(command(f'--config={path}', f'--workdir={tmp_path / "out"}'))
  assert "config.job: 'os'; use one of augment, " in line


def test_wrong_input_is_one_line_and_a_traceback_only_with_debug(tmp_path):
  (tmp_path / 'empty').mkdir()
  arguments = (
    '--config=configs/preprocess.py',
    f'--workdir={tmp_path / "out"}',
    f'--config.input={tmp_path / "empty"}',
  )
  line = the_line(command(*arguments))
  assert 'the folder is empty' in line and 'give a DICOM folder' in line
  told = command(*arguments, '--debug')
  assert told.returncode == 2
  assert 'Traceback' in told.stderr and 'the folder is empty' in told.stderr


# No file may grow beyond 20 KiB: a disk that fills up while a file is written.
FULL_DISK = ('bash', '-c', 'ulimit -f 20 && exec "$@"', 'bash')


@pytest.mark.parametrize('job', ['preprocess', 'predict', 'phantom', 'train'])
def test_a_disk_that_takes_no_more_leaves_nothing_half_written(
  job, quickstart, tmp_path
):
  arguments = {
    'preprocess': [f'--config.input={quickstart / "training.csv"}'],
    'predict': [
      f'--config.input={quickstart / "held_out.csv"}',
      f'--config.model={quickstart / "model"}',
    ],
    'phantom': ['--config.phantom.patients=1', '--config.phantom.matrix=128'],
    'train': [f'--config.input={quickstart / "store"}'],
  }[job]
  done = command(
    f'--config=configs/{job}.py:smoke',
    f'--workdir={tmp_path}',
    *arguments,
    before=FULL_DISK,
    env=os.environ | {'JAX_ENABLE_COMPILATION_CACHE': 'false'},
  )
  if job == 'preprocess':  # Two scans, both refused.
    assert done.returncode == 1, done.stderr
    assert len(json.loads((tmp_path / 'failures.json').read_text())) == 2
  else:
    # Orbax's threads print tracebacks of their own before our line.
    noisy = job == 'train'
    assert 'larger than the system allows' in the_line(done, noisy=noisy)
  left = [p for p in tmp_path.rglob('*') if p.is_file()]
  told = {'failures.json', 'quantification.csv', f'{job}.json', 'metrics.jsonl'}
  # A checkpoint that fitted is whole.
  assert {p.name for p in left if not re.search(r'/step_\d+/', str(p))} <= told
  assert not [p for p in tmp_path.rglob('*') if re.search('partial|-tmp', p.name)]


@pytest.fixture
def two_scans(quickstart, tmp_path):
  """A folder of one sound scan and one of water in air: a chest without lungs."""
  row = read_manifest(quickstart / 'held_out.csv')[0]
  folder = tmp_path / 'scans'
  shutil.copytree(row.image, folder / 'sound')
  _, grid = nifti.read_volume(
    quickstart / 'predictions' / row.scan_id / 'lungs.nii.gz', scan_id='test'
  )
  water = np.full(grid.shape, -1000, np.int16)
  water[4:-4, 4:-4] = 0
  nifti.write_volume(folder / 'water.nii.gz', water, grid, dtype=np.int16)
  return folder


def test_one_broken_scan_is_reported_and_the_rest_go_on(
  two_scans, quickstart, tmp_path
):
  done = command(
    '--config=configs/predict.py',
    f'--workdir={tmp_path / "out"}',
    f'--config.input={two_scans}',
    f'--config.model={quickstart / "model"}',
  )
  assert done.returncode == 1, done.stderr
  assert '1 of 2 scans failed' in done.stderr.splitlines()[-1]
  failures = json.loads((tmp_path / 'out' / 'failures.json').read_text())
  assert list(failures) == ['water'] and failures['water'].startswith('water: ')
  assert (tmp_path / 'out' / 'sound' / 'infection.nii.gz').exists()
  assert not (tmp_path / 'out' / 'water').exists()
  table = (tmp_path / 'out' / 'quantification.csv').read_text().splitlines()
  assert [line.split(',')[0] for line in table] == ['scan_id', 'sound']
  # What was mended is done on a second run, and the old report goes.
  (two_scans / 'water.nii.gz').unlink()
  run_job(
    'predict', tmp_path / 'out', input=str(two_scans), model=str(quickstart / 'model')
  )
  assert not (tmp_path / 'out' / 'failures.json').exists()


def test_a_single_scan_without_lung_is_a_named_error(two_scans, quickstart, tmp_path):
  model = str(quickstart / 'model')
  with pytest.raises(NoLungError, match=r'^water: '):
    run_job(
      'predict', tmp_path / 'o', input=str(two_scans / 'water.nii.gz'), model=model
    )
  assert issubclass(NoLungError, Covid3wayError)


def test_absent_window_tags_are_said_in_every_output(quickstart, tmp_path):
  row = read_manifest(quickstart / 'cohort' / 'manifest.csv')[0]
  volume, grid = nifti.read_volume(row.lung_mask, scan_id='test')
  hu = np.where(volume > 0, -850, 40).astype(np.int16)
  hu[:4], hu[-4:], hu[:, :4], hu[:, -4:] = -1000, -1000, -1000, -1000
  nifti.write_volume(tmp_path / 'plain.nii.gz', hu, grid, dtype=np.int16)
  run_job(
    'predict',
    tmp_path / 'out',
    input=str(tmp_path / 'plain.nii.gz'),
    model=str(quickstart / 'model'),
  )
  report = json.loads((tmp_path / 'out/plain/quantification.json').read_text())
  assert report['window'] == {'level_hu': -600, 'width_hu': 1200, 'source': 'default'}
  assert 'window_assumed' in [w['kind'] for w in report['warnings']]
  assert 'window_assumed' in (tmp_path / 'out/quantification.csv').read_text()


@pytest.mark.parametrize(
  'damage', ['absent', 'no weights', 'altered', 'swapped', 'foreign', 'cut']
)
def test_a_model_directory_that_is_none_is_a_named_error(damage, quickstart, tmp_path):
  folder = tmp_path / 'model'
  if damage != 'absent':
    shutil.copytree(quickstart / 'model', folder)
  if damage == 'no weights':
    (folder / 'yz.msgpack').unlink()
  if damage == 'altered':
    data = bytearray((folder / 'xz.msgpack').read_bytes())
    data[-9] ^= 1
    (folder / 'xz.msgpack').write_bytes(data)
  if damage == 'swapped':
    (folder / 'yz.msgpack').replace(folder / 'xy.msgpack')
  if damage == 'foreign':
    (folder / 'model.json').write_text('{"format": "other-1"}')
  if damage == 'cut':
    (folder / 'model.json').write_text('{"format": ')
  with pytest.raises(ModelError, match=r'--config\.model'):
    run_job('predict', tmp_path / 'out', input='x', model=str(folder))


@pytest.mark.parametrize(
  'job,changes,words',
  [
    ('phantom', {'phantom': {'seed': 1}}, 'seed'),
    ('preprocess', {'space': {'shape': (16, 16, 16)}}, 'space'),
    ('fit', {'fit': {'restarts': 2}}, 'restarts'),
    ('fit', {'space': {'shape': (16, 16, 16)}}, 'space'),
    ('augment', {'augmentation': {'ratio': 1.0}}, 'ratio'),
    ('augment', {'simulator': {'clustering': 2.0}}, 'simulator'),
    ('train', {'training': {'epochs': 9}}, 'epochs'),
    ('predict', {'prediction': {'threshold': 1.5}}, 'aggregator'),
  ],
)
def test_a_workdir_of_other_settings_is_not_mixed_in(
  job, changes, words, quickstart, tmp_path
):
  inputs = inputs_of(job, quickstart)
  make_ready(job, tmp_path, inputs, quickstart)
  run_job(job, tmp_path, **inputs)
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(ConfigError, match=rf'{words}.* another --workdir'):
    run_job(job, tmp_path, **inputs, **changes)
  assert sorted(tmp_path.rglob('*')) == before


def test_a_model_of_lungs_does_not_predict_infection(quickstart, tmp_path):
  shutil.copytree(quickstart / 'model', tmp_path / 'model')
  path = tmp_path / 'model' / 'model.json'
  content = json.loads(path.read_text()) | {'target': 'lungs'}
  del content['checksum']
  path.write_text(json.dumps(content))
  with pytest.raises(ModelError, match='finds lungs'):
    run_job('predict', tmp_path / 'out', input='x', model=str(tmp_path / 'model'))


def test_settings_that_cannot_train_are_named(quickstart, tmp_path):
  config = train_config.get_config('smoke')
  config.input = str(quickstart / 'store')
  for field, value, words in (
    ('features', (4,) * 8, 'multiples of 128 x 128 x 128'),
    ('validation_share', 1.0, 'none is left to train'),
    ('region', 'heart', "region 'heart'"),
    ('batch_size', 6, 'batch_size: 6 with 4 config.training.open_slabs'),
    ('fold', '3/3', "fold: '3/3'; use i/n"),
    ('precision', 'float16', 'use one of float32, bfloat16'),
    ('loss', 'losses.none', "loss: 'losses.none'"),
    ('weight_decay', 0.1, 'an optimiser that decays weights'),
    ('fold', '0/9', 'fold: 9 folds of 2 patients'),
    ('views', ('xy', 'zy'), 'has xy, yz, xz; use one or more, each once'),
    ('views', (), 'has xy, yz, xz; use one or more, each once'),
    ('offsets_mm', (-5.0, -2.0, 0.0), 'offsets that are symmetric'),
    ('class_weights', (1.0,), 'give two'),
    ('warmup_steps', 6, 'use fewer than 6'),
    ('parts', 0, 'parts: 0; use 1 or more'),
    ('ema_decay', -0.1, 'ema_decay: -0.1; use 0 to 1'),
    ('validation_share', -0.5, 'validation_share: -0.5; use 0 to 1'),
    ('schedule', 'optax.cosine_decay_schedule', 'learning_rate, steps and warmup'),
  ):
    wrong = config.copy_and_resolve_references()
    wrong.training[field] = value
    wrong.training.open_slabs = 4 if field == 'batch_size' else 2
    with pytest.raises(ConfigError, match=words):
      train.run(wrong, tmp_path)
