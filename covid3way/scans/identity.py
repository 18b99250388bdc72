"""Whose a scan is: names to be kept out of outputs, UIDs to be hashed."""

import contextlib
import dataclasses
import hashlib
import re
import unicodedata
from pathlib import Path

from pydicom.dataset import Dataset

from covid3way import base
from covid3way.scans.dicom_files import CT_STORAGE, open_files, quiet, read_header


def hashed_uid(*words: str) -> str:
  """A UID out of words (PS3.5, B.2: `2.25.` and 128 bits); the same for the same words.

  Nobody reads a UID back out of it, but who has the UID can tell that it is the one.
  """
  digest = hashlib.sha256('/'.join(words).encode()).digest()
  return f'2.25.{int.from_bytes(digest[:16], "big")}'


@dataclasses.dataclass(frozen=True)
class Identity:
  """What identifies a patient, to keep it out of names. Never shown, never written."""

  words: tuple[str, ...] = dataclasses.field(repr=False)
  series_hash: str

  def is_in(self, name: str) -> bool:
    """Whether a file name holds a whole value of `words`, or a part of a name in it."""
    words = self.words
    parts = [p for word in words for p in (word, *re.findall(r'[^\W\d_]{3,}', word))]
    return any(_plain(part) in _plain(name) for part in parts if _plain(part))


def _plain(text: str) -> str:
  """Letters and digits only, without case and accents."""
  decomposed = unicodedata.normalize('NFKD', text).casefold()
  return ''.join(c for c in decomposed if c.isalnum())


def first_identity(path: Path) -> Identity | None:
  """Whose scan this is, by its first CT image; without one, by any DICOM object."""
  damage = base.DamagedFileError, base.InputError  # told when the scan is read
  found = None
  with contextlib.suppress(*damage), quiet(), open_files(path, scan_id='') as files:
    for file in files:
      with contextlib.suppress(*damage):
        header = read_header(file, scan_id='')
        if header is None or not header.get('SeriesInstanceUID'):
          continue
        if header.get('SOPClassUID') in CT_STORAGE:
          return _identity(header)
        found = found or _identity(header)
  return found


def _identity(header: Dataset) -> Identity:
  """Nothing identifies where the header says so: its ID is then a pseudonym."""
  removed = header.get('PatientIdentityRemoved') == 'YES'
  tags = () if removed else ('PatientName', 'PatientID', 'PatientBirthDate')
  words = tuple(str(header.get(tag) or '') for tag in tags)
  return Identity(words, series_hash(header))


def series_hash(header: Dataset) -> str:
  """By which a series is known again, and not found."""
  return hashlib.sha256(str(header.SeriesInstanceUID).encode()).hexdigest()[:16]
