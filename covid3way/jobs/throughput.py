"""Slice stacks per second: what the loader gives, what devices take, both together."""

import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError
from covid3way.jobs import memory
from covid3way.jobs.cohort import open_cohort
from covid3way.jobs.feed import reader
from covid3way.jobs.train import recipe_of
from covid3way.networks import inference
from covid3way.phantom.plain import plain_chest
from covid3way.scans import store
from covid3way.training import loop
from covid3way.training.step import Batch, fresh_variables, init_state

_SCANS = 4
_INFECTED = 0.05
_IN_MEMORY = 4  # Batches that the devices alone are given in turn.


def parse(case: str) -> tuple[int, str, int]:
  """'512-bfloat16-8': voxels a side, precision, devices.

  Raises:
    ConfigError: it is no such thing.
  """
  found = re.fullmatch(r'(\d+)-(float32|bfloat16)-(\d+)', case)
  if not found or not int(found[3]):
    remedy = 'use e.g. 512-bfloat16-1: voxels a side, precision, devices'
    raise ConfigError('config.benchmark.cases', f"'train', {case!r}", remedy)
  return int(found[1]), found[2], int(found[3])


def measure(
  case: tuple[int, str, int],
  settings: dict[str, Any],
  steps: int,
  limits: Mapping[str, Any],
) -> dict[str, Any]:
  """Slice stacks per second of the xy view, on plain chests.

  `loader`: batches read and thrown away, nothing cached at the start; `devices`: a
  training on batches that lie in memory; `together`: a training as it is; both after an
  epoch to warm up; `share`: of the slower one that both together reach;
  `share_of_limit`: of what the machine's matrix product would allow, when the way back
  takes twice the operations of the way there.

  Args:
    case: as of `parse`. On a CPU its devices are virtual, and share its cores.
    settings: `config.training`.
    steps: of an epoch.
    limits: the machine's, with `product_gflop_per_s`.

  Raises:
    ConfigError: there are not so many devices.
  """
  side, precision, n = case
  peak = limits['product_gflop_per_s']
  memory.keep()  # As the train job does.
  if n > 1:
    jax.config.update('jax_num_cpu_devices', n)
  devices = jax.devices()[:n]
  if len(devices) < n or settings['batch_size'] % n:
    found = f'{n} devices of {len(devices)}, a batch of {settings["batch_size"]}'
    remedy = 'measure with fewer devices, or change config.training.batch_size'
    raise ConfigError('config.benchmark.cases', found, remedy)
  given = {
    'fold': '',
    'split': '',
    'validation_share': 0.0,
    'simulated_ratio': 0.0,
    'renew_epochs': 0,
    'patience': 0,
    'steps_per_epoch': steps,
    'precision': precision,
  }
  settings = ConfigDict(settings | given)
  with tempfile.TemporaryDirectory() as folder:
    _write_chests(Path(folder), side)
    loader = _loader(Path(folder), settings, steps)
    kept = list(
      itertools.islice(_batches(Path(folder), settings)(range(steps)), _IN_MEMORY)
    )
    alone = _train(
      Path(folder),
      settings,
      lambda numbers: (kept[i % len(kept)] for i in numbers),
      devices,
    )
    together = _train(Path(folder), settings, _batches(Path(folder), settings), devices)
  return {
    'device': devices[0].device_kind,
    'loader_per_s': rounded(loader),
    'devices_per_s': rounded(alone),
    'together_per_s': rounded(together),
    'share': rounded(together / min(loader, alone)),
    'share_of_limit': rounded(alone * _operations(settings, side) / 1e9 / peak),
  }


def _operations(settings: ConfigDict, side: int) -> float:
  """Of one slice stack there and back."""
  features, channels = settings.features, len(settings.offsets_mm)
  stride = 2 ** (len(features) - 1)
  whole = inference.boxes((0, 0), (side, side), (side, side), stride)
  return 3 * inference.operations(features, channels, whole)


def rounded(value: float) -> float:
  """To four digits."""
  return float(f'{value:.4g}')


def _write_chests(folder: Path, side: int) -> None:
  signal, lungs, infection = plain_chest(side, _INFECTED)
  noise = np.random.default_rng(0).normal(0, 0.02, signal.shape)  # As hard to compress.
  volumes = {'signal': signal + noise, 'lungs': lungs, 'infection': infection}
  for number in range(_SCANS):
    name = f'chest-{number}'
    known = {'scan_id': name, 'patient_id': name}
    store.write_group(store.group_path(folder, name), volumes, known)


def _batches(folder: Path, settings: ConfigDict) -> Callable[[range], Iterator[Batch]]:
  """Numbers of steps -> batches, as the train job reads them; a cache of its own."""
  now = progress.Doing('benchmark')
  return reader(open_cohort(folder, settings), 'xy', folder / 'simulated', now)


def _loader(folder: Path, settings: ConfigDict, steps: int) -> float:
  batches, start = _batches(folder, settings)(range(2 * steps)), time.monotonic()
  for _ in batches:
    pass
  return 2 * steps * settings.batch_size / (time.monotonic() - start)


def _train(folder: Path, settings: ConfigDict, batches_of, devices) -> float:
  cohort = open_cohort(folder, settings)
  recipe = recipe_of(cohort, 'xy')
  shape = cohort.spec.sample_shape('xy')
  variables = fresh_variables(recipe.network, jax.random.key(0), shape)
  state = init_state(recipe, variables)
  course = loop.train(
    state,
    recipe,
    batches_of,
    epochs=2,
    steps_per_epoch=settings.steps_per_epoch,
    validation=[],
    on_devices=devices,
    now=progress.Doing('benchmark'),
  )
  *_, (_, _, pace) = course
  return pace.images_per_s
