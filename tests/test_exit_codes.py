"""Exit codes, as main's docstring and `--help` tell them: 0, 1 and 2."""

import csv
import json
import shutil
import subprocess

import fresh_model
import pytest
import small_chest
from conftest import start_program

from covid3way import main
from covid3way.scans.manifest import read_manifest, write_manifest

# Small, where a job casts.
SPACE = '--config.space.shape=(32, 32, 48)'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_chest.write_cohort(tmp_path_factory.mktemp('cohort'))


def started(job, workdir, given, *more):
  """A job of which no run gets as far as a network."""
  return start_program(
    f'--config=configs/{job}.py:smoke',
    f'--workdir={workdir}',
    f'--config.input={given}',
    *more,
    stdout=subprocess.DEVNULL,
  )


def ended(process):
  """Exit code and last line."""
  told = process.communicate(timeout=300)[1]
  assert 'Traceback' not in told, told
  return process.returncode, told.splitlines()[-1]


def test_every_code_is_told():
  for words in ('0 all done', '1 some scans', '2 wrong use'):
    assert words in main.__doc__


def failed(workdir, name='failures.json'):
  """The scans that a run names, each in its own words."""
  failures = json.loads((workdir / name).read_text())
  assert all(told.startswith(f'{scan}: ') for scan, told in failures.items())
  return set(failures)


def test_exit_codes_of_scan_by_scan_jobs(folder, tmp_path):
  """A broken scan of three; then mended; alone; and flags that there are not."""
  three, one, out = folder / 'manifest.csv', folder / 'one.csv', tmp_path / 'out'
  rows = read_manifest(three)
  write_manifest(one, rows[1:2])
  whole = tmp_path / 'a-2.dcm'
  broken = sorted(rows[1].image.iterdir())[7]
  shutil.copy(broken, whole)
  broken.write_bytes(whole.read_bytes()[:900])
  model = fresh_model.write(tmp_path / 'model', (32, 32, 48))
  every, wrong, shard, checked, *alone = map(
    ended,
    [
      started('quantify', out, three),
      started('quantify', tmp_path / 'wrong', one, '--config.window.choice=none'),
      started('quantify', tmp_path / 'shards', three, '--shard=1/3'),
      started('check', tmp_path / 'check', three, SPACE),
      started('quantify', tmp_path / 'alone', one),
      started('preprocess', tmp_path / 'alone', one),
      started('predict', tmp_path / 'alone-2', one, f'--config.model={model}'),
    ],
  )
  for workdir, (code, told) in ((out, every), (tmp_path / 'check', checked)):
    assert code == 1 and '1 of 3 scans failed' in told
    assert failed(workdir) == {'a-2'}
  assert {p.name for p in out.iterdir() if p.is_dir()} == {'a-1', 'b-1'}
  for code, told in alone:
    assert code == 2 and told.startswith('covid3way: a-2: ')
  assert not list(tmp_path.glob('alone*/failures.json'))
  assert wrong[0] == 2 and 'config.window.choice' in wrong[1]
  assert not (tmp_path / 'wrong').exists()
  assert shard[0] == 1
  assert failed(tmp_path / 'shards', 'failures-quantify-1of3.json') == {'a-2'}
  shutil.copy(whole, broken)
  again = started('quantify', out, three), started('check', tmp_path / 'check', three)
  quantified, checked = map(ended, again)
  assert quantified == (0, 'quantify 3/3: b-1: done')
  assert checked[0] == 0
  for workdir in (out, tmp_path / 'check'):
    assert not (workdir / 'failures.json').exists()


def test_exit_codes_of_evaluate(folder, tmp_path):
  """A damaged prediction of three, and one that is not there; then all of them."""
  three, out, predicted = folder / 'manifest.csv', tmp_path / 'out', tmp_path / 'masks'
  predicted.mkdir()
  masks = {row.scan_id: row.infection_mask for row in read_manifest(three)}
  shutil.copy(masks['a-1'], predicted / 'a-1.nii.gz')
  (predicted / 'a-2.nii.gz').write_bytes(masks['a-2'].read_bytes()[:90])
  given = three, f'--config.predictions={predicted}', SPACE
  code, told = ended(started('evaluate', out, *given))
  assert code == 1 and '2 of 3 scans failed' in told
  assert failed(out) == {'a-2', 'b-1'}
  with (out / 'evaluation.csv').open() as file:
    found = {row['scan_id']: row['status'] for row in csv.DictReader(file)}
  assert found['a-1'] == 'ok' and found['b-1'] == 'no prediction'
  assert found['a-2'].startswith('prediction: ')
  for scan_id, path in masks.items():
    shutil.copy(path, predicted / f'{scan_id}.nii.gz')
  absent = f'--config.predictions={tmp_path / "absent"}'
  running = [
    started('evaluate', out, *given),
    started('evaluate', tmp_path / 'wrong', three, absent),
  ]
  (code, _), wrong = map(ended, running)
  assert code == 0 and not (out / 'failures.json').exists()
  assert wrong[0] == 2 and 'no such folder' in wrong[1]
  assert not (tmp_path / 'wrong').exists()
