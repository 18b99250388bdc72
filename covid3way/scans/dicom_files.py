"""The DICOM objects of a folder, a .zip or a file: found and sorted into kinds."""

import contextlib
import dataclasses
import functools
import io
import os
import stat
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
  UID,
  CTImageStorage,
  EnhancedCTImageStorage,
  LegacyConvertedEnhancedCTImageStorage,
)

from covid3way import base
from covid3way.scans.dicom_geometry import Plane, plane

NOT_DICOM = 'not DICOM'
MULTI_FRAME = 'multi-frame CT without a place for each frame'
_QUIET = threading.RLock()
_LOCALIZER = 'localizer'
_CT = 'CT'
_ENHANCED = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
CT_STORAGE = {CTImageStorage, *_ENHANCED}
_SHARED = 'SharedFunctionalGroupsSequence'
_PER_FRAME = 'PerFrameFunctionalGroupsSequence'
# All that is ever looked at.
_TAGS = [
  'SOPClassUID',
  'SOPInstanceUID',
  'SeriesInstanceUID',
  'ImageType',
  'PatientName',
  'PatientID',
  'PatientBirthDate',
  'PatientIdentityRemoved',
  'OtherPatientIDs',
  'AccessionNumber',
  'StudyID',
  'StudyInstanceUID',
  'StudyDate',
  'SeriesDate',
  'AcquisitionDate',
  'ImagePositionPatient',
  'ImageOrientationPatient',
  'PixelSpacing',
  'Rows',
  'Columns',
  'NumberOfFrames',
  'SamplesPerPixel',
  'WindowCenter',
  'WindowWidth',
  'Manufacturer',
  'ManufacturerModelName',
  'ConvolutionKernel',
  'KVP',
  'SliceThickness',
  'RescaleSlope',
  'RescaleIntercept',
  'RescaleType',
  'PhotometricInterpretation',
  'BitsStored',
  'HighBit',
  'PixelPaddingValue',
  'PixelPaddingRangeLimit',
  'AcquisitionNumber',
  'AcquisitionTime',
  'TemporalPositionIndex',
  'FrameType',
  'FrameAcquisitionNumber',
  'FrameAcquisitionDateTime',
]
# Those that have one value, if any, and what it is.
_ONE = {
  'SOPClassUID': str,
  'SOPInstanceUID': str,
  'SeriesInstanceUID': str,
  'BitsStored': int,
  'HighBit': int,
}
_IN_FRAMES = {pydicom.datadict.tag_for_keyword(tag) for tag in _TAGS}
# What a damaged directory of an archive raises, beside OSError.
_NO_ARCHIVE = (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError)
NO_SENSE = 'has a header that makes no sense'
_EXPORT_AGAIN = 'copy or export the series again'


@dataclasses.dataclass(frozen=True, eq=False)
class File:
  """A file on disk or in an archive; `name` carries no folder."""

  name: str
  open: Callable[[], BinaryIO]


