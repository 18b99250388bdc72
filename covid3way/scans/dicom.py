"""A DICOM CT series, single-frame or enhanced multi-frame -> `Scan`."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from covid3way import base
from covid3way.base import ScanWarning, WarningKind
from covid3way.scans import dicom_series, reading, straighten
from covid3way.scans.dicom_files import (
  MULTI_FRAME,
  CtFile,
  File,
  ct_files,
  damaged,
  open_files,
  quiet,
  told_of,
)
from covid3way.scans.dicom_pixels import Pixels, transfer_syntax
from covid3way.scans.identity import identities, identity_of, plain, series_hash

_GIVE_CT = 'give the folder, or .zip, that holds the slices of one CT series'
# PS3.3, C.11.1.1.2: defined terms of RescaleType that are not, or not always, HU.
_OTHER_UNITS = {'OD', 'MGML', 'Z_EFF', 'ED', 'EDW', 'PCT'}
_HIDDEN = '<name hidden>'


def read_series(path: Path, *, scan_id: str, domain: str = '') -> base.Scan:
  """Read the one CT series of a folder (recursively), a .zip, or a file.

  Geometry comes from position, orientation and pixel spacing alone; of several series,
  reconstructions or phases the longest axial one with the finest increment is taken.
  Native order is (columns, rows, slices), slices ascending along their normal: to the
  head when axial and supine. Tilted and uneven slices are interpolated onto an even
  grid with right angles, see `base.Grid.acquired`.

  Args:
    path: of the series.
    scan_id: names the scan.
    domain: of the signal, as in a manifest; '' is HU, and checked to be.

  Raises:
    NoCtError: nothing there, or no CT.
    InputError: multi-frame CT only, whose frames have no place.
    MixedPatientsError: CT of several patients.
    DuplicateSliceError, MissingSliceError, GeometryError: the series makes no grid.
    SignalError: its values are no HU.
    DamagedFileError: a file that is cut short, or does not decode.
  """
  with _open_series(path, scan_id) as series:
    _check_unit(series.images, domain, scan_id)
    intake = reading.Intake(scan_id)
    native = reading.room(series.grid, scan_id)
    pixels, empty = Pixels(scan_id), []
    straighten.place_slices(
      _taken(pixels.read(series.images), intake, empty),
      series.grid,
      native,
      fill=base.AIR_HU,
    )
    _check_empty(empty, scan_id)
    return reading.assemble(
      native,
      series.grid,
      intake,
      domain=domain,
      windows=_windows(image.header for image in series.images),
      provenance=_provenance(series.images),
      warnings=[*series.warnings, *pixels.warnings()],
    )


def source_slices(path: Path, *, scan_id: str) -> list[tuple[Dataset, int]]:
  """The slices that `read_series` reads, in the order of its stored third axis.

  Returns:
    For each: the whole header of its file, without the pixels, identifying as it is;
    and which frame of the file it is, from 0.

  Raises:
    Covid3wayError: as `read_series`.
  """
  with _open_series(path, scan_id) as series:
    files = {image.file: None for image in series.images}
    headers = {file: _whole_header(file, scan_id) for file in files}
    return [(headers[image.file], image.frame) for image in series.images]


class _Series(NamedTuple):
  """The images that were chosen, in order, and the grid through them."""

  images: list[CtFile]
  grid: base.Grid
  warnings: list[ScanWarning]


@contextlib.contextmanager
def _open_series(path: Path, scan_id: str) -> Iterator[_Series]:
  with (
    quiet(),
    open_files(path, scan_id=scan_id) as files,
    _names_hidden(files),
  ):
    images, others = ct_files(files, scan_id=scan_id)
    _check_any(images, others, len(files), scan_id)
    _check_one_patient(images, scan_id)
    images, grid, warnings = dicom_series.choose(images, scan_id)
    yield _Series(images, grid, [*_ignored(others), *warnings])


@contextlib.contextmanager
def _names_hidden(files: Sequence[File]) -> Iterator[None]:
  """Keeps names out of errors where files are named after a patient, or may be."""
  try:
    yield
  except base.Covid3wayError as error:
    for name in sorted({file.name for file in files}, key=len, reverse=True):
      if error.found.startswith(told := told_of(name)):
        known = list(identities(files))
        if not known or any(identity.is_in(name) for identity in known):
          found = told_of(_HIDDEN) + error.found.removeprefix(told)
          raise type(error)(error.subject, found, error.remedy) from None
    raise


def _whole_header(file: File, scan_id: str) -> Dataset:
  try:
    with file.open() as stream:
      return pydicom.dcmread(stream, stop_before_pixels=True, force=True)
  except Exception:  # whatever pydicom and zlib raise on damaged bytes
    raise damaged(scan_id, file.name, 'is cut short or damaged in its header') from None


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
      f'{others[MULTI_FRAME]} multi-frame CT object(s) that do not say where each of '
      'their frames lies',
      'convert to single-frame CT, e.g. with dcm4che emf2sf',
    )
  raise base.NoCtError(scan_id, f'no CT image among {_listed(others)}', _GIVE_CT)


def _check_one_patient(images: Sequence[CtFile], scan_id: str) -> None:
  for tag in ('PatientID', 'PatientName'):  # the name only where an ID is absent
    values = {plain(str(image.header.get(tag) or '')) for image in images}
    if len(values - {''}) > 1:
      raise base.MixedPatientsError(
        scan_id,
        f'CT images of {len(values - {""})} patients (by {tag})',
        'give one folder per patient and scan',
      )
    if '' not in values:
      return


def _check_unit(images: Sequence[CtFile], domain: str, scan_id: str) -> None:
  for image in images:
    colours = str(image.header.get('PhotometricInterpretation') or 'MONOCHROME2')
    if colours.strip() != 'MONOCHROME2':
      raise base.SignalError(
        scan_id,
        f'slices are {colours.strip()[:16]}: bright is not dense',
        'export the CT as the scanner stored it, MONOCHROME2',
      )
    unit = str(image.header.get('RescaleType') or 'HU').strip().upper()
    if unit in _OTHER_UNITS and not domain:
      raise base.SignalError(
        scan_id, f'values are {unit}, not HU', 'give a CT image in Hounsfield units'
      )


def _taken(
  slices: Iterable[np.ndarray], intake: reading.Intake, empty: list[bool]
) -> Iterator[np.ndarray]:
  """Slices (columns, rows) on their way; notes which are of one value throughout."""
  for hu in slices:
    empty.append(bool(hu.min() == hu.max()))
    intake.take(hu.T)
    yield hu.T


def _check_empty(empty: Sequence[bool], scan_id: str) -> None:
  """Slices beyond the patient may be empty, but none between two that are not."""
  full = np.flatnonzero(~np.array(empty))
  count = full[-1] - full[0] + 1 - full.size if full.size else 0
  if count:
    raise base.DamagedFileError(
      scan_id,
      f'{count} slice(s) between others are of one value throughout',
      'copy or export the series again',
    )


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
  told = {k: _plain_words(v) for k, v in facts.items()}
  identity = identity_of(header)
  return {
    'format': 'DICOM',
    **{k: v for k, v in told.items() if v and not identity.is_in(v)},
    'slices': len(series),
    'transfer_syntax': transfer_syntax(header).name,
    'series_sha256': series_hash(header),
  }


def _plain_words(value: Any) -> str:
  """A short technical value as text, else nothing: free text may hold anything."""
  words = [value] if isinstance(value, str | None) else np.atleast_1d(value)
  text = ' '.join(str(word) for word in words if word is not None)
  return text if re.fullmatch(r'[A-Za-z0-9 ._+/-]{1,32}', text) else ''


def _ignored(others: Counter[str]) -> list[ScanWarning]:
  if not others:
    return []
  message = f'{others.total()} file(s) are no CT slices: {_listed(others)}'
  return [ScanWarning(WarningKind.FILES_IGNORED, message)]


def _listed(kinds: Counter[str]) -> str:
  return ', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))
