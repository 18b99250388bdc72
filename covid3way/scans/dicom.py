"""A DICOM CT series -> `Scan`."""

import contextlib
import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from covid3way import base
from covid3way.base import ScanWarning, WarningKind
from covid3way.scans import dicom_geometry, dicom_pixels, reading
from covid3way.scans.dicom_files import (
  MULTI_FRAME,
  CtFile,
  ct_files,
  damaged,
  open_files,
  quiet,
  read_header,
)

_SAME_LENGTH = 0.9  # reconstructions of one acquisition differ by a few slices
_BLOCK_SLICES = 16  # turned together: 16 float32 fill a line of the cache
_GIVE_CT = 'give the folder, or .zip, that holds the slices of one CT series'


def read_series(path: Path, *, scan_id: str) -> base.Scan:
  """Read the one CT series of a folder (recursively), a .zip, or a file.

  Geometry comes from position, orientation and pixel spacing alone; of several series
  the longest axial one with the finest increment is taken. Native order is (columns,
  rows, slices), slices ascending along their normal: to the head when axial and supine.

  Raises:
    NoCtError: nothing there, or no CT.
    InputError: multi-frame CT only.
    MixedPatientsError: CT of several patients.
    DuplicateSliceError, MissingSliceError, GeometryError: the series makes no grid.
    DamagedFileError: a file that is cut short, or does not decode.
  """
  with quiet(), open_files(path, scan_id=scan_id) as files:
    images, others = ct_files(files, scan_id=scan_id)
    _check_any(images, others, len(files), scan_id)
    _check_one_patient(images, scan_id)
    series, choice = _choose_series(images)
    series, copies = _drop_copies(series)
    planes = [_plane(image, scan_id) for image in series]
    order, grid = dicom_geometry.stack(planes, scan_id=scan_id)
    series = [series[i] for i in order]
    return reading.assemble(
      _read_hu(series, grid, scan_id),
      grid,
      scan_id=scan_id,
      windows=_windows(image.header for image in series),
      provenance=_provenance(series),
      warnings=[*_ignored(others), *choice, *copies],
    )


@dataclasses.dataclass(frozen=True)
class Identity:
  """What identifies a patient, to keep it out of names. Never shown, never written."""

  words: tuple[str, ...] = dataclasses.field(repr=False)
  series_hash: str


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
        if header.get('SOPClassUID') == CTImageStorage:
          return _identity(header)
        found = found or _identity(header)
  return found


def _identity(header: Dataset) -> Identity:
  """Nothing identifies where the header says so: its ID is then a pseudonym."""
  removed = header.get('PatientIdentityRemoved') == 'YES'
  tags = () if removed else ('PatientName', 'PatientID', 'PatientBirthDate')
  words = tuple(str(header.get(tag) or '') for tag in tags)
  return Identity(words, _series_hash(header))


def _check_any(
  images: Sequence[CtFile], others: Counter[str], count: int, scan_id: str
) -> None:
  if images:
    return
  if not count:
    raise base.NoCtError(scan_id, 'the folder or archive is empty', _GIVE_CT)
  if others[MULTI_FRAME]:
    raise base.InputError(
      scan_id,
      f'{others[MULTI_FRAME]} multi-frame (enhanced) CT object(s), not supported yet',
      'convert to single-frame CT, e.g. with dcm4che emf2sf',
    )
  raise base.NoCtError(scan_id, f'no CT image among {_listed(others)}', _GIVE_CT)


def _check_one_patient(images: Sequence[CtFile], scan_id: str) -> None:
  for tag in ('PatientID', 'PatientName'):  # the name only where no file has an ID
    values = {str(image.header.get(tag) or '').strip() for image in images} - {''}
    if len(values) > 1:
      raise base.MixedPatientsError(
        scan_id,
        f'CT images of {len(values)} patients (by {tag})',
        'give one folder per patient and scan',
      )
    if values:
      return


