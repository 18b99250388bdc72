"""Exit codes, as main's docstring and `--help` tell them: 0, 1 and 2."""

import json
import shutil
import subprocess

import pytest
import small_chest
from conftest import start_program

from covid3way import main
from covid3way.scans.manifest import read_manifest, write_manifest


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_chest.write_cohort(tmp_path_factory.mktemp('cohort'))


def started(folder, workdir, manifest='manifest.csv', *more):
  """The quantify job: it takes a network neither to do nor to fail."""
  return start_program(
    '--config=configs/quantify.py',
    f'--workdir={workdir}',
    f'--config.input={folder / manifest}',
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


def test_exit_codes(folder, tmp_path):
  """A broken scan of three; then mended; alone; and flags that there are not."""
  rows = read_manifest(folder / 'manifest.csv')
  write_manifest(folder / 'one.csv', rows[1:2])
  whole = tmp_path / 'a-2.dcm'
  broken = sorted(rows[1].image.iterdir())[7]
  shutil.copy(broken, whole)
  broken.write_bytes(whole.read_bytes()[:900])
  out = tmp_path / 'out'
  running = [
    started(folder, out),
    started(folder, tmp_path / 'alone', 'one.csv'),
    started(folder, tmp_path / 'wrong', 'one.csv', '--config.window.choice=none'),
    started(folder, tmp_path / 'shards', 'manifest.csv', '--shard=1/3'),
  ]
  every, alone, wrong, shard = map(ended, running)
  assert every[0] == 1 and '1 of 3 scans failed' in every[1]
  failures = json.loads((out / 'failures.json').read_text())
  assert list(failures) == ['a-2'] and failures['a-2'].startswith('a-2: ')
  assert {p.name for p in out.iterdir() if p.is_dir()} == {'a-1', 'b-1'}
  assert alone[0] == 2 and alone[1].startswith('covid3way: a-2: ')
  assert not (tmp_path / 'alone' / 'failures.json').exists()
  assert wrong[0] == 2 and 'config.window.choice' in wrong[1]
  assert not (tmp_path / 'wrong').exists()
  part = tmp_path / 'shards' / 'failures-quantify-1of3.json'
  assert shard[0] == 1 and list(json.loads(part.read_text())) == ['a-2']
  shutil.copy(whole, broken)
  assert ended(started(folder, out)) == (0, 'quantify 3/3: b-1: done')
  assert not (out / 'failures.json').exists()
