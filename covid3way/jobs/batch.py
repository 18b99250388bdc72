"""What jobs share: required inputs, a workdir's settings, work over many scans."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, Covid3wayError
from covid3way.scans.files import write_json
from covid3way.scans.manifest import ManifestRow


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


class SomeScansFailedError(Exception):
  """Some scans of a batch failed; the rest is done. Ends with exit code 1."""


def for_each_scan(
  rows: Sequence[ManifestRow],
  work: Callable[[ManifestRow], None],
  *,
  what: str,
  workdir: Path,
) -> None:
  """Does `work` for each scan; names those that fail in `failures.json`.

  Raises:
    Covid3wayError: the only scan there is failed.
    SomeScansFailedError: some of several failed.
  """
  failures = {}
  for number, row in enumerate(progress.track(rows, what=what), start=1):
    try:
      work(row)
    except Exception as error:  # Even a defect of ours must not cost the others.
      if len(rows) == 1:
        raise
      known = isinstance(error, Covid3wayError)
      told = str(error) if known else f'{row.scan_id}: {type(error).__name__}: {error}'
      failures[row.scan_id] = told
      logging.debug('%s', traceback.format_exc())
    outcome = failures.get(row.scan_id, f'{row.scan_id}: done')
    progress.say(f'{what} {number}/{len(rows)}: {outcome}')
  report = workdir / 'failures.json'
  report.unlink(missing_ok=True)
  if failures:
    write_json(report, failures)
    raise SomeScansFailedError(
      f'{len(failures)} of {len(rows)} scans failed, see {report}'
    )
