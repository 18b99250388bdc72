"""The cohort manifest: which scan belongs to whom, and what is known about it."""

import csv
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from covid3way.base import ManifestError, Window
from covid3way.scans.files import whole

REQUIRED = ('patient_id', 'scan_id', 'image')
COLUMNS = (
  'patient_id',
  'scan_id',
  'day',
  'image',
  'infection_mask',
  'lung_mask',
  'lobe_mask',
  'susceptible_mask',
  'window_level_hu',
  'window_width_hu',
  'stage',
  'scanner',
  'site',
  'domain',
)
_SCAN_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,99}')


@dataclasses.dataclass(frozen=True)
class ManifestRow:
  """One scan of a cohort.

  Attributes:
    patient_id: folds are made by it.
    scan_id: unique, fit for a file name.
    image: DICOM folder, .zip or file, or NIfTI file; a simulated scan's zarr group.
    day: of the scan, on any scale common to its patient.
    infection_mask: NIfTI file on the scan's grid.
    lung_mask: NIfTI file on the scan's grid.
    lobe_mask: NIfTI file on the scan's grid, labelled as `lobes.CONVENTIONS` say.
    susceptible_mask: NIfTI file on the scan's grid: lung but no airway or vessel.
    window: the scan's lung window, when known.
    stage: clinical stage, free.
    scanner: free.
    site: free.
    domain: of the signal; '' is HU, any other is never mixed with it or with others.
  """

  patient_id: str
  scan_id: str
  image: Path
  day: float | None = None
  infection_mask: Path | None = None
  lung_mask: Path | None = None
  lobe_mask: Path | None = None
  susceptible_mask: Path | None = None
  window: Window | None = None
  stage: str = ''
  scanner: str = ''
  site: str = ''
  domain: str = ''

  @property
  def is_simulated(self) -> bool:
    """Whether it is a group of the store: simulated, it has no grid of its own."""
    return self.image.suffix == '.zarr'


def is_scan_id(text: str) -> bool:
  """Whether `text` can name files on every system."""
  return _SCAN_ID.fullmatch(text) is not None


def file_name(text: str, kind: str) -> str:
  """`text` where it can name files on every system, else `kind` and a hash of it."""
  if is_scan_id(text):
    return text
  return f'{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}'


def read_manifest(path: Path) -> tuple[ManifestRow, ...]:
  """Read a CSV file with a header line; see `COLUMNS`, of which `REQUIRED` must be.

  Paths in it are relative to the file.

  Raises:
    ManifestError: names line, column and remedy.
  """
  try:
    with path.open(newline='', encoding='utf-8-sig') as stream:
      reader = csv.DictReader(stream, restkey='', strict=True)
      _check_header(reader.fieldnames or [], path)
      rows = {}
      for cells in reader:
        line = _Line(path, reader.line_num)
        row = _row(cells, line)
        if row.scan_id in rows:
          raise line.error(
            'scan_id', f'{row.scan_id!r} again', 'give every scan its own scan_id'
          )
        rows[row.scan_id] = row
  except FileNotFoundError:
    raise ManifestError(path.name, 'no such file', 'check the path') from None
  except (UnicodeDecodeError, csv.Error):
    raise ManifestError(
      path.name, 'not a text table', 'save it as CSV, UTF-8, separated by commas'
    ) from None
  if not rows:
    raise ManifestError(path.name, 'no line below the header', 'add a line per scan')
  return tuple(rows.values())


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
  """Write `rows`, paths relative to the file; the inverse of `read_manifest`.

  Raises:
    StorageError: the disk refused.
  """
  with whole(path) as aside, aside.open('w', newline='', encoding='utf-8') as stream:
    writer = csv.DictWriter(stream, COLUMNS, lineterminator='\n')
    writer.writeheader()
    for row in rows:
      writer.writerow(_cells(row, path.parent))


@dataclasses.dataclass(frozen=True)
class _Line:
  path: Path
  number: int

  def error(self, column: str, found: str, remedy: str) -> ManifestError:
    return ManifestError(
      self.path.name, f'line {self.number}, column {column}: {found}', remedy
    )


