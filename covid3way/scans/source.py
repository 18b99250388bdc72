"""What the user points at -> scans: a folder, an archive, a file or a manifest."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from covid3way import base, progress
from covid3way.scans import dicom, nifti
from covid3way.scans.dicom_files import is_dicom, is_hidden, unreadable, walk
from covid3way.scans.identity import first_identity
from covid3way.scans.manifest import ManifestRow, read_manifest

_ALLOWED = 'give a DICOM folder, .zip, NIfTI file, manifest .csv or folder of scans'


def resolve(path: Path) -> tuple[ManifestRow, ...]:
  """The scans at `path`, by name.

  A folder that directly holds DICOM files is one scan; of another folder each child
  (a folder with files, a .zip, a NIfTI file) is one. Without a manifest scans are named
  after their file or folder, and each is its own patient. Names that hold a patient's
  name, ID or birth date are replaced by a hash, so every `scan_id` may be shown.

  Raises:
    InputError: nothing is there, nothing we read, or nothing that may be read.
    NoCtError: a folder without a scan.
    ManifestError: see `read_manifest`.
  """
  try:
    if path.suffix.lower() == '.csv':
      return read_manifest(path)
    images = _images(path)
  except OSError as error:
    raise unreadable(_file_name_id(path), error) from None
  return _rows(images)


def read_scan(row: ManifestRow) -> base.Scan:
  """Read the scan of a row, whatever its format.

  Raises:
    InputError: it was simulated.
    Covid3wayError: see `dicom.read_series` and `nifti.read_scan`.
  """
  if row.is_simulated:
    raise base.InputError(
      row.scan_id,
      'a group of the store, in standard space only',
      'it is there to train on: give its store to the train job',
    )
  read = nifti.read_scan if _is_nifti(row.image) else dicom.read_series
  return read(row.image, scan_id=row.scan_id, domain=row.domain)


def _images(path: Path) -> list[Path]:
  if path.is_dir():
    images = [path] if _holds_dicom(path) else list(_children(path))
    if not images:
      found = 'nothing to read here' if any(path.iterdir()) else 'the folder is empty'
      raise base.NoCtError(_file_name_id(path), found, _ALLOWED)
    return images
  if not _is_scan_file(path):
    found = (
      'not a file that holds a scan' if path.exists() else 'no such file or folder'
    )
    raise base.InputError(_file_name_id(path), found, _ALLOWED)
  return [path]


def _children(folder: Path) -> Iterator[Path]:
  for child in sorted(folder.iterdir()):
    if is_hidden(child.relative_to(folder)):
      continue
    if child.is_dir() and _holds_files(child):
      yield child
    elif child.is_file() and _is_scan_file(child):
      yield child


def _holds_files(folder: Path) -> bool:
  """Whether any are in it, or a folder that may not be read: told when it is read."""
  unread = []
  return any(True for _ in walk(folder, unread.append)) or bool(unread)


def _holds_dicom(folder: Path) -> bool:
  files = (p for p in folder.iterdir() if p.is_file())
  return any(_is_dicom(p) for p in files if not is_hidden(p.relative_to(folder)))


def _is_scan_file(path: Path) -> bool:
  is_zip = path.is_file() and path.suffix.lower() == '.zip'
  return is_zip or _is_nifti(path) or _is_dicom(path)


def _is_nifti(path: Path) -> bool:
  return path.is_file() and path.name.lower().endswith(nifti.SUFFIXES)


def _is_dicom(path: Path) -> bool:
  if not path.is_file():
    return False
  if path.suffix.lower() == '.dcm':
    return True  # a damaged one is told when it is read
  try:
    with path.open('rb') as stream:
      return is_dicom(stream.read(132))
  except OSError:
    return True  # told when it is read, too


def _rows(images: list[Path]) -> tuple[ManifestRow, ...]:
  rows = {}
  for image in images:
    scan_id = wanted = _scan_id(image)
    count = 2
    while scan_id in rows:
      scan_id, count = f'{wanted}-{count}', count + 1
    rows[scan_id] = ManifestRow(patient_id=scan_id, scan_id=scan_id, image=image)
  return tuple(rows.values())


def _scan_id(image: Path) -> str:
  identity = None if _is_nifti(image) else first_identity(image)
  if identity and identity.is_in(_name(image)):
    scan_id = f'scan-{identity.series_hash[:8]}'
    progress.say(
      f'{scan_id}: so named because its file or folder is named after the patient; '
      'a manifest names scans as you like'
    )
    return scan_id
  return _file_name_id(image)


def _file_name_id(path: Path) -> str:
  stem = re.sub(r'\.(nii|nii\.gz|zip|dcm)$', '', _name(path), flags=re.IGNORECASE)
  return re.sub(r'[^A-Za-z0-9._-]+', '_', stem).strip('._-')[:90] or 'scan'


def _name(path: Path) -> str:
  return os.path.basename(os.path.abspath(path))  # '.' has a name too
