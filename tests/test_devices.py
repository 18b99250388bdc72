"""However many devices and processes share a training, it is the same one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import CACHE, ROOT, finish, free_port

from covid3way.training import devices


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match='6 rows cannot be shared by 4'):
    devices._share({'stacks': np.zeros((6, 2))}, 4)


_DEVICES = """
import json, sys
import jax, numpy as np, optax
from covid3way.networks.unet import UNet
from covid3way.training import devices, loop, losses
from covid3way.training import step as steps
from covid3way.training.distort import Distortion

coordinator, processes, process = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if processes > 1:
  devices.join(coordinator, processes, process)
counts = [1, 2, 4] if processes == 1 else [2]
batches = []
rng = np.random.default_rng(0)
for _ in range(3):
  stacks = rng.normal(size=(8, 16, 16, 5)).astype(np.float32)
  labels = stacks[..., 2] > .5
  # Unlike shares: one device's pixels must not weigh more than another's.
  weights = rng.random(labels.shape) < rng.random((8, 1, 1))
  batches.append({
    'stacks': stacks, 'labels': labels, 'weights': weights,
    'seeds': rng.integers(2**32, size=8, dtype=np.uint32),
    'pixels_mm': np.full((8, 2), [1, 1.5], np.float32), 'stop': np.zeros(8, bool),
  })
recipe = steps.Recipe(
  UNet(features=(4, 8)), optax.sgd(0.1, momentum=0.9), lambda step: 0.1,
  losses.cross_entropy_and_dice, (1, 3),
  Distortion(True, 10.0, 0.0, 0.0, 8, 0.0, 0.0, 0.1), average=0.9)
rows = list(devices.my_rows(8))
results = []
fresh = steps.fresh_variables(recipe.network, jax.random.key(0), (2, 2, 5))
for n in counts:
  state = steps.init_state(recipe, fresh)
  step = devices.parallel(steps.make_step(recipe), jax.devices()[:n])
  evaluate = devices.parallel(steps.make_evaluate(recipe.network), jax.devices()[:n])
  for batch in batches:
    state, _ = step(state, {k: v[rows] for k, v in batch.items()})
  mine = {k: batches[0][k][rows] for k in ('stacks', 'labels', 'weights')}
  dice = loop.validation_dice(evaluate, state.variables, [mine])
  parts = (state.variables['params'], state.variables['batch_stats'], state.averaged,
           state.opt_state, state.sums)
  flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for p in parts]
  results.append([f.tolist() for f in flat] + [[dice]])
start = jax.tree.leaves(fresh['params'])
moved = np.concatenate([np.ravel(x) for x in start])
with open(sys.argv[4], 'w') as file:
  json.dump({'devices': jax.device_count(), 'results': results,
             'moved': float(np.abs(moved - results[-1][0]).max())}, file)
devices.leave()
"""


def train_in_processes(n, folder, *, devices_each):
  """What each of n processes that train together found."""
  coordinator = f'127.0.0.1:{free_port()}'
  flags = f'--xla_force_host_platform_device_count={devices_each}'
  found = [folder / f'{n}-{i}.json' for i in range(n)]
  started = [
    subprocess.Popen(
      [
        sys.executable,
        '-W',
        'error',
        '-c',
        _DEVICES,
        coordinator,
        str(n),
        str(i),
        path,
      ],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags} | CACHE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, path in enumerate(found)
  ]
  finish(*started)
  return [json.loads(path.read_text()) for path in found]


def test_devices_and_processes_train_to_the_same(tmp_path):
  """1, 2, 4 devices; 2 processes: parameters, statistics, average, optimiser, Dice."""
  (known,) = train_in_processes(1, tmp_path, devices_each=4)
  assert known['devices'] == 4 and known['moved'] > 1e-2
  one, *others = known['results']
  first, second = train_in_processes(2, tmp_path, devices_each=1)
  assert first['devices'] == second['devices'] == 2
  assert first['results'] == second['results']
  for other in (*others, *first['results']):
    for part, expected in zip(other, one, strict=True):
      np.testing.assert_allclose(part, expected, rtol=0, atol=1e-5)
