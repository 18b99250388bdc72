"""Measures what stages cost on this machine, and how near to its limits they are."""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
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
from covid3way.evaluation.costs import cost_by_size
from covid3way.jobs import memory, peers, stages, throughput
from covid3way.jobs.batch import peak_bytes
from covid3way.scans.files import whole, write_json

_KEEPING = ('networks', 'predict')  # As the predict job does; so does `throughput`.
_COPIED = 2**26  # float32 values.
_SIDE = 4096  # Of the matrices.


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `benchmark.json`, a list of rows, and `benchmark.png`, cost against size.

  Another run measures again and replaces them. The first row is the machine itself: a
  large copy and a large matrix product, by which the shares of all others are reckoned.
  """
  rows, told = [], None
  measures = [
    ('machine', '', _machine),
    *(_measure_of(*c, config) for c in _cases(config)),
  ]
  for stage, case, measure in progress.track(measures, what='benchmark'):
    # A process of its own: nothing compiled yet, and its peak is the stage's.
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as process:
      limits = rows[0] if rows else {}
      row = process.submit(measure, limits).result()
    rows.append({'stage': stage, 'case': case, **row})
    if tuple(rows[-1]) != told:
      told = tuple(rows[-1])
      print(_line(told))
    print(_line(rows[-1].values()))
    write_json(workdir / 'benchmark.json', rows)
  with whole(workdir / 'benchmark.png') as aside:
    cost_by_size(aside, rows[1:])


def _cases(config: ConfigDict) -> list[tuple[str, str]]:
  """(stage, case) pairs, all of which exist.

  Raises:
    ConfigError: one does not.
  """
  known = {*stages.STAGES, *peers.STAGES, 'train'}
  for stage, case in config.benchmark.cases:
    if stage not in known:
      raise ConfigError(
        'config.benchmark.cases', repr(stage), f'stages are {", ".join(sorted(known))}'
      )
    if stage == 'train':
      throughput.parse(case)
    else:
      stages.parse(stage, case)
  return list(config.benchmark.cases)


def _measure_of(
  stage: str, case: str, config: ConfigDict
) -> tuple[str, str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
  if stage == 'train':
    how = throughput.parse(case), config.training.to_dict(), config.benchmark.steps
    return stage, case, functools.partial(throughput.measure, *how)
  return stage, case, functools.partial(_measure, stage, case, config.to_dict())


def _line(values: Iterable[Any]) -> str:
  told = [f'{v:.4g}' if isinstance(v, float) else str(v) for v in values]
  return ' '.join(word.rjust(9) for word in told)


def _machine(_: Mapping[str, Any]) -> dict[str, Any]:
  """The ceilings: bytes read and written by a copy, operations of a matrix product."""
  device = jax.devices()[0]
  values = jnp.zeros(_COPIED)
  target = np.empty(_COPIED, np.float32)
  if device.platform == 'cpu':  # XLA's own copy also has to be given new memory.
    copy = functools.partial(np.copyto, target, np.asarray(values))
  else:
    negative = jax.jit(jnp.negative)
    copy = lambda: negative(values).block_until_ready()  # noqa: E731
  square, product = jnp.ones((_SIDE, _SIDE)), jax.jit(jnp.dot)
  multiply = lambda: product(square, square).block_until_ready()  # noqa: E731
  return {
    'device': device.device_kind,
    'copy_gb_per_s': throughput.rounded(8e-9 * _COPIED / min(_seconds(copy, 6))),
    'product_gflop_per_s': throughput.rounded(
      2e-9 * _SIDE**3 / min(_seconds(multiply, 6))
    ),
  }


def _seconds(work: Callable[[], Any], times: int) -> list[float]:
  found = []
  for _ in range(times):
    start = time.monotonic()
    work()
    found.append(time.monotonic() - start)
  return found


def _measure(
  stage: str, case: str, settings: dict[str, Any], limits: Mapping[str, Any]
) -> dict[str, Any]:
  """Runs a stage, which tells how much it did, once cold and some times warm."""
  config = ConfigDict(settings)
  if stage in _KEEPING:
    memory.keep()
  jax.config.update('jax_enable_compilation_cache', False)
  with tempfile.TemporaryDirectory() as folder:
    kinds = peers if stage in peers.STAGES else stages
    work = kinds.make(stage, case, config, Path(folder))
    start = time.monotonic()
    amount = work.run()
    cold = time.monotonic() - start
    warm = statistics.median(_seconds(work.run, config.benchmark.repeats))
    device = jax.devices()[0]
    row = {
      'device': device.device_kind,
      'cold_s': round(cold, 2),
      'warm_s': throughput.rounded(warm),
      'peak_mib': round(peak_bytes(device) / 2**20, 1),
      'rate': throughput.rounded(amount / warm),
      'rate_unit': work.unit,
      **_bound(amount * work.bytes_each, amount * work.operations_each, warm, limits),
    }
    return row | work.further(warm)


def _bound(
  moved: float, operations: float, seconds: float, limits: Mapping[str, Any]
) -> dict[str, Any]:
  """What a stage has to move and to count, and how near to the machine's limit it is.

  `share_of_limit` is the time that the larger of both takes at the machine's ceilings,
  over the time that was taken; None where neither is known.
  """
  by_copy = moved / 1e9 / limits['copy_gb_per_s']
  by_product = operations / 1e9 / limits['product_gflop_per_s']
  least = max(by_copy, by_product)
  return {
    'moved_gb': throughput.rounded(moved / 1e9),
    'gflop': throughput.rounded(operations / 1e9),
    'share_of_limit': throughput.rounded(least / seconds) if least else None,
  }
