"""Files and folders appear whole or not at all: write aside, then rename.

What was written reaches the disk before it gets its name, so that a loss of power
leaves the old or the new, too, and never an empty file. On a local SSD that takes 0.2
ms per small file and 15 ms per 100 MB. Only a folder that is written again is absent
for a moment, between the old one's going and the new one's coming: who reads, or loses
power, just then finds none, and never a mixture.

A killed process leaves what it was writing under `.<8 hex digits>.partial.<name>`, and
nobody takes it for finished; `sweep` removes it when it is a day old.

JSON that later steps compute with is sealed: its `checksum` is that of all the rest, so
that a damaged number is told and not used. Without one it is anybody's own file, as are
tables and splits, which people edit.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covid3way.base import Covid3wayError, DamagedFileError, InputError, StorageError

SEAL = 'checksum'
_ASIDE = re.compile(r'\.[0-9a-f]{8}\.partial\.')
_STALE_S = 24 * 3600.0
_FULL = {
  errno.ENOSPC: 'the disk is full',
  errno.EDQUOT: 'the quota is used up',
  errno.EFBIG: 'the file is larger than the system allows',
  errno.EROFS: 'the file system is read-only',
  errno.EACCES: 'writing is not permitted',
  errno.EPERM: 'writing is not permitted',
  errno.EIO: 'the disk reports an error',
  errno.ENOTDIR: 'a file is where a folder should be',
  errno.EEXIST: 'a file is where a folder should be',
  errno.EISDIR: 'a folder is where a file should be',
}


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
  """Tells a disk's refusal to write under `path` from all other errors.

  An error that has a name already keeps it, whatever it speaks of.

  Raises:
    StorageError: the disk refused a write.
  """
  try:
    yield
  except Covid3wayError:
    raise
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
      _flush(aside)
      _replace(aside, path)
      _flush_folder(path.parent)
    except BaseException:
      _remove(aside)
      raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
  """Writes indented JSON, whole."""
  with whole(path) as aside:
    aside.write_text(_indented(value))


def read_json(path: Path, *, remedy: str) -> Any:
  """Reads JSON, and checks its seal if it has one, which is left out of the result.

  Raises:
    InputError: the file is absent or cannot be read.
    DamagedFileError: it is not JSON, or not what was written.
  """
  try:
    value = json.loads(path.read_bytes())
  except OSError as error:
    raise InputError(str(path), f'cannot be read ({error.strerror})', remedy) from error
  except (ValueError, RecursionError) as error:
    raise DamagedFileError(str(path), 'not JSON, or damaged', remedy) from error
  if not isinstance(value, dict) or SEAL not in value:
    return value
  content = {key: each for key, each in value.items() if key != SEAL}
  if value[SEAL] != checksum(content):
    raise DamagedFileError(
      str(path),
      'changed since it was written, or damaged',
      f'{remedy}; if you changed it, take out its {SEAL!r}',
    )
  return content


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """JSON values with a `checksum` of them all, which `read_json` checks."""
  return {**value, SEAL: checksum(value)}


def checksum(value: Any) -> str:
  """SHA-256 of JSON values, however they are laid out and ordered."""
  plain = json.loads(json.dumps(value))  # Tuples are lists, numbers as keys are text.
  told = json.dumps(plain, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(told.encode()).hexdigest()


def sha256(path: Path) -> str:
  """Of a file."""
  with path.open('rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()


def sweep(folder: Path) -> None:
  """Removes what killed processes left under a folder, if it is a day old."""
  limit = time.time() - _STALE_S
  for here, folders, names in os.walk(folder):
    for name in filter(_ASIDE.match, (*folders, *names)):
      left = Path(here, name)
      with contextlib.suppress(OSError):  # Somebody else removes it, too.
        if left.lstat().st_mtime < limit:
          _remove(left)
    folders[:] = [f for f in folders if not f.startswith('.') and '.zarr' not in f]


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
      _flush(aside)
      _link(aside, path)
      _flush_folder(path.parent)
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
  """Gives what was written its name, whatever is there, and whoever does so, too."""
  while True:
    try:
      os.replace(aside, path)
      return
    except OSError as error:
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
    # A folder cannot be renamed onto one that is not empty.
    old = _aside(path)
    with contextlib.suppress(FileNotFoundError):
      os.rename(path, old)
      shutil.rmtree(old, ignore_errors=True)


def _flush(aside: Path) -> None:
  """Waits until a file, or all of a folder, is on the disk."""
  if not aside.is_dir():
    _flush_file(aside)
    return
  for here, _, names in os.walk(aside):
    for name in names:
      _flush_file(Path(here, name))
    _flush_folder(Path(here))


def _flush_file(path: Path) -> None:
  with path.open('rb') as stream:
    os.fsync(stream.fileno())


def _flush_folder(path: Path) -> None:
  """Not every file system can do that of a folder; then it need not."""
  with contextlib.suppress(OSError):
    folder = os.open(path, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


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
