"""What jobs share: a workdir's settings, work over many items."""

import contextlib
import functools
import importlib
import json
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging

from covid3way import progress
from covid3way.base import ConfigError, Covid3wayError
from covid3way.jobs.usage import Shard
from covid3way.scans.files import (
  read_json,
  sealed,
  sweep,
  write_json,
  write_json_once,
)
from covid3way.scans.manifest import ManifestRow
from covid3way.training.preemption import PreemptedError

Item = TypeVar('Item')

# Errors that tell of the machine alone.
_OF_THE_MACHINE = (MemoryError, BrokenProcessPool, jax.errors.JaxRuntimeError)
_COMPUTING = ('jax', 'flax', 'optax', 'numpy', 'scipy', 'scikit-learn', 'tensorstore')


def named(dotted: str, field: str) -> Any:
  """What a dotted name stands for, `package.module.NAME`.

  Args:
    dotted: the name.
    field: of the config, that holds it.

  Raises:
    ConfigError: it cannot be imported.
  """
  module, _, name = dotted.rpartition('.')
  try:
    return getattr(importlib.import_module(module), name)
  except Exception as error:  # A study's file may hold any mistake.
    raise ConfigError(
      field,
      f'{dotted!r}: {type(error).__name__}: {error}',
      'give package.module.NAME, importable where the program is started',
    ) from error


def versions() -> dict[str, str]:
  """Versions of what computes, for provenance."""
  return {name: metadata.version(name) for name in _COMPUTING}


def peak_bytes(device: jax.Device) -> int:
  """Most memory that was ever in use: an accelerator's, or on a CPU this process's."""
  if stats := device.memory_stats():
    return stats['peak_bytes_in_use']
  try:  # What `getrusage` says a process may have from the one that began it.
    status = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(r'VmHWM:\s+(\d+)', status)[1])
  except (OSError, TypeError):  # Not on Linux.
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if sys.platform == 'darwin' else 1024 * kib


def claim(workdir: Path, job: str, settings: Mapping[str, Any]) -> None:
  """Notes the settings a job writes under, so that a later run may go on from there.

  What killed runs left half-written in the workdir goes, if it is a day old.

  Raises:
    ConfigError: an earlier run wrote there under others.
    DamagedFileError: what it noted is damaged.
  """
  path = workdir / f'{job}.json'
  settings = json.loads(json.dumps(settings))
  sweep(workdir)
  write_json_once(path, sealed(settings))
  earlier = read_json(path, remedy='remove it, and what that run wrote')
  differ = [k for k in settings | earlier if settings.get(k) != earlier.get(k)]
  if differ:
    raise ConfigError(
      'config',
      f'{", ".join(differ)} differ from the earlier {job} run in {workdir}',
      f'choose another --workdir, or remove what that run wrote and {path.name}',
    )


class SomeFailedError(Exception):
  """Some scans or patients of a batch failed; the rest is done: exit code 1."""


def for_each_scan(
  rows: Sequence[ManifestRow],
  work: Callable[[ManifestRow], Any],
  *,
  what: str,
  workdir: Path,
  shard: Shard,
  at_a_time: int = 1,
) -> None:
  """`for_each` of the scans of a manifest."""
  scans = {row.scan_id: row for row in rows}
  for_each(scans, work, what=what, workdir=workdir, shard=shard, at_a_time=at_a_time)


def for_each(
  items: Mapping[str, Item],
  work: Callable[[Item], Any],
  *,
  what: str,
  workdir: Path,
  shard: Shard,
  kind: str = 'scans',
  at_a_time: int = 1,
) -> None:
  """Does `work` for each item of a shard; names those that fail in `shard.report`.

  Args:
    items: by name.
    work: for one item; skips what is finished.
    what: is done, for the progress lines.
    workdir: of the report.
    shard: which items are done.
    kind: what the items are.
    at_a_time: items under way at once, in threads: while one computes, others are read
      and written.

  Raises:
    Covid3wayError: the only item there is failed.
    SomeFailedError: some of several failed.
    PreemptedError: an item was told to stop.
  """
  failures, mine = {}, list(items.items())[shard.index :: shard.of]
  with _started(work, mine, at_a_time) as started:
    for number, name in enumerate(progress.track(list(started), what=what), start=1):
      try:
        started[name]()
      except PreemptedError:
        raise
      except Exception as error:  # Even a defect of ours must not cost the others.
        if len(items) == 1:
          raise
        failures[name] = _told(name, error)
        logging.debug('%s', traceback.format_exc())
      outcome = failures.get(name, f'{name}: done')
      progress.say(f'{what} {number}/{len(mine)}: {outcome}')
  # The whole job has tried again what failed in its shards.
  for path in workdir.glob(f'failures-{what}-*of*.json') if shard.is_whole else ():
    path.unlink(missing_ok=True)
  report_failures(failures, len(mine), workdir / shard.report(what), kind=kind)


@contextlib.contextmanager
def _started(
  work: Callable[[Item], Any], items: Sequence[tuple[str, Item]], at_a_time: int
) -> Iterator[dict[str, Callable[[], Any]]]:
  """By name, what waits for an item's work, or does it."""
  if min(at_a_time, len(items)) <= 1:
    yield {name: functools.partial(work, item) for name, item in items}
    return
  with ThreadPoolExecutor(at_a_time) as threads:
    try:
      yield {name: threads.submit(work, item).result for name, item in items}
    finally:
      threads.shutdown(cancel_futures=True)


def _told(name: str, error: Exception) -> str:
  if isinstance(error, Covid3wayError):
    return str(error)
  kind = type(error).__name__
  if isinstance(error, _OF_THE_MACHINE):
    return f'{name}: {kind}: {error}'
  # Words of another one may hold anything, such as a path named after a patient.
  return f'{name}: {kind}, a defect of this program; see --debug'


def report_failures(
  failures: Mapping[str, str], count: int, path: Path, *, kind: str = 'scans'
) -> None:
  """Writes what failed, by name, in place of what an earlier run wrote.

  Raises:
    SomeFailedError: there is something.
  """
  path.unlink(missing_ok=True)
  if failures:
    write_json(path, failures)
    raise SomeFailedError(f'{len(failures)} of {count} {kind} failed, see {path}')
