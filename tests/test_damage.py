"""A byte that flips on the disk is told, or changes nothing; never a number silently.

Seeded: each file of a group, a checkpoint, a model and a workdir is damaged in turn.
"""

import json
import re
import shutil
import subprocess
import sys

import fresh_model
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import serial_scans
from conftest import ROOT, run_job

from covid3way.base import (
  Covid3wayError,
  DamagedFileError,
  InputError,
  ModelError,
  StorageError,
)
from covid3way.jobs import outputs
from covid3way.jobs.batch import SomeFailedError
from covid3way.scans import nifti, store
from covid3way.scans.manifest import ManifestRow, read_manifest
from covid3way.segmentation.model import read_model
from covid3way.training import checkpoints
from covid3way.training.slices import Masks, find_candidates
from covid3way.training.step import TrainState

SHAPE = (70, 65, 30)


def files_of(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


def flipped(whole, place, rng):
  """The same bytes, but one."""
  damaged = bytearray(whole)
  damaged[place] ^= int(rng.integers(1, 256))
  return bytes(damaged)


def damages(path, rng, count):
  """One byte changed, at so many places; cut to a half; empty; and absent (None)."""
  whole = path.read_bytes()
  for place in rng.integers(0, len(whole), count):
    yield flipped(whole, place, rng)
  yield from (whole[: len(whole) // 2], b'', None)


def outcomes(folder, read, rng, count, *, named):
  """Damages each file of a folder in turn; what `read` says: `same`, or an error.

  Fails when it gives anything else, or an error of another kind.
  """
  wanted, told = read(), {}
  for path in files_of(folder):
    whole, found = path.read_bytes(), []
    for damaged in damages(path, rng, count):
      path.unlink()
      if damaged is not None:
        path.write_bytes(damaged)
      try:
        again = read()
      except named as error:
        found.append(str(error))
      else:
        jax.tree.map(np.testing.assert_array_equal, again, wanted)
        found.append('same')
    path.write_bytes(whole)
    told[str(path.relative_to(folder))] = found
  jax.tree.map(np.testing.assert_array_equal, read(), wanted)
  return told


@pytest.fixture
def group(tmp_path):
  rng = np.random.default_rng(0)
  volumes = {
    'signal': rng.normal(0, 0.3, SHAPE),
    'lungs': rng.integers(0, 3, SHAPE),
    'infection': np.zeros(SHAPE),
  }
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, volumes, {'patient_id': 'p', 'centre_voxel': [1.25, 2.5]})
  return path


def everything(path):
  """All that is read of a group; attributes as text, so that they are compared."""
  scan = store.open_group(path)
  volumes = {name: each.read().result() for name, each in scan.volumes.items()}
  return volumes, json.dumps(scan.attributes)


def test_any_damage_to_a_group_is_told_or_changes_nothing(group):
  named = (DamagedFileError, InputError)
  told = outcomes(
    group, lambda: everything(group), np.random.default_rng(1), 8, named=named
  )
  voxels = {name: found for name, found in told.items() if '/c/' in name}
  assert len(voxels) == 3
  for found in voxels.values():
    # Every byte of the voxels' files counts.
    assert all(each.startswith('p1: ') for each in found), found
    assert all('remove its group and run the job' in each for each in found)
  assert 'same' not in told['zarr.json'][-3:]  # Cut, empty, absent.
  # The arrays' own metadata are for others.
  assert set(told['signal/zarr.json']) == {'same'}


def test_chunks_that_are_swapped_for_those_of_another_scan_are_read_as_such(group):
  """A limit: a whole file of another group, of the same form, is not told."""
  other = group.with_name('p2.zarr')
  volumes, _ = everything(group)
  store.write_group(other, volumes | {'lungs': volumes['lungs'][::-1]}, {})
  part = 'labels/lungs/0/c/0/0/0'
  shutil.copyfile(other / part, group / part)
  found, _ = everything(group)
  np.testing.assert_array_equal(found['lungs'], volumes['lungs'][::-1])


def test_training_is_told_of_damage_too(group):
  path = group / 'labels' / 'infection' / '0' / 'c' / '0' / '0' / '0'
  damaged = bytearray(path.read_bytes())
  damaged[40] ^= 4
  path.write_bytes(damaged)
  masks = Masks('infection', 'lungs', tuple(slice(0, n) for n in SHAPE))
  with pytest.raises(DamagedFileError, match=r'^p1: cannot be read .* its infection'):
    find_candidates(store.open_group(group), masks)


def state_of(seed):
  """A small training's state."""
  rng = np.random.default_rng(seed)
  params = {'layer': {'kernel': jnp.asarray(rng.normal(size=(30, 40)), jnp.float32)}}
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  variables = {'params': params, 'batch_stats': {'mean': jnp.zeros(3, jnp.bfloat16)}}
  sums = {'loss': jnp.float32(seed)}
  opt_state = optimiser.init(params)
  return TrainState(variables, None, opt_state, jnp.int32(5 * seed), sums)


@pytest.fixture
def training(tmp_path):
  """The first epoch was the best of three, so that two checkpoints are kept."""
  figures = []
  with checkpoints.keeping(tmp_path / 'xy') as keeper:
    for epoch, dice in ((1, 0.75), (2, 0.5), (3, 0.625)):
      figures.append({'step': 5 * epoch, 'validation_dice': dice})
      keeper.keep(state_of(epoch), figures)
  return tmp_path / 'xy'


# Orbax and tensorstore leave futures behind that they do not look at any more.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_any_damage_to_a_checkpoint_is_told_or_changes_nothing(training):
  def read():
    variables, figures = checkpoints.best(training)
    with checkpoints.keeping(training) as keeper:
      last, again = keeper.last(state_of(9))
    assert figures == again
    return variables, jax.device_get(last), json.dumps(figures)

  assert {p.name for p in training.iterdir()} == {'step_5', 'step_15'}
  rng = np.random.default_rng(2)
  told = outcomes(training, read, rng, 1, named=ModelError)
  found = [each for some in told.values() for each in some]
  assert sum(each != 'same' for each in found) > 20
  for name, some in told.items():
    for each in set(some) - {'same'}:
      step = name.split('/')[0]
      assert f'/{step}: ' in each or '/xy: ' in each, each
      assert 'remove it and run the training again' in each
  for part in ('state/d', 'figures/metadata', 'metrics/metrics'):
    assert any(
      each != 'same' for name in told if part in name for each in told[name]
    ), part


def test_a_training_goes_on_from_the_checkpoint_before_one_that_is_removed(training):
  for path in files_of(training / 'step_15' / 'state'):
    path.write_bytes(path.read_bytes()[:-1] + b'\0')
  with checkpoints.keeping(training) as keeper:
    with pytest.raises(ModelError, match=r'step_15: .*remove it'):
      keeper.last(state_of(9))
  shutil.rmtree(training / 'step_15')
  with checkpoints.keeping(training) as keeper:
    state, figures = keeper.last(state_of(9))
  assert int(state.step) == 5 and len(figures) == 1


HOLD = """
import pathlib, sys
from covid3way.training import checkpoints
with checkpoints.keeping(pathlib.Path(sys.argv[1])):
  print('in', flush=True)
  sys.stdin.read()
"""


def test_a_second_training_in_a_folder_is_told_and_a_killed_one_leaves_no_lock(
  tmp_path,
):
  command = [sys.executable, '-c', HOLD, str(tmp_path)]
  options = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'cwd': ROOT}
  with subprocess.Popen(command, **options) as first:
    assert first.stdout.readline() == b'in\n'
    with pytest.raises(StorageError, match=r'another training writes .* wait until'):
      with checkpoints.keeping(tmp_path):
        pass
    first.kill()
  with checkpoints.keeping(tmp_path) as keeper:
    assert keeper.last('fresh') == ('fresh', [])
  with checkpoints.keeping(tmp_path):
    pass


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model directory of fresh weights."""
  folder = tmp_path_factory.mktemp('model') / 'model'
  return fresh_model.write(folder, serial_scans.SPACE.shape)


def test_any_damage_to_a_model_is_told_or_changes_nothing(model):
  def read():
    found = read_model(model)
    return found.variables, repr((found.spec, found.aggregator, found.saw))

  told = outcomes(model, read, np.random.default_rng(3), 12, named=ModelError)
  assert {name.split('.')[-1] for name in told} == {'json', 'msgpack'}
  for name, found in told.items():
    assert all('--config.model' in each for each in found if each != 'same')
    assert name.endswith('.json') or 'same' not in found
  # What its whole file says is compared: an aggregator's threshold, for one.
  path = model / 'model.json'
  text = path.read_text()
  changed = re.sub(r'("threshold": )[\d.]+', r'\g<1>0.125', text)
  assert changed != text
  path.write_text(changed)
  with pytest.raises(ModelError, match='changed since it was written, or damaged'):
    read_model(model)
  path.write_text(text)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, model):
  """A patient fitted and augmented, and his scans predicted."""
  folder = tmp_path_factory.mktemp('workdir')
  serial_scans.write_cohort(folder / 'cohort', p1=(0.0, 1.0))
  for part in RESULTS:
    run(part, folder, model)
  return folder


def run(part, folder, model):
  """The jobs of a part of the workdir, in this process."""
  manifest = {'input': str(folder / 'cohort' / 'manifest.csv')}
  if part == 'predicted':
    run_job('predict', folder / part, model=str(model), **manifest)
    return
  run_job('fit', folder / part, space={'shape': serial_scans.SPACE.shape}, **manifest)
  run_job('augment', folder / part, **manifest)


def test_a_report_that_cannot_be_read_leaves_the_others_their_table(tmp_path):
  """It is told where its scan is come to."""
  (tmp_path / 'a' / outputs.REPORT).mkdir(parents=True)
  outputs.write_tables([ManifestRow('p', 'a', tmp_path)], tmp_path)
  assert len((tmp_path / 'quantification.csv').read_text().splitlines()) == 1


def numbers_of_training(folder):
  groups = {p.name: everything(p) for p in store.list_groups(folder / 'store')}
  fits = [json.loads(p.read_text())['pairs'] for p in folder.glob('fits/*.json')]
  rows = [row.scan_id for row in read_manifest(folder / 'augmented.csv')]
  return groups, json.dumps(fits), rows


def numbers_of_prediction(folder):
  masks = {
    str(path.relative_to(folder)): nifti.read_volume(path, scan_id=path.name)[0]
    for path in sorted(folder.glob('*/*.nii.gz'))
  }
  tables = [p.read_text() for p in files_of(folder) if p.suffix == '.csv']
  return masks, json.dumps(tables)


RESULTS = {'trained': numbers_of_training, 'predicted': numbers_of_prediction}


@pytest.mark.parametrize('part', RESULTS)
def test_after_any_flip_a_rerun_gives_the_same_or_a_named_error(part, workdir, model):
  """One in each file; but pictures and pages are not read again, nor made again."""
  folder, told, rng = workdir / part, {}, np.random.default_rng(4)
  wanted = RESULTS[part](folder)
  before = {p: p.read_bytes() for p in files_of(folder)}
  for path, whole in before.items():
    if path.suffix in ('.png', '.html'):
      continue
    path.write_bytes(flipped(whole, rng.integers(len(whole)), rng))
    try:
      run(part, workdir, model)
      found = RESULTS[part](folder)
    except Covid3wayError as error:
      told[path] = str(error)
    except SomeFailedError:
      failures = folder / 'failures.json'
      (told[path],) = json.loads(failures.read_text()).values()
      # Of an error that has no name its type would stand there.
      assert 'Error: ' not in told[path], told[path]
    else:
      jax.tree.map(np.testing.assert_array_equal, found, wanted)
    for each in files_of(folder):
      if each not in before:
        each.unlink()
      elif each.read_bytes() != before[each]:
        each.write_bytes(before[each])
  voxels = [p for p in before if 'c' in p.parts or p.name.endswith('.nii.gz')]
  assert len(voxels) > 5 and set(voxels) <= set(told)
  # Tables are made anew, but for the scans that are added to a manifest.
  assert not [p for p in told if p.suffix == '.csv']
