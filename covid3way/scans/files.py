"""Files and folders appear whole or not at all: write aside, then rename."""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covid3way.base import StorageError

_FULL = {
  errno.ENOSPC: 'the disk is full',
  errno.EDQUOT: 'the quota is used up',
  errno.EFBIG: 'the file is larger than the system allows',
  errno.EROFS: 'the file system is read-only',
  errno.EACCES: 'writing is not permitted',
}


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
  """Tells a disk's refusal to write under `path` from all other errors.

  Raises:
    StorageError: the disk refused a write.
  """
  try:
    yield
  except Exception as error:
    if reason := _refusal(error):
      remedy = 'free space or choose another --workdir, then run the same command again'
      raise StorageError(str(path), reason, remedy) from error
    raise


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """Gives a name to write a file or folder under; renames it when the block is done.

  On any error what was written is removed, and nothing appears under `path`.

  Raises:
    StorageError: the disk refused a write.
  """
  aside = _aside(path)
  with storing(path):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      yield aside
      _replace(aside, path)
    except BaseException:
      _remove(aside)
      raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
  """Writes indented JSON, whole."""
  with whole(path) as aside:
    aside.write_text(_indented(value))


def write_json_once(path: Path, value: Mapping[str, Any]) -> None:
  """Writes indented JSON, whole, unless the file is there: the first writer wins.

  Raises:
    StorageError: the disk refused a write.
  """
  if path.exists():
    return
  aside = _aside(path)
  with storing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      aside.write_text(_indented(value))
      _link(aside, path)
    except FileExistsError:  # Somebody else was first, just now.
      pass
    finally:
      _remove(aside)


def _indented(value: Mapping[str, Any]) -> str:
  return json.dumps(value, indent=2) + '\n'


def _link(aside: Path, path: Path) -> None:
  """Lets a file appear under another name, too, unless that is taken."""
  try:
    os.link(aside, path)
  except FileExistsError:
    raise
  except OSError:  # This file system has no hard links.
    os.replace(aside, path)


def _aside(path: Path) -> Path:
  """A name beside `path` that no other process uses, on whatever machine."""
  return path.with_name(f'.{secrets.token_hex(4)}.partial.{path.name}')


def _replace(aside: Path, path: Path) -> None:
  if aside.is_dir() and path.is_dir():
    shutil.rmtree(path)  # A folder cannot be renamed onto one that is not empty.
  os.replace(aside, path)


def _remove(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _refusal(error: BaseException) -> str | None:
  """Why the disk refused, or None if this error is about something else."""
  if isinstance(error, OSError) and error.errno:
    return _FULL.get(error.errno)
  # pydicom, tensorstore and orbax keep only the system's words, inside their own.
  return next((r for e, r in _FULL.items() if os.strerror(e) in str(error)), None)
