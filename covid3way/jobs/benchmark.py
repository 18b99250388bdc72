"""Measures what stages cost on this machine: time, memory and rate."""

import resource
import statistics
import time
from collections.abc import Callable
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
from covid3way.jobs.laws import location_of, simulator_settings
from covid3way.jobs.series import anatomy_of
from covid3way.scans.files import write_json
from covid3way.simulator import histogram, population, trajectory
from covid3way.simulator.fit import fit
from covid3way.simulator.prior import Location
from covid3way.simulator.state import Anatomy, Settings, State
from covid3way.standard.space import StandardSpace

_COLUMNS = (
  'stage', 'case', 'device', 'cold_s', 'warm_s', 'peak_mib', 'rate', 'rate_unit'
)  # fmt: skip
_LESION_MM = (4.0, 25.0)  # Radii.


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `benchmark.json`, a list of rows, and prints them, as they come.

  Another run measures again and replaces them.
  """
  settings = config.benchmark
  cases = [_parse(stage, case) for stage, case in settings.cases]
  simulator = simulator_settings(config.simulator), location_of(config.simulator)
  print(_line(dict(zip(_COLUMNS, _COLUMNS, strict=True))))
  rows = []
  for stage, case, parsed in progress.track(cases, what='benchmark'):
    # A process of its own: nothing compiled yet, and its peak is the stage's.
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as process:
      work = process.submit(
        _measure, stage, *parsed, *simulator, settings.transitions, settings.repeats
      )
      rows.append({'stage': stage, 'case': case, **work.result()})
    print(_line(rows[-1]))
    write_json(workdir / 'benchmark.json', rows)


def _parse(stage: str, case: str) -> tuple[str, str, tuple[int, float]]:
  """'512-03' -> 512 voxels a side, 3 % of the lung infected; without it 3 %.

  Raises:
    ConfigError: it is no such thing.
  """
  side, _, percent = case.partition('-')
  if stage in _STAGES and side.isdecimal() and (percent or '3').isdecimal():
    return stage, case, (int(side), int(percent or 3) / 100)
  remedy = f'stages are {", ".join(_STAGES)}; cases are e.g. 128 or 512-03'
  raise ConfigError('config.benchmark.cases', f'{stage!r}, {case!r}', remedy)


def _line(row: dict[str, Any]) -> str:
  told = [f'{v:.4g}' if isinstance(v, float) else str(v) for v in row.values()]
  return ' '.join(
    word.rjust(w) for word, w in zip(told, (9, 7, 6, 8, 8, 9, 10, 17), strict=True)
  )


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
    'peak_mib': round(_peak_mib(device), 1),
    'rate': float(f'{amount / warm:.4g}'),
    'rate_unit': unit,
  }


def _peak_mib(device: jax.Device) -> float:
  """Of the accelerator; on a CPU, of the whole process."""
  if stats := device.memory_stats():
    return stats['peak_bytes_in_use'] / 2**20
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _chest(n: int, share: float, location: Location) -> tuple[State, Anatomy]:
  """Two ellipsoid lungs of 4.6 l in an n^3 standard space, with round lesions."""
  space, rng = StandardSpace((n, n, n)), np.random.default_rng(0)
  mm = np.array(space.spacing_mm)
  x, y, z = ((np.arange(n) - n / 2) * s for s in mm)
  across = (y[:, None] / 80) ** 2 + (z / 125) ** 2
  lungs = np.stack([across < 1 - ((abs(each) - 70) / 55) ** 2 for each in x])
  inside, wanted = np.flatnonzero(lungs), share * np.count_nonzero(lungs)
  infection, count = np.zeros_like(lungs), 0
  while count < wanted:
    centre = np.array(np.unravel_index(rng.choice(inside), lungs.shape))
    # The last lesions are as small as what is missing.
    most = ((wanted - count) * mm.prod() / 4) ** (1 / 3) + mm.max()
    radius = min(rng.uniform(*_LESION_MM), most)
    reach = np.ceil(radius / mm).astype(int)
    low, high = np.maximum(centre - reach, 0), centre + reach + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offset = zip(np.ogrid[box], centre, mm, strict=True)
    ball = sum(((o - c) * s) ** 2 for o, c, s in offset) < radius**2
    new = ball & lungs[box] & ~infection[box]
    infection[box] |= new
    count += np.count_nonzero(new)
  signal = np.full(lungs.shape, -0.2, np.float32)
  signal[infection] = rng.normal(-0.03, 0.04, count).clip(-0.14, 0.2)
  state = State(jnp.asarray(signal), jnp.asarray(infection))
  return state, anatomy_of(signal, lungs, infection, lungs, location)