def _choose_series(
  images: Sequence[CtFile],
) -> tuple[Sequence[CtFile], list[ScanWarning]]:
  groups = defaultdict(list)
  for image in images:
    groups[str(image.header.SeriesInstanceUID)].append(image)
  if len(groups) == 1:
    return images, []
  extents = {uid: _extent(group) for uid, group in groups.items()}
  axial = any(e.axial for e in extents.values())
  extents = {uid: e for uid, e in extents.items() if e.axial == axial}
  longest_mm = max(e.length_mm for e in extents.values())
  long = [u for u, e in extents.items() if e.length_mm >= _SAME_LENGTH * longest_mm]
  # The UID comes last, so that a tie never depends on the order of files.
  best = min(long, key=lambda u: (extents[u].increment_mm, -len(groups[u]), u))
  message = (
    f'{len(groups)} CT series found; took the one of {len(groups[best])} slices, '
    f'{extents[best].increment_mm:.2f} mm apart: axial, long, then finest'
  )
  return groups[best], [ScanWarning(WarningKind.SERIES_CHOSEN, message)]


def _extent(images: Sequence[CtFile]) -> dicom_geometry.Extent:
  planes = [dicom_geometry.plane(image.header) for image in images]
  if any(p is None for p in planes):
    return dicom_geometry.Extent(axial=False, length_mm=0.0, increment_mm=np.inf)
  return dicom_geometry.extent(planes)


def _drop_copies(
  images: Sequence[CtFile],
) -> tuple[list[CtFile], list[ScanWarning]]:
  # Some anonymisers give all slices one UID, so a copy has the same position too.
  unique = {}
  for k, image in enumerate(images):
    uid = image.header.get('SOPInstanceUID') or k
    unique.setdefault((uid, str(image.header.get('ImagePositionPatient'))), image)
  dropped = len(images) - len(unique)
  if not dropped:
    return list(images), []
  message = f'{dropped} file(s) are exact copies and were dropped'
  return [*unique.values()], [ScanWarning(WarningKind.DUPLICATE_FILE_DROPPED, message)]


def _plane(image: CtFile, scan_id: str) -> dicom_geometry.Plane:
  plane = dicom_geometry.plane(image.header)
  if plane is None:
    raise damaged(
      scan_id,
      image.file.name,
      'has no usable position, orientation, pixel spacing or size',
    )
  return plane


def _read_hu(series: Sequence[CtFile], grid: base.Grid, scan_id: str) -> np.ndarray:
  hu = np.empty(grid.native_shape, np.float32)
  for start in range(0, len(series), _BLOCK_SLICES):
    block = [_read_slice(i, scan_id) for i in series[start : start + _BLOCK_SLICES]]
    hu[:, :, start : start + len(block)] = np.stack(block).T
  return hu


def _read_slice(image: CtFile, scan_id: str) -> np.ndarray:
  try:
    with image.file.open() as stream:
      return dicom_pixels.read_hu(stream)
  except ValueError as error:
    raise damaged(scan_id, image.file.name, str(error)) from None


def _windows(headers: Iterable[Dataset]) -> list[base.Window]:
  """The window pairs of all slices, each once; a malformed one is no candidate."""
  windows = {}
  for header in headers:
    levels, widths = _floats(header, 'WindowCenter'), _floats(header, 'WindowWidth')
    for level_hu, width_hu in zip(levels, widths, strict=False):
      if np.isfinite([level_hu, width_hu]).all() and width_hu > 0:
        windows[base.Window(level_hu, width_hu, 'dicom tag')] = None
  return list(windows)


def _floats(header: Dataset, keyword: str) -> list[float]:
  try:
    return np.atleast_1d(np.asarray(header.get(keyword), np.float64)).tolist()
  except (TypeError, ValueError):
    return []


def _provenance(series: Sequence[CtFile]) -> dict[str, Any]:
  # A list of what may be told, not of what may not: the rest of a header identifies.
  header = series[0].header
  facts = {
    'manufacturer': header.get('Manufacturer'),
    'model': header.get('ManufacturerModelName'),
    'kernel': header.get('ConvolutionKernel'),
    'kvp': header.get('KVP'),
    'slice_thickness_mm': header.get('SliceThickness'),
  }
  return {
    'format': 'DICOM',
    **{k: str(v) for k, v in facts.items() if v not in (None, '')},
    'slices': len(series),
    'transfer_syntax': dicom_pixels.transfer_syntax(header).name,
    'series_sha256': _series_hash(header),
  }


def _series_hash(header: Dataset) -> str:
  return hashlib.sha256(str(header.SeriesInstanceUID).encode()).hexdigest()[:16]


def _ignored(others: Counter[str]) -> list[ScanWarning]:
  if not others:
    return []
  message = f'{others.total()} file(s) are no CT slices: {_listed(others)}'
  return [ScanWarning(WarningKind.FILES_IGNORED, message)]


def _listed(kinds: Counter[str]) -> str:
  return ', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))
