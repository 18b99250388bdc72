"""A training that is killed or told to stop ends as if it had not been."""

import json
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from conftest import finish, start_program

from covid3way.training.checkpoints import read_model

STEPS, EPOCHS = 5, 3


def start(workdir, quickstart):
  return start_program(
    '--config=configs/train.py:smoke',
    f'--workdir={workdir}',
    f'--config.input={quickstart / "store"}',
    f'--config.training.steps_per_epoch={STEPS}',
    f'--config.training.epochs={EPOCHS}',
    "--config.training.views=('xy',)",
    env=os.environ | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'},
  )


@pytest.fixture(scope='module')
def undisturbed(quickstart, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  finish(start(workdir, quickstart))
  return workdir


def assert_same(workdir, undisturbed):
  one, other = (read_model(folder / 'model') for folder in (workdir, undisturbed))
  jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
  log = 'training/xy/metrics.jsonl'
  assert (workdir / log).read_text() == (undisturbed / log).read_text()
  assert len((workdir / log).read_text().splitlines()) == EPOCHS


def kept(workdir):
  """Numbers of the steps that are kept, and names of what is being written."""
  folder = workdir / 'training' / 'xy'
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  steps = [int(n.removeprefix('step-')) for n in names if n.startswith('step-')]
  return steps, {n for n in names if '.partial.' in n}


def wait(process, until):
  while process.poll() is None and not until():
    time.sleep(0.001)
  return process.poll() is None


def kill(process):
  process.send_signal(signal.SIGKILL)
  process.communicate()


def test_killed_while_a_checkpoint_is_written_and_right_after(
  quickstart, undisturbed, tmp_path
):
  process = start(tmp_path, quickstart)
  assert wait(process, lambda: kept(tmp_path)[1])
  kill(process)
  process = start(tmp_path, quickstart)
  assert wait(process, lambda: kept(tmp_path)[0])  # Figures are not written yet.
  kill(process)
  assert kept(tmp_path)[0]
  # Its own log may lack what the checkpoint knows.
  left = kept(tmp_path)[1]
  process = start(tmp_path, quickstart)
  assert wait(process, lambda: kept(tmp_path)[1] - left)
  kill(process)
  finish(start(tmp_path, quickstart))
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
  (step,) = kept(tmp_path)[0]
  assert f'step {step} of {STEPS * EPOCHS} is kept' in told
  assert STEPS <= step < STEPS * EPOCHS and not (tmp_path / 'model').exists()
  folder = tmp_path / 'training' / 'xy' / f'step-{step}'
  assert len(json.loads((folder / 'figures.json').read_text())) == step // STEPS
  finish(start(tmp_path, quickstart))
  assert_same(tmp_path, undisturbed)
