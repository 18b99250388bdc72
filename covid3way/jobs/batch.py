"""What jobs share: required inputs, a workdir's settings, work over many items."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import logging
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, Covid3wayError
from covid3way.scans.files import write_json
from covid3way.scans.manifest import ManifestRow

Item = TypeVar('Item')


def required(config: ConfigDict, field: str) -> str:
  """A config field that the user has to give.

  Raises:
    ConfigError: it is empty.
  """
  if not config[field]:
    raise ConfigError(f'config.{field}', 'not given', f'add --config.{field}=...')
  return config[field]


def claim(workdir: Path, job: str, settings: Mapping[str, Any]) -> None:
  """Notes the settings a job writes under, so that a later run may go on from there.

  Raises:
    ConfigError: an earlier run wrote there under others.
  """
  path = workdir / f'{job}.json'
  settings = json.loads(json.dumps(settings))
  earlier = json.loads(path.read_text()) if path.exists() else settings
  differ = [k for k in settings | earlier if settings.get(k) != earlier.get(k)]
  if differ:
    raise ConfigError(
      'config',
      f'{", ".join(differ)} differ from the earlier {job} run in {workdir}',
      f'choose another --workdir, or remove what that run wrote and {path.name}',
    )
  write_json(path, settings)


class SomeFailedError(Exception):
  """Some scans or patients of a batch failed; the rest is done: exit code 1."""


def for_each_scan(
  rows: Sequence[ManifestRow],
  work: Callable[[ManifestRow], Any],
  *,
  what: str,
  workdir: Path,
) -> None:
  """`for_each` of the scans of a manifest."""
  for_each({row.scan_id: row for row in rows}, work, what=what, workdir=workdir)


def for_each(
  items: Mapping[str, Item],
  work: Callable[[Item], Any],
  *,
  what: str,
  workdir: Path,
  kind: str = 'scans',
) -> None:
  """Does `work` for each item; names those that fail in `failures.json`.

  Args:
    items: by name.
    work: for one item; skips what is finished.
    what: is done, for the progress lines.
    workdir: of the report.
    kind: what the items are.

  Raises:
    Covid3wayError: the only item there is failed.
    SomeFailedError: some of several failed.
  """
  failures = {}
  for number, (name, item) in enumerate(
    progress.track(list(items.items()), what=what), start=1
  ):
    try:
      work(item)
    except Exception as error:  # Even a defect of ours must not cost the others.
      if len(items) == 1:
        raise
      known = isinstance(error, Covid3wayError)
      told = str(error) if known else f'{name}: {type(error).__name__}: {error}'
      failures[name] = told
      logging.debug('%s', traceback.format_exc())
    outcome = failures.get(name, f'{name}: done')
    progress.say(f'{what} {number}/{len(items)}: {outcome}')
  report = workdir / 'failures.json'
  report.unlink(missing_ok=True)
  if failures:
    write_json(report, failures)
    raise SomeFailedError(
      f'{len(failures)} of {len(items)} {kind} failed, see {report}'
    )
