"""56 SIGKILLs at random moments: a rerun ends as an undisturbed run does."""

import dataclasses
import random
import shutil
import signal
import time

import fresh_model
import pytest
import serial_scans
from conftest import finish, start_program

from covid3way.scans import dicom_writer, source
from covid3way.scans.manifest import read_manifest, write_manifest

JOBS = ('preprocess', 'augment', 'predict', 'evaluate')
ROUNDS, KILLS = 7, 2  # Of each job; and before it may end, in a round.
DAYS = {'p1': (0.0, 1.0), 'p2': (0.0,)}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('kills')]


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  """A cohort, whose images are DICOM, and a model."""
  folder = tmp_path_factory.mktemp('given')
  manifest = serial_scans.write_cohort(folder / 'cohort', **DAYS)
  rows = [as_dicom(row) for row in read_manifest(manifest)]
  write_manifest(manifest, rows)
  fresh_model.write(folder / 'model', serial_scans.SPACE.shape)
  return folder


def as_dicom(row):
  """The row of the same scan as a series of slices."""
  scan, folder = source.read_scan(row), row.image.with_name(row.scan_id)
  folder.mkdir()
  native = scan.grid.to_native(scan.hu)
  dicom_writer.write_series(folder, native, scan.grid, header={}, seed_uid=row.scan_id)
  return dataclasses.replace(row, image=folder)


def start(job, workdir, given):
  """All jobs share a workdir, but the masks have one of their own, as evaluate asks."""
  masks = workdir / 'predicted'
  arguments = {
    'preprocess': [f'--config.space.shape={serial_scans.SPACE.shape}'],
    'fit': [f'--config.space.shape={serial_scans.SPACE.shape}'],
    'augment': [],
    'predict': [f'--config.model={given / "model"}', '--config.export.dicom=True'],
    'evaluate': [f'--config.predictions={masks}'],
  }[job]
  return start_program(
    f'--config=configs/{job}.py:smoke',
    f'--workdir={masks if job == "predict" else workdir}',
    f'--config.input={given / "cohort" / "manifest.csv"}',
    *arguments,
  )


def content(workdir):
  """Bytes of every file that has its name, but for where the workdir is."""
  found = {}
  for path in sorted(p for p in workdir.rglob('*') if p.is_file()):
    name, data = str(path.relative_to(workdir)), path.read_bytes()
    data = data.replace(str(workdir).encode(), b'')
    if '.partial.' not in name:
      found[name] = data
  return found


@pytest.fixture(scope='module')
def undisturbed(given, tmp_path_factory):
  """Per job: the workdir before it and after it, when it began to write, and ended."""
  workdir, known = tmp_path_factory.mktemp('undisturbed') / 'workdir', {}
  workdir.mkdir()
  for job in JOBS:
    if job == 'augment':
      finish(start('fit', workdir, given))
    before = workdir.with_name(f'before-{job}')
    shutil.copytree(workdir, before)
    # Once to compile, for the cache; then as the disturbed ones will run.
    finish(start(job, shutil.copytree(before, workdir.with_name(f'{job}-1')), given))
    files, began, first = set(workdir.rglob('*')), time.monotonic(), None
    process = start(job, workdir, given)
    while process.poll() is None:
      if first is None and set(workdir.rglob('*')) - files:
        first = time.monotonic() - began
      time.sleep(0.01)
    finish(process)
    known[job] = before, content(workdir), first or 0, time.monotonic() - began
  return known


@pytest.mark.parametrize('number', range(ROUNDS))
@pytest.mark.parametrize('job', JOBS)
def test_a_rerun_after_kills_gives_what_an_undisturbed_run_gives(
  job, number, given, undisturbed, tmp_path
):
  """Each at any moment, or at one of those in which it writes, as it falls."""
  before, wanted, first, whole = undisturbed[job]
  workdir = shutil.copytree(before, tmp_path / 'workdir')
  moments, killed, began = random.Random(f'{job} {number}'), 0, time.monotonic()
  while killed < KILLS:
    # A rerun has less to do, or nothing, and may end before its time.
    assert time.monotonic() - began < 20 * whole, 'it cannot be killed'
    process = start(job, workdir, given)
    time.sleep(moments.uniform(moments.choice((0, first)), whole))
    killed += process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
  finish(start(job, workdir, given))
  found = content(workdir)
  assert set(found) == set(wanted)
  for name, data in wanted.items():
    assert found[name] == data, name


@pytest.mark.parametrize('job', JOBS)
def test_two_runs_at_once_on_one_folder_give_what_one_gives(
  job, given, undisturbed, tmp_path
):
  before, wanted, _, _ = undisturbed[job]
  workdir = shutil.copytree(before, tmp_path / 'workdir')
  finish(start(job, workdir, given), start(job, workdir, given))
  assert content(workdir) == wanted
  assert not list(workdir.rglob('.*.partial.*'))
