"""Measures what stages cost on this machine: time, memory and rate."""

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError
from covid3way.jobs import throughput
from covid3way.jobs.batch import peak_bytes
from covid3way.jobs.laws import location_of, simulator_settings
from covid3way.jobs.series import anatomy_of
from covid3way.phantom.plain import plain_chest
from covid3way.scans.files import write_json
from covid3way.simulator import histogram, population, trajectory
from covid3way.simulator.fit import fit
from covid3way.simulator.prior import Location
from covid3way.simulator.state import Anatomy, Settings, State


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `benchmark.json`, a list of rows, and prints them, as they come.

  Another run measures again and replaces them.
  """
  settings, measures, rows = config.benchmark, [], []
  simulator = simulator_settings(config.simulator), location_of(config.simulator)
  for stage, case in settings.cases:
    if stage == 'train':
      how = throughput.parse(case), config.training.to_dict(), settings.steps
      measures.append((stage, case, functools.partial(throughput.measure, *how)))
    else:
      how = stage, *_parse(stage, case), *simulator
      how = *how, settings.transitions, settings.repeats
      measures.append((stage, case, functools.partial(_measure, *how)))
  told = None
  for stage, case, measure in progress.track(measures, what='benchmark'):
    # A process of its own: nothing compiled yet, and its peak is the stage's.
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as process:
      row = {'stage': stage, 'case': case, **process.submit(measure).result()}
    rows.append(row)
    if tuple(row) != told:
      told = tuple(row)
      print(_line(told))
    print(_line(row.values()))
    write_json(workdir / 'benchmark.json', rows)


def _parse(stage: str, case: str) -> tuple[int, float]:
  """'512-03' -> 512 voxels a side, 3 % of the lung infected; without it 3 %.

  Raises:
    ConfigError: it is no such thing.
  """
  side, _, percent = case.partition('-')
  if stage in _STAGES and side.isdecimal() and (percent or '3').isdecimal():
    return int(side), int(percent or 3) / 100
  stages = ', '.join((*_STAGES, 'train'))
  remedy = f'stages are {stages}; cases are e.g. 128 or 512-03'
  raise ConfigError('config.benchmark.cases', f'{stage!r}, {case!r}', remedy)


def _line(values: Iterable[Any]) -> str:
  told = [f'{v:.4g}' if isinstance(v, float) else str(v) for v in values]
  return ' '.join(word.rjust(9) for word in told)


def _simulate(
  state: State, anatomy: Anatomy, settings: Settings, transitions: int
) -> Callable[[], float]:
  """T(W) on a volume; gives voxel updates."""
  w = jax.tree.map(jnp.float32, settings.law.parameters())
  key = jax.random.key(0)

  def simulate():
    after, infected = trajectory.observe(
      key, state, w, anatomy, settings, steps=transitions, what=_count
    )
    after.signal.block_until_ready()
    return float(infected.sum(dtype=np.float64))

  return simulate


def _count(signal: jax.Array, infection: jax.Array) -> jax.Array:
  return infection.sum()


def _fit(
  state: State, _: Anatomy, settings: Settings, transitions: int
) -> Callable[[], float]:
  """W out of the histograms of a scan and of what the law makes of it; gives pairs."""
  law = settings.law
  before = histogram.counts(np.asarray(state.signal)[np.asarray(state.infection)])
  w = law.parameters(growth=0.005, conversion=0.12, absorption=0.0007)
  after = np.asarray(population.evolve(w, before, transitions, law))
  return lambda: fit(before, after, transitions, law=law) and 1


# What a stage does, and what its rate counts.
_STAGES = {'simulate': (_simulate, 'voxel updates/s'), 'fit': (_fit, 'pairs/s')}


def _measure(
  stage: str,
  n: int,
  share: float,
  settings: Settings,
  location: Location,
  transitions: int,
  repeats: int,
) -> dict[str, Any]:
  """Runs a stage, which tells how much it did, once cold and some times warm.

  On an n^3 standard space with `share` of the lung infected.
  """
  make, unit = _STAGES[stage]
  work = make(*_chest(n, share, location), settings, transitions)
  jax.config.update('jax_enable_compilation_cache', False)
  seconds = []
  for _ in range(1 + repeats):
    start = time.monotonic()
    amount = work()
    seconds.append(time.monotonic() - start)
  warm = statistics.median(seconds[1:])
  device = jax.devices()[0]
  return {
    'device': device.device_kind,
    'cold_s': round(seconds[0], 2),
    'warm_s': round(warm, 2),
    'peak_mib': round(peak_bytes(device) / 2**20, 1),
    'rate': float(f'{amount / warm:.4g}'),
    'rate_unit': unit,
  }


def _chest(n: int, share: float, location: Location) -> tuple[State, Anatomy]:
  """The plain chest as the simulator takes it."""
  signal, lungs, infection = plain_chest(n, share)
  state = State(jnp.asarray(signal), jnp.asarray(infection))
  return state, anatomy_of(signal, lungs, infection, lungs, location)
