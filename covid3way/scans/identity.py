"""Whose a scan is: names to be kept out of outputs, UIDs to be hashed."""

import contextlib
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom.dataset import Dataset

from covid3way import base
from covid3way.scans.dicom_files import (
  CT_STORAGE,
  File,
  open_files,
  quiet,
  read_header,
)


def hashed_uid(*words: str) -> str:
  """A UID out of words (PS3.5, B.2: `2.25.` and 128 bits); the same for the same words.

  Nobody reads a UID back out of it, but who has the UID can tell that it is the one.
  """
  digest = hashlib.sha256('/'.join(words).encode()).digest()
  return f'2.25.{int.from_bytes(digest[:16], "big")}'


# Besides who it is: what finds the patient in an archive, if it stands in a name whole.
_FINDING = (
  'OtherPatientIDs',
  'AccessionNumber',
  'StudyID',
  'StudyInstanceUID',
  'SeriesInstanceUID',
  'SOPInstanceUID',
)
_DATES = ('PatientBirthDate', 'StudyDate', 'SeriesDate', 'AcquisitionDate')
_SHORT = 3  # Letters or digits; shorter values stand in names by chance.


@dataclasses.dataclass(frozen=True)
class Identity:
  """What identifies a patient, to keep it out of names. Never shown, never written.

  Attributes:
    words: name, ID and birth date; empty where the header says that they were removed.
    finding: what else finds the patient; likewise.
    series_hash: by which the series is known again.
  """

  words: tuple[str, ...] = dataclasses.field(repr=False)
  finding: tuple[str, ...] = dataclasses.field(repr=False)
  series_hash: str

  def is_in(self, name: str) -> bool:
    """Whether a name holds one of these values, whole, or a part of the patient's name.

    Of parts of two letters all have to be there, in any order.
    """
    text, tokens = plain(name), {plain(t) for t in re.split(r'[\W_]+', name)}
    names = [plain(part) for part in re.findall(r'[^\W\d_]+', self.words[0])]
    whole = [plain(value) for value in (*self.words, *self.finding)]
    return (
      any(value in text for value in (*whole, *names) if len(value) >= _SHORT)
      or text in whole
      or (len(names) > 1 and tokens.issuperset(names))
    )


def plain(text: str) -> str:
  """Letters and digits only, without case and accents."""
  decomposed = unicodedata.normalize('NFKD', text).casefold()
  return ''.join(c for c in decomposed if c.isalnum())


def first_identity(path: Path) -> Identity | None:
  """Whose scan this is, by its first CT image; without one, by any DICOM object."""
  damage = base.DamagedFileError, base.InputError  # told when the scan is read
  found = None
  with contextlib.suppress(*damage), quiet(), open_files(path, scan_id='') as files:
    for header in _headers(files):
      if header.get('SOPClassUID') in CT_STORAGE:
        return identity_of(header)
      found = found or identity_of(header)
  return found


def identities(files: Iterable[File]) -> Iterator[Identity]:
  """Whose these files are, one by one, so far as they can be read."""
  with quiet():
    yield from map(identity_of, _headers(files))


def _headers(files: Iterable[File]) -> Iterator[Dataset]:
  for file in files:
    with contextlib.suppress(base.DamagedFileError, base.InputError):
      header = read_header(file, scan_id='')
      if header is not None and header.get('SeriesInstanceUID'):
        yield header


def identity_of(header: Dataset) -> Identity:
  """Nothing identifies where the header says so: its ID is then a pseudonym."""
  if header.get('PatientIdentityRemoved') == 'YES':
    return Identity(('', '', ''), (), series_hash(header))
  words, finding, dates = (
    tuple(str(header.get(tag) or '') for tag in tags)
    for tags in (('PatientName', 'PatientID', 'PatientBirthDate'), _FINDING, _DATES)
  )
  turned = [d[6:] + d[4:6] + d[:4] for d in dates] + [d[4:] + d[:4] for d in dates]
  return Identity(words, (*finding, *dates, *turned), series_hash(header))


def series_hash(header: Dataset) -> str:
  """By which a series is known again, and not found."""
  return hashlib.sha256(str(header.SeriesInstanceUID).encode()).hexdigest()[:16]
