"""Settings and fixtures that all tests share."""

import functools
import importlib
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # configs/ and covid3way/ are used in place.

import crossval_results  # noqa: E402
import serial_scans  # noqa: E402

# Compiled code is kept between runs: most of the suite's time is compilation.
# Environment of a program that shares it.
CACHE = {
  'JAX_COMPILATION_CACHE_DIR': os.environ.get(
    'JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / 'jax')
  ),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
}
# `jax.jit` of what runs once: compiled in a hurry.
hurried = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
jax.config.update('jax_compilation_cache_dir', CACHE['JAX_COMPILATION_CACHE_DIR'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def pytest_itemcollected(item):
  """A file's tests share a process, and so do all that need the same long run.

  What they share is made and compiled once.
  """
  if not item.get_closest_marker('xdist_group'):
    long = {'quickstart', 'study'} & set(item.fixturenames)
    item.add_marker(pytest.mark.xdist_group(*long or [item.path.stem]))


@pytest.fixture(scope='module', autouse=True)
def compiled_code_is_let_go():
  """Between files, before there is too much of it.

  Each piece is mapped into memory, of which Linux allows a process 65,530; one more
  ends it.
  """
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 25_000:
    jax.clear_caches()


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """The real scans beside the project; tests that need them say so when absent."""
  path = ROOT.parent / 'shared' / 'data'
  if not path.is_dir():
    pytest.skip(f'real scans are absent: {path} does not exist')
  return path


@pytest.fixture(scope='session')
def quickstart(tmp_path_factory) -> pathlib.Path:
  """The workdir of the quickstart's smoke variant: cohort, store, model, results.

  And `serial/`, serial scans of one patient, `single/`, one scan, and `several/`, four
  patients.
  """
  workdir = tmp_path_factory.mktemp('quickstart')
  run_job('quickstart', workdir)
  serial_scans.write_cohort(workdir / 'serial', s1=(0.0, 1.0))
  serial_scans.write_cohort(workdir / 'single', s2=(0.0,))
  days = {'a': (0.0, 1.0), 'b': (0.0,), 'c': (0.0,), 'd': (0.0,)}
  serial_scans.write_cohort(workdir / 'several', **days)
  return workdir


def start_program(*arguments: str, **options) -> subprocess.Popen:
  """Starts the program as a user does; it goes on beside the test."""
  return subprocess.Popen(
    [sys.executable, '-m', 'covid3way.main', *arguments],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def finish(*processes: subprocess.Popen) -> list[str]:
  """Waits until programs end well; what each told."""
  told = []
  for process in processes:
    told.append(process.communicate(timeout=300)[1])
    assert process.returncode == 0, told[-1]
  return told


def run_job(name: str, workdir: pathlib.Path, *, shard=None, **inputs) -> None:
  """Runs the smoke variant of a config in this process."""
  options = {'shard': shard} if shard else {}
  config = importlib.import_module(f'configs.{name}').get_config('smoke')
  config.update(inputs)
  importlib.import_module(f'covid3way.jobs.{config.job}').run(
    config, workdir, **options
  )


def make_ready(
  name: str, workdir: pathlib.Path, inputs: dict[str, str], quickstart: pathlib.Path
) -> None:
  """Runs what a job needs to have run in its workdir."""
  if name == 'augment':
    run_job('fit', workdir, **inputs)
  if name == 'report':
    crossval_results.write(workdir)
  if name == 'export':
    for part in ('train.json', 'training'):
      (workdir / part).symlink_to(quickstart / part)


def inputs_of(name: str, quickstart: pathlib.Path) -> dict[str, str]:
  """What a job's smoke variant is given: what the quickstart fixture made."""
  return {
    'phantom': {},
    'benchmark': {},
    'preprocess': {'input': str(quickstart / 'cohort' / 'manifest.csv')},
    'fit': {'input': str(quickstart / 'serial' / 'manifest.csv')},
    'augment': {'input': str(quickstart / 'serial' / 'manifest.csv')},
    'simulate': {'input': str(quickstart / 'single' / 'manifest.csv')},
    'train': {'input': str(quickstart / 'store')},
    'export': {},
    'convert': {
      'input': str(quickstart / 'cohort' / 'manifest.csv'),
      'format': 'to-nnunet',
    },
    'evaluate': {
      'input': str(quickstart / 'held_out.csv'),
      'predictions': str(quickstart / 'predictions'),
    },
    'quantify': {'input': str(quickstart / 'several' / 'manifest.csv')},
    'check': {'input': str(quickstart / 'cohort' / 'manifest.csv')},
    'crossval': {'input': str(quickstart / 'several' / 'manifest.csv')},
    'report': {},
    'predict': {
      'input': str(quickstart / 'held_out.csv'),
      'model': str(quickstart / 'model'),
    },
  }[name]