def _check_header(columns: Iterable[str], path: Path) -> None:
  line = _Line(path, 1)
  for column in REQUIRED:
    if column not in columns:
      raise line.error(column, 'missing', 'add it; columns are separated by commas')
  for column in columns:
    if column not in COLUMNS:
      raise line.error(
        repr(column), 'unknown', f'rename or remove it; known are {", ".join(COLUMNS)}'
      )
  if len(set(columns)) < len(columns):
    raise line.error('', 'a column appears twice', 'remove one of them')


def _row(cells: Mapping[str, str], line: _Line) -> ManifestRow:
  if '' in cells:
    raise line.error('', 'more cells than columns', 'quote values that hold commas')
  cells = {column: (cells.get(column) or '').strip() for column in COLUMNS}
  for column in REQUIRED:
    if not cells[column]:
      raise line.error(column, 'empty', 'fill it in')
  if not is_scan_id(cells['scan_id']):
    raise line.error(
      'scan_id',
      f'{cells["scan_id"]!r} is unfit for a file name',
      'use up to 100 letters, digits, dots, dashes and underscores',
    )
  return ManifestRow(
    patient_id=cells['patient_id'],
    scan_id=cells['scan_id'],
    image=_existing(cells, 'image', line),
    day=_number(cells, 'day', line),
    infection_mask=_existing(cells, 'infection_mask', line),
    lung_mask=_existing(cells, 'lung_mask', line),
    lobe_mask=_existing(cells, 'lobe_mask', line),
    susceptible_mask=_existing(cells, 'susceptible_mask', line),
    window=_window(cells, line),
    stage=cells['stage'],
    scanner=cells['scanner'],
    site=cells['site'],
    domain=cells['domain'],
  )


def _existing(cells: Mapping[str, str], column: str, line: _Line) -> Path | None:
  if not cells[column]:
    return None
  found = line.path.parent / cells[column]
  if not os.path.exists(found):  # No error of its own, however odd the path.
    raise line.error(
      column, f'no file {cells[column]}', 'correct the path, relative to the manifest'
    )
  return found


def _number(cells: Mapping[str, str], column: str, line: _Line) -> float | None:
  if not cells[column]:
    return None
  try:
    value = float(cells[column])
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise line.error(column, f'{cells[column]!r} is no number', 'write e.g. 12 or 0.5')
  return value


def _window(cells: Mapping[str, str], line: _Line) -> Window | None:
  level_hu = _number(cells, 'window_level_hu', line)
  width_hu = _number(cells, 'window_width_hu', line)
  if level_hu is None and width_hu is None:
    return None
  if level_hu is None or width_hu is None:
    missing = 'window_level_hu' if level_hu is None else 'window_width_hu'
    raise line.error(
      missing, 'empty, half a window', 'give level and width, or neither'
    )
  if width_hu <= 0:
    raise line.error('window_width_hu', f'{width_hu:g}', 'give a width above 0 HU')
  return Window(level_hu, width_hu, 'manifest')


def _cells(row: ManifestRow, folder: Path) -> dict[str, str]:
  def relative(path: Path | None) -> str:
    return '' if path is None else Path(os.path.relpath(path, folder)).as_posix()

  def number(value: float | None) -> str:
    return '' if value is None else repr(value)

  return {
    'patient_id': row.patient_id,
    'scan_id': row.scan_id,
    'day': number(row.day),
    'image': relative(row.image),
    'infection_mask': relative(row.infection_mask),
    'lung_mask': relative(row.lung_mask),
    'lobe_mask': relative(row.lobe_mask),
    'susceptible_mask': relative(row.susceptible_mask),
    'window_level_hu': number(row.window and row.window.level_hu),
    'window_width_hu': number(row.window and row.window.width_hu),
    'stage': row.stage,
    'scanner': row.scanner,
    'site': row.site,
    'domain': row.domain,
  }