@dataclasses.dataclass(frozen=True, eq=False)
class CtFile:
  """One CT image: a file's only one, or a frame of it.

  Attributes:
    file: where it is.
    header: of a single-frame image, without pixels; a frame's own, made like one.
    frame: which of the file's, from 0.
  """

  file: File
  header: Dataset
  frame: int = 0

  @functools.cached_property
  def plane(self) -> Plane | None:
    """Where it lies, or None where its header does not say."""
    return plane(self.header)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Reads with pydicom without its remarks on odd values.

  Real scans are full of them. What we use of a file is checked one by one. Threads take
  turns: what is silenced is the whole program.
  """
  with (
    _QUIET,
    warnings.catch_warnings(),
    pydicom.config.disable_value_validation(),
  ):
    warnings.simplefilter('ignore')
    yield


@contextlib.contextmanager
def open_files(path: Path, *, scan_id: str) -> Iterator[list[File]]:
  """All files of a folder (recursively), of a .zip (nothing is extracted), or one.

  Hidden files, the file system's own, are left out. A folder in it that may not be read
  is told when it is come to, as a file is, so that whose scan it is can be seen first.

  Raises:
    InputError: there is nothing at `path`, or it may not be read.
    DamagedFileError: the archive is no archive.
  """
  with contextlib.ExitStack() as opened:
    try:
      files = _found(path, scan_id, opened)
    except OSError as error:
      raise unreadable(scan_id, error) from None
    yield files


def walk(folder: Path, unread: Callable[[OSError], None]) -> Iterator[Path]:
  """The files of a folder, recursively, hidden ones left out.

  Args:
    folder: to look into.
    unread: told of each folder in it that may not be read.
  """
  for here, folders, names in os.walk(folder, onerror=unread):
    folders[:] = [name for name in folders if not is_hidden(Path(name))]
    shown = (Path(here, name) for name in names if not is_hidden(Path(name)))
    yield from filter(_is_file, shown)


def unreadable(subject: str, error: OSError) -> base.InputError:
  """The error for what the user gave, to be raised by the caller; shows no path."""
  found = f'cannot be read ({error.strerror})'
  return base.InputError(subject, found, 'check the path and its permissions')


def _found(path: Path, scan_id: str, opened: contextlib.ExitStack) -> list[File]:
  if not path.exists():
    raise base.InputError(scan_id, 'no such file or folder', 'check the path')
  if path.is_dir():
    unread = []
    found = sorted(walk(path, unread.append))
    files = [File(p.name, lambda p=p: p.open('rb')) for p in found]
    return files + [_locked_folder(scan_id)] * bool(unread)
  if path.suffix.lower() != '.zip':
    return [File(path.name, lambda: path.open('rb'))]
  try:
    archive = opened.enter_context(zipfile.ZipFile(path))
  except _NO_ARCHIVE:
    raise damaged(scan_id, path.name, 'is not a whole .zip archive') from None
  names = sorted(n for n in archive.namelist() if not n.endswith('/'))
  return [
    File(Path(n).name, lambda n=n: io.BytesIO(archive.read(n)))
    for n in names
    if not is_hidden(Path(n))
  ]


def _locked_folder(scan_id: str) -> File:
  """In place of the files of folders that may not be read."""

  def refuse() -> BinaryIO:
    raise base.InputError(
      scan_id, 'a folder in it may not be read', 'change its permissions'
    )

  return File('a folder that may not be read', refuse)


def _is_file(path: Path) -> bool:
  try:
    return stat.S_ISREG(path.stat().st_mode)
  except FileNotFoundError:  # A link to nothing.
    return False
  except OSError:
    return True  # told when it is read


def is_hidden(path: Path) -> bool:
  """Whether a relative path belongs to the file system rather than to the user."""
  return any(part.startswith('.') or part == '__MACOSX' for part in path.parts)


def ct_files(files: list[File], *, scan_id: str) -> tuple[list[CtFile], Counter[str]]:
  """The CT images among `files`, each frame one, and how many of what else there are.

  Raises:
    DamagedFileError: a file that is cut short in its header, or no DICOM but named so.
  """
  images, others = [], Counter()
  for file in files:
    header = read_header(file, scan_id=scan_id)
    try:
      kind = NOT_DICOM if header is None else _kind(header, file.name, scan_id)
      frames = _frames(header) if kind == _CT else []
      kept = [(k, each) for k, each in enumerate(frames) if not _is_localizer(each)]
    except (AttributeError, IndexError, TypeError, ValueError, NotImplementedError):
      raise damaged(scan_id, file.name, NO_SENSE) from None
    images += [CtFile(file, each, k) for k, each in kept]
    if not kept:
      others[_LOCALIZER if frames else kind] += 1
  return images, others


def read_header(file: File, *, scan_id: str) -> Dataset | None:
  """The header of a DICOM file, None for another file.

  Raises:
    InputError: it may not be read.
    DamagedFileError: see `ct_files`.
  """
  start, header = b'', None
  try:
    with file.open() as stream:
      if is_dicom(start := stream.read(132)):
        stream.seek(0)
        # Old files lack the preamble: `force` reads them, as their start is sound.
        header = pydicom.dcmread(
          stream,
          stop_before_pixels=True,
          force=True,
          specific_tags=[*_TAGS, _SHARED, _PER_FRAME],
        )
        header.decode()  # converts every value now, so that odd ones show here
  except PermissionError:
    raise base.InputError(
      scan_id, f'file {file.name} may not be read', 'change its permissions'
    ) from None
  except base.Covid3wayError:
    raise
  except Exception:  # whatever zipfile, zlib and pydicom raise on damaged bytes
    unread = 'cannot be read, or is damaged or encrypted in its .zip'
    found = 'is cut short or damaged in its header' if start else unread
    raise damaged(scan_id, file.name, found) from None
  if header and not all(_is_one(header, *one) for one in _ONE.items()):
    raise damaged(scan_id, file.name, NO_SENSE)
  if header is None and file.name.lower().endswith('.dcm'):
    raise damaged(scan_id, file.name, 'is named .dcm but holds no DICOM')
  return header


def is_dicom(start: bytes) -> bool:
  """Whether the first 132 bytes are those of a DICOM file, with or without preamble."""
  # The file's own group, or that of what it holds, in the byte order of nearly all.
  first_group = start[:2] in (b'\x02\0', b'\x08\0') and start[3:4] == b'\0'
  return start[128:132] == b'DICM' or first_group


def _is_one(header: Dataset, tag: str, kind: type) -> bool:
  value = header.get(tag)
  return value in (None, '') or isinstance(value, kind)


def damaged(scan_id: str, name: str, found: str) -> base.DamagedFileError:
  """The error for a file, to be raised by the caller."""
  return base.DamagedFileError(scan_id, told_of(name) + found, _EXPORT_AGAIN)


def told_of(name: str) -> str:
  """How an error about a file begins."""
  return f'file {name} '


def _kind(header: Dataset, name: str, scan_id: str) -> str:
  storage = header.file_meta.get('MediaStorageSOPClassUID')
  storage = UID(header.get('SOPClassUID') or storage or '')
  if not storage:
    raise damaged(scan_id, name, 'is cut short in its header')
  if storage not in CT_STORAGE:
    # A private class has no name; its UID is nobody's business.
    return 'other DICOM' if storage.name == storage else storage.name
  if not header.get('SeriesInstanceUID'):
    raise damaged(scan_id, name, 'is cut short in its header, or belongs to no series')
  if storage in _ENHANCED or int(header.get('NumberOfFrames') or 1) > 1:
    groups, count = header.get(_PER_FRAME) or (), int(header.get('NumberOfFrames') or 1)
    if len(groups) != count:
      return MULTI_FRAME
  if (header.get('SamplesPerPixel') or 1) != 1:
    return 'colour picture'
  return _CT


def _is_localizer(header: Dataset) -> bool:
  return 'LOCALIZER' in (header.get('ImageType') or ())


def _frames(header: Dataset) -> list[Dataset]:
  """A header for each frame, as a single-frame image has it.

  PS3.3, C.7.6.16: what the functional groups say of a frame, its own after the shared
  ones, stands at the top.
  """
  if not header.get(_PER_FRAME):
    return [header]
  shared = header.get(_SHARED) or [Dataset()]
  result = []
  for own in header[_PER_FRAME].value:
    flat = Dataset()
    flat.update({e.tag: e for e in header if e.tag in _IN_FRAMES})
    for group in (shared[0], own):
      for macro in group:
        if macro.VR == 'SQ' and macro.value:
          flat.update({e.tag: e for e in macro.value[0] if e.tag in _IN_FRAMES})
    flat.ImageType = flat.get('FrameType') or flat.get('ImageType')
    flat.file_meta = header.file_meta
    flat.set_original_encoding(*header.original_encoding)
    result.append(flat)
  return result
