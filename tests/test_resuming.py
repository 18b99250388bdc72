"""A training that is killed or told to stop ends as if it had not been."""

import dataclasses
import functools
import os
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import finish, start_program

from covid3way.jobs import watching
from covid3way.segmentation.model import read_model
from covid3way.training.loop import Pace

STEPS, EPOCHS = 5, 3


def start(workdir, quickstart, *flags, devices=1):
  count = f'--xla_force_host_platform_device_count={devices}'
  return start_program(
    '--config=configs/train.py:smoke',
    f'--workdir={workdir}',
    f'--config.input={quickstart / "store"}',
    f'--config.training.steps_per_epoch={STEPS}',
    f'--config.training.epochs={EPOCHS}',
    "--config.training.views=('xy',)",
    '--config.training.ema_decay=0.9',
    *flags,
    env=os.environ
    | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'XLA_FLAGS': count},
  )


@pytest.fixture(scope='module')
def undisturbed(quickstart, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  finish(start(workdir, quickstart))
  return workdir


def log_of(workdir):
  """What its log says, but for how fast it went."""
  rows = watching.rows(workdir / 'training' / 'xy')
  pace = [field.name for field in dataclasses.fields(Pace)]
  return [{k: v for k, v in row.items() if k not in pace} for row in rows]


def state_of(workdir, step):
  path = workdir / 'training' / 'xy' / f'step_{step}' / 'state'
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path)


def assert_same(workdir, undisturbed):
  """Weights bit for bit, the log, and so the model directory."""
  one, other = (read_model(folder / 'model') for folder in (workdir, undisturbed))
  jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
  assert one.sha256 == other.sha256
  # The model is of the best epoch; the last shows what all of them have done.
  last, wanted = (state_of(folder, STEPS * EPOCHS) for folder in (workdir, undisturbed))
  jax.tree.map(np.testing.assert_array_equal, last, wanted)
  assert log_of(workdir) == log_of(undisturbed)
  assert len(kept(workdir)[0]) <= 2  # The best and the last, whatever was before.
  assert len(log_of(workdir)) == EPOCHS


def kept(workdir):
  """Numbers of the steps that are kept, and names of what is being written."""
  folder = workdir / 'training' / 'xy'
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  steps = [int(n[5:]) for n in names if re.fullmatch(r'step_\d+', n)]
  return steps, {n for n in names if 'checkpoint-tmp' in n}


def wait(process, until):
  while process.poll() is None and not until():
    time.sleep(0.001)
  return process.poll() is None


def kill(process):
  process.send_signal(signal.SIGKILL)
  process.communicate()


@pytest.mark.slow
def test_killed_between_an_epoch_and_its_checkpoint_while_and_after_it_is_written(
  quickstart, undisturbed, tmp_path
):
  process = start(tmp_path, quickstart)
  while 'epoch 1/' not in process.stderr.readline():
    assert process.poll() is None
  kill(process)
  began = kept(tmp_path)[0]
  process = start(tmp_path, quickstart)
  assert wait(process, lambda: kept(tmp_path)[1])
  kill(process)
  process = start(tmp_path, quickstart)
  assert wait(process, lambda: set(kept(tmp_path)[0]) - set(began))
  kill(process)
  finish(start(tmp_path, quickstart))
  assert not kept(tmp_path)[1]
  assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_at_ten_random_moments(quickstart, undisturbed, tmp_path):
  """Each after a random number of checkpoints and a random while."""
  moments, killed = random.Random(0), 0
  for number in range(10):
    workdir, after = tmp_path / str(number), moments.randrange(EPOCHS)
    process = start(workdir, quickstart)
    wait(process, lambda w=workdir, n=after: max(kept(w)[0], default=0) >= n * STEPS)
    time.sleep(moments.uniform(0, 0.2 if after else 4.0))
    killed += process.poll() is None
    kill(process)
    finish(start(workdir, quickstart))
    assert_same(workdir, undisturbed)
  assert killed >= 5


def test_a_finished_training_writes_the_log_that_it_was_killed_before(
  quickstart, undisturbed, tmp_path
):
  workdir = shutil.copytree(undisturbed, tmp_path / 'copy')
  shutil.rmtree(workdir / 'model')
  (workdir / 'training' / 'xy' / 'metrics.jsonl').unlink()
  finish(start(workdir, quickstart))
  assert_same(workdir, undisturbed)


def test_sigterm_keeps_the_step_reached_and_says_how_to_go_on(
  quickstart, undisturbed, tmp_path
):
  process = start(tmp_path, quickstart)
  assert wait(process, lambda: kept(tmp_path)[0])
  process.send_signal(signal.SIGTERM)
  (told,) = finish(process)
  told = told.splitlines()[-1]
  assert 'stopped by SIGTERM: view xy, step' in told
  assert 'the same command goes on from there' in told
  step = max(kept(tmp_path)[0])
  assert f'step {step} of {STEPS * EPOCHS} is kept' in told
  assert STEPS <= step < STEPS * EPOCHS and not (tmp_path / 'model').exists()
  assert len(log_of(tmp_path)) == step // STEPS
  finish(start(tmp_path, quickstart))
  assert_same(tmp_path, undisturbed)


# A step in proportion to the gradient: Adam would blow up the last digit of a tiny one.
SGD = (
  '--config.training.optimiser=optax.sgd',
  '--config.training.learning_rate=0.003',
)


@pytest.mark.slow
def test_four_devices_train_as_one_does_and_may_become_one_on_the_way(
  quickstart, tmp_path
):
  one, four, fewer = (tmp_path / name for name in ('one', 'four', 'fewer'))
  finish(
    start(one, quickstart, *SGD),
    start(four, quickstart, *SGD, devices=4),
  )
  process = start(fewer, quickstart, *SGD, devices=4)
  assert wait(process, lambda: kept(fewer)[0])
  kill(process)
  assert max(kept(fewer)[0]) < STEPS * EPOCHS
  finish(start(fewer, quickstart, *SGD))
  wanted, close = state_of(one, STEPS * EPOCHS), np.testing.assert_allclose
  rows = watching.rows(one / 'training' / 'xy')
  assert sum(STEPS * row['update_norm'] for row in rows) > 1e-2  # They did move.
  for other in (four, fewer):
    got = state_of(other, STEPS * EPOCHS)
    for part in ('variables', 'averaged'):
      for kind, rtol in (('params', 0), ('batch_stats', 1e-4)):
        near = functools.partial(close, rtol=rtol, atol=1e-5)
        jax.tree.map(near, got[part][kind], wanted[part][kind])
    params, known = (
      read_model(w / 'model').variables['xy']['params'] for w in (other, one)
    )
    jax.tree.map(functools.partial(close, rtol=0, atol=1e-5), params, known)
