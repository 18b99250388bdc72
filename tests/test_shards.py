"""Shards of a job: at the same time, killed half way, and gathered."""

import json
import os
import re
import signal
import threading
import time

import pytest
import serial_scans
from conftest import finish, start_program

from covid3way.base import ConfigError
from covid3way.jobs.batch import Shard, SomeFailedError, for_each
from covid3way.scans import files

JOBS = ('preprocess', 'fit', 'augment')


def start(job, workdir, manifest, *arguments):
  space = f'--config.space.shape={serial_scans.SPACE.shape}'
  return start_program(
    f'--config=configs/{job}.py:smoke',
    f'--workdir={workdir}',
    f'--config.input={manifest}',
    *arguments,
    *([] if job == 'augment' else [space]),
  )


@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cohort')
  return serial_scans.write_cohort(folder, p1=(0.0, 1.0), p2=(0.0,), p3=(2.0,))


@pytest.fixture(scope='module')
def whole(manifest, tmp_path_factory):
  """A workdir in which nothing was sharded."""
  workdir = tmp_path_factory.mktemp('whole')
  for job in JOBS:
    finish(start(job, workdir, manifest))
  return workdir


def content(workdir):
  """Bytes of every file, without how long a fit took."""
  found = {}
  for path in sorted(p for p in workdir.rglob('*') if p.is_file()):
    data = path.read_bytes()
    if path.parent.name == 'fits' and path.suffix == '.json':
      data = re.sub(rb'"(seconds|checksum)": [^\n]+', b'', data)
    found[str(path.relative_to(workdir))] = data
  return found


def assert_same(one, other):
  assert set(one) == set(other)
  for name, data in one.items():
    assert data == other[name], name


def test_shards_at_the_same_time_and_a_gathering_run_are_the_whole_job(
  whole, manifest, tmp_path
):
  for job in JOBS:
    before = set(content(tmp_path))
    both = [start(job, tmp_path, manifest, f'--shard={i}/2') for i in range(2)]
    finish(*both)
    tables = {'fit_report.csv', 'fit_report.json', 'augmented.csv'}
    assert not tables & (set(content(tmp_path)) - before)
    finish(start(job, tmp_path, manifest))
  assert_same(content(tmp_path), content(whole))


def written(workdir):
  return {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.is_file()}


def test_no_shard_writes_what_another_wrote(manifest, tmp_path):
  before, owners = {}, []
  for job in ('preprocess', 'fit', 'augment'):
    for i in range(3):
      finish(start(job, tmp_path, manifest, f'--shard={i}/3'))
      now = written(tmp_path)
      assert {p: now.get(p) for p in before} == before
      owners.append(set(now) - set(before))
      before = now
  # Four scans, three patients: every shard had something to do.
  assert all(owners)


def asides(workdir):
  """What is being written, or was when its writer was killed."""
  names = (n for _, folders, files in os.walk(workdir) for n in (*folders, *files))
  return {name for name in names if '.partial.' in name}


@pytest.mark.slow
@pytest.mark.parametrize('job', JOBS)
def test_a_shard_that_is_killed_leaves_nothing_that_a_rerun_takes_for_finished(
  job, whole, manifest, tmp_path
):
  for earlier in JOBS[: JOBS.index(job)]:
    finish(start(earlier, tmp_path, manifest))
  known = set(content(tmp_path))
  kills = 0
  for _ in range(4):
    left = asides(tmp_path)
    process = start(job, tmp_path, manifest, '--shard=0/2')
    # While something is being written, as soon as we see it.
    while process.poll() is None and asides(tmp_path) <= left:
      time.sleep(0.001)
    kills += process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert kills
  finish(start(job, tmp_path, manifest))
  for later in JOBS[JOBS.index(job) + 1 :]:
    finish(start(later, tmp_path, manifest))
  found = {n: d for n, d in content(tmp_path).items() if '.partial.' not in n}
  assert known < set(found)
  assert_same(found, content(whole))


def test_every_item_is_in_one_shard_and_failures_are_told_by_shard(tmp_path):
  items, done = {f's{n}': n for n in range(7)}, []

  def work(item):
    done.append(item)
    if item == 4:
      raise ConfigError('s4', 'wrong', 'mend it')

  for i in range(3):
    try:
      for_each(items, work, what='test', workdir=tmp_path, shard=Shard(i, 3))
    except SomeFailedError as error:
      assert i == 1 and '1 of 2 scans failed' in str(error)
  assert sorted(done) == list(range(7))
  (report,) = tmp_path.glob('failures*.json')
  assert report.name == 'failures-test-1of3.json'
  assert list(json.loads(report.read_text())) == ['s4']
  for_each(items, done.append, what='test', workdir=tmp_path, shard=Shard())
  assert not list(tmp_path.iterdir())


def test_two_items_are_under_way_at_once_and_failures_are_told_as_ever(tmp_path):
  together, done = threading.Barrier(2, timeout=30), []

  def work(item):
    together.wait()  # Else the barrier breaks, and all items fail.
    done.append(item)
    if item == 2:
      raise ConfigError('s2', 'wrong', 'mend it')

  items = {f's{n}': n for n in range(4)}
  with pytest.raises(SomeFailedError, match='1 of 4 scans failed'):
    for_each(items, work, what='test', workdir=tmp_path, shard=Shard(), at_a_time=2)
  assert sorted(done) == list(range(4))
  assert list(json.loads((tmp_path / 'failures.json').read_text())) == ['s2']


def test_more_shards_than_items_do_nothing(tmp_path):
  for_each({'a': 1}, int, what='test', workdir=tmp_path, shard=Shard(3, 4))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('wrong', ['', '2/2', '1', '-1/2', '0/0', 'a/b', '0/2/3'])
def test_a_shard_that_is_none_is_told(wrong):
  with pytest.raises(ConfigError, match=r'^--shard: '):
    Shard.parse(wrong)


def test_of_several_writers_the_first_wins(tmp_path):
  path = tmp_path / 'sub' / 'a.json'
  files.write_json_once(path, {'a': 1})
  files.write_json_once(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1}
  assert list(path.parent.iterdir()) == [path]
