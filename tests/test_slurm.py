"""The batch scripts on a real Slurm: arrays, folds, several processes, preemption."""

import json

import jax
import numpy as np
import pytest
import serial_scans
from conftest import finish, free_port, start_program
from slurm_node import one_node_slurm

from covid3way.jobs import watching
from covid3way.segmentation.model import read_model

# One process: there is one Slurm, and its two CPUs are all there are.
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group('slurm')]

# Long enough for a signal to come in the middle; the model is what was kept last.
TRAINING = (
  '--config.training.steps_per_epoch=5',
  '--config.training.epochs=12',
  '--config.training.validation_share=0',
)


@pytest.fixture(scope='module')
def slurm():
  with one_node_slurm() as running:
    running.env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    yield running


@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cohort')
  return serial_scans.write_cohort(folder, p1=(0.0,), p2=(0.0,), p3=(0.0,))


@pytest.fixture(scope='module')
def plain(manifest, tmp_path_factory):
  """The workdir of two jobs that ran without a scheduler: `store/` and `model/`."""
  workdir = tmp_path_factory.mktemp('plain')
  finish(start_program(*flags('preprocess', workdir, manifest)))
  finish(start_program(*flags('train', workdir, workdir / 'store'), *TRAINING))
  return workdir


def flags(job, workdir, given):
  return (
    f'--config=configs/{job}.py:smoke',
    f'--workdir={workdir}',
    f'--config.input={given}',
  )


def variables(workdir):
  return read_model(workdir / 'model').variables


def preempt(slurm, job, log, *to):
  """Sends SIGTERM once a training's first epoch stands in its log."""
  slurm.wait(log.exists, job)
  slurm.command('scancel', '--signal=TERM', *to, job)


def test_arrays_of_which_two_views_are_preempted_end_with_the_same_bits(
  slurm, manifest, plain, tmp_path
):
  """Preprocessing in two jobs, training in three, each gathered by one more.

  One view gets SIGTERM as before a time limit, one as at a preemption, one never.
  """
  preprocess = flags('preprocess', tmp_path, manifest)
  train = *flags('train', tmp_path, tmp_path / 'store'), *TRAINING
  shards = slurm.submit('shards', *preprocess, options=['--array=0-1'])
  store = slurm.submit('job', *preprocess, after=shards)
  views = slurm.submit('shards', *train, options=['--array=0-2'], after=store)
  model = slurm.submit('job', *train, after=views)
  preempt(slurm, f'{views}_1', tmp_path / 'training/yz/metrics.jsonl', '--batch')
  preempt(slurm, f'{views}_2', tmp_path / 'training/xz/metrics.jsonl')
  slurm.finish(shards, store, views, model)

  tasks = {task['ArrayTaskId']: task for task in slurm.show(views)}
  restarts = {n: task['Restarts'] for n, task in tasks.items()}
  assert restarts == {'0': '0', '1': '1', '2': '1'}
  for n, view in (('1', 'yz'), ('2', 'xz')):
    assert f'stopped by SIGTERM: view {view}, step ' in slurm.log(tasks[n]['JobId'])
  for workdir in (tmp_path, plain):
    assert len(list((workdir / 'store').iterdir())) == 3
  assert set(variables(tmp_path)) == {'xy', 'yz', 'xz'}
  jax.tree.map(np.testing.assert_array_equal, variables(tmp_path), variables(plain))


def test_two_processes_that_are_preempted_train_as_undisturbed_ones(
  slurm, plain, tmp_path
):
  """To the same bits, and at first as one process does.

  It sums in another order. Until a pixel takes another way through a maximum for that,
  its log agrees to 1e-6, then to 2e-4; what a process leaves out is percents of it.
  """
  one = "--config.training.views=('xy',)"
  preempted, together = (tmp_path / name for name in ('preempted', 'together'))
  train = *flags('train', preempted, plain / 'store'), *TRAINING, one
  job = slurm.submit('hosts', *train, options=['--ntasks=2'])
  preempt(slurm, job, preempted / 'training/xy/metrics.jsonl', '--batch')
  slurm.finish(job)
  assert slurm.show(job)[0]['Restarts'] == '1'

  train = *flags('train', together, plain / 'store'), *TRAINING, one
  address = f'--coordinator_address=127.0.0.1:{free_port()}'
  who = [f'--process_id={i}' for i in range(2)]
  finish(*(start_program(*train, address, '--num_processes=2', i) for i in who))
  jax.tree.map(np.testing.assert_array_equal, variables(preempted), variables(together))
  first, *_ = watching.rows(preempted / 'training/xy')
  alone, *_ = watching.rows(plain / 'training/xy')
  for name in ('loss', 'dice', 'gradient_norm', 'update_norm', 'parameter_norm'):
    assert first[name] == pytest.approx(alone[name], rel=1e-3), name


def test_folds_have_their_own_workdirs_and_patients(slurm, plain, tmp_path):
  train = (
    *flags('train', tmp_path, plain / 'store'),
    "--config.training.views=('xy','yz')",
    '--config.training.epochs=1',
  )
  views = slurm.submit('folds', *train, options=['--array=0-3'], FOLDS='2')
  models = slurm.submit(
    'folds', *train, options=['--array=0-1'], after=views, FOLDS='2'
  )
  slurm.finish(views, models)
  for fold in range(2):
    workdir = tmp_path / f'fold-{fold}'
    assert json.loads((workdir / 'train.json').read_text())['fold'] == f'{fold}/2'
    assert set(variables(workdir)) == {'xy', 'yz'}


def test_a_job_that_somebody_cancels_does_not_come_back(slurm, plain, tmp_path):
  job = slurm.submit('job', *flags('train', tmp_path, plain / 'store'), *TRAINING)
  slurm.wait((tmp_path / 'training/xy/metrics.jsonl').exists, job)
  slurm.command('scancel', job)
  queue = ('squeue', '--noheader', f'--jobs={job}')
  slurm.wait(lambda: not slurm.command(*queue))
  (shown,) = slurm.show(job)
  assert (shown['JobState'], shown['Restarts']) == ('CANCELLED', '0')
  assert 'stopped by SIGTERM: view xy, step ' in slurm.log(job)
