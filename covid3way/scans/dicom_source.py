"""What DICOM objects that are made of a CT series take from it: place and identity."""

import contextlib
import copy
import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from covid3way import base
from covid3way.scans import dicom, dicom_geometry
from covid3way.scans.dicom_files import quiet
from covid3way.scans.dicom_writer import decimals
from covid3way.scans.identity import hashed_uid

NO_DATE, NO_TIME = '19700101', '000000'  # Where a date must stand and none may be told.
_SAME_PLACE_VOXELS = 0.5
_SERIES_NUMBER = 9000  # Ours come after a study's own series.
_BLANK = {
  'SpecificCharacterSet': 'ISO_IR 192',
  'AccessionNumber': '',
  'PatientBirthDate': '',
  'PatientID': '',
  'PatientName': '',
  'PatientSex': '',
  'ReferringPhysicianName': '',
  'StudyDate': '',
  'StudyID': '',
  'StudyTime': '',
}
_IDENTITY = (
  *_BLANK,
  'DeidentificationMethod',
  'IssuerOfPatientID',
  'PatientIdentityRemoved',
  'PositionReferenceIndicator',
  'StudyDescription',
)
_REMOVED = {
  'PatientIdentityRemoved': 'YES',
  'DeidentificationMethod': 'covid3way: holds nothing of the source but its geometry',
  'LongitudinalTemporalInformationModified': 'REMOVED',
}
# Values that are no such thing are left blank; text is kept as it is, however long: a
# shortened ID would be somebody else's.
_FORMS = {
  'DA': r'\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])',
  'TM': r'([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?',
  'CS': r'[A-Z0-9 _]{1,16}',
  'UI': r'[0-9.]{1,64}',
}
_DATES = ('Series', 'Acquisition', 'Content', 'Study')
_UIDS = ('StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID')
_SEXES = ('M', 'F', 'O')


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A CT series as the objects made of it know it: no other tag of it goes further.

  Attributes:
    scan_id: names it in errors.
    slices: of each slice as stored, in that order: identity and study as these objects
      shall carry them, UIDs, size, position, orientation and spacing.
    frames: of each slice, its number (from 1) in a multi-frame image, or None.
    identified: whether identity and UIDs are the patient's own.
    date, time: of the content.
  """

  scan_id: str
  slices: tuple[Dataset, ...] = dataclasses.field(repr=False)
  frames: tuple[int | None, ...]
  identified: bool
  date: str
  time: str

  def new_uid(self, *words: str) -> str:
    """A UID that is the same for the same series, identity and words."""
    first = self.slices[0]
    identity = [str(first.get(keyword, '')) for keyword in (*_IDENTITY, *_UIDS)]
    return hashed_uid('covid3way', self.date, self.time, *identity, *words)

  @property
  def images(self) -> tuple[Dataset, ...]:
    """The images of the series, each once: a multi-frame one has many slices."""
    return tuple({each.SOPInstanceUID: each for each in self.slices}.values())

  def of_series(self, number: int) -> dict[str, Any]:
    """What an object of the `number`-th series of ours says of it, for highdicom."""
    return {
      'manufacturer': 'covid3way',
      'manufacturer_model_name': 'covid3way',
      'series_number': _SERIES_NUMBER + number,
      'content_date': self.date,
      'content_time': self.time,
    }

  def finish(self, made: Dataset, uid: str) -> None:
    """Gives an object its UID, and takes from it the time at which it was made."""
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid
    del made.InstanceCreationDate, made.InstanceCreationTime
    for each in made.get('ContributingEquipmentSequence', ()):
      del each.ContributionDateTime
    if not self.identified:
      for keyword, value in _REMOVED.items():
        setattr(made, keyword, value)

  def reference(self, made: Dataset) -> Dataset:
    """What another object refers to this one by."""
    dataset = copy.deepcopy(self.slices[0])
    for keyword in ('SOPClassUID', 'SOPInstanceUID', 'SeriesInstanceUID', 'Modality'):
      setattr(dataset, keyword, made.get(keyword))
    return dataset


@contextlib.contextmanager
def silent() -> Iterator[None]:
  """Works with identity as odd as the source's, and logs none of it."""
  log = logging.getLogger('highdicom')  # It tells of names that look odd to it.
  before = log.level
  log.setLevel(logging.ERROR)
  try:
    with quiet():
      yield
  finally:
    log.setLevel(before)


def read(path: Path, grid: base.Grid, *, scan_id: str, identified: bool) -> Source:
  """The series that `dicom.read_series` reads at a path.

  Args:
    path: of the series.
    grid: that `dicom.read_series` gave it.
    scan_id: names it; the patient's ID where the patient is not to be named.
    identified: whether objects carry the patient's identity and the study's own UIDs,
      as an archive needs to file them. If not, UIDs are hashed, the series is named by
      its `scan_id`, and there is no date.

  Raises:
    GeometryError: the series there does not lie on this grid.
    NoCtError, InputError, DamagedFileError...: as `dicom.read_series`.
  """
  found = dicom.source_slices(path, scan_id=scan_id)
  return describe(found, grid, scan_id=scan_id, identified=identified)


def describe(
  slices: Sequence[tuple[Dataset, int]],
  grid: base.Grid,
  *,
  scan_id: str,
  identified: bool,
) -> Source:
  """As `read`, of a series read already.

  Args:
    slices: (header, index of the frame) of each slice as stored, in that order.
    grid: of the scan.
    scan_id: see `read`.
    identified: see `read`.

  Raises:
    GeometryError: they do not lie on this grid.
  """
  with quiet():
    planes = [_plane(header, frame) for header, frame in slices]
    _check_grid(planes, grid, scan_id)
    first = slices[0][0]
    common = _common(first, planes, scan_id, identified)
    uid = str if identified else lambda own: hashed_uid('covid3way', own)
    clean = []
    for k, ((header, _), plane) in enumerate(zip(slices, planes, strict=True)):
      dataset = Dataset()
      dataset.update(common)
      dataset.SOPClassUID = header.get('SOPClassUID') or CTImageStorage
      own = _text(header, 'SOPInstanceUID') or hashed_uid(_series(first), str(k))
      dataset.SOPInstanceUID = uid(own)
      dataset.ImagePositionPatient = decimals(plane.position_mm)
      clean.append(dataset)
    frames = tuple(
      frame + 1 if 'PerFrameFunctionalGroupsSequence' in header else None
      for header, frame in slices
    )
    date = _date(first) if identified else (NO_DATE, NO_TIME)
  return Source(scan_id, tuple(clean), frames, identified, *date)


@dataclasses.dataclass(frozen=True, eq=False)
class _Plane:
  shape: tuple[int, int]  # columns, rows
  position_mm: np.ndarray
  orientation: np.ndarray
  spacing_mm: np.ndarray  # between rows, between columns
  thickness_mm: float | None


def _plane(header: Dataset, frame: int) -> _Plane:
  measures = _group(header, frame, 'PixelMeasuresSequence')
  position = _group(header, frame, 'PlanePositionSequence')
  orientation = _group(header, frame, 'PlaneOrientationSequence')
  thickness = _numbers(measures, 'SliceThickness')
  return _Plane(
    (int(header.Columns), int(header.Rows)),
    _numbers(position, 'ImagePositionPatient'),
    _numbers(orientation, 'ImageOrientationPatient'),
    _numbers(measures, 'PixelSpacing'),
    float(thickness[0]) if len(thickness) == 1 and thickness[0] > 0 else None,
  )


def _group(header: Dataset, frame: int, macro: str) -> Dataset:
  """Where a frame's attributes stand: its own group, the shared one, or the header."""
  own = header.get('PerFrameFunctionalGroupsSequence')
  shared = header.get('SharedFunctionalGroupsSequence')
  groups = [*([own[frame]] if own else []), *(shared or [])]
  return next((g[macro][0] for g in groups if g.get(macro)), header)


def _numbers(dataset: Dataset, keyword: str) -> np.ndarray:
  """(n,) finite values; none where there is another thing."""
  try:
    values = np.atleast_1d(np.asarray(dataset.get(keyword), np.float64))
  except (TypeError, ValueError):
    return np.empty(0)
  return values if np.isfinite(values).all() else np.empty(0)


def _check_grid(planes: Sequence[_Plane], grid: base.Grid, scan_id: str) -> None:
  acquired = grid.acquired
  shape = grid.native_shape if acquired is None else acquired.shape
  fits = {(*p.shape, len(planes)) for p in planes} == {tuple(shape)} and all(
    len(p.position_mm) == 3 and len(p.orientation) == 6 and len(p.spacing_mm) == 2
    for p in planes
  )
  if fits:
    steps = np.arange(len(planes))[:, None] * [0.0, 0.0, 1.0]
    places = steps if acquired is None else acquired.places
    expected = places @ grid.native_affine[:3, :3].T + grid.native_affine[:3, 3]
    positions_mm = np.array([p.position_mm for p in planes])
    apart = np.linalg.norm(expected - positions_mm, axis=1)
    normal = np.cross(*planes[0].orientation.reshape(2, 3))
    # As far off as the reader lets them lie.
    allowed_mm = dicom_geometry.allowed_mm(np.sort(positions_mm @ normal))
    fits = apart.max() < max(_SAME_PLACE_VOXELS * min(grid.spacing_mm), allowed_mm)
  if not fits:
    raise base.GeometryError(
      scan_id,
      'the DICOM series does not lie where the scan was read',
      'leave the series as it is, and run the job again into a new --workdir',
    )


def _common(
  first: Dataset, planes: Sequence[_Plane], scan_id: str, identified: bool
) -> Dataset:
  """What all slices share: also the orientation, whose last digits may differ."""
  series = _series(first)
  uids = {
    'SeriesInstanceUID': series,
    'StudyInstanceUID': _text(first, 'StudyInstanceUID') or hashed_uid(series, 'study'),
    'FrameOfReferenceUID': _text(first, 'FrameOfReferenceUID')
    or hashed_uid(series, 'frame'),
  }
  dataset = Dataset()
  for keyword, value in _BLANK.items():
    setattr(dataset, keyword, value)
  if identified:
    _copy_identity(first, dataset)
  else:
    dataset.PatientID = _short(scan_id)
    uids = {keyword: hashed_uid('covid3way', uid) for keyword, uid in uids.items()}
  for keyword, uid in uids.items():
    setattr(dataset, keyword, uid)
  dataset.Modality = 'CT'
  dataset.Columns, dataset.Rows = planes[0].shape
  dataset.ImageOrientationPatient = decimals(_right_angled(planes[0].orientation))
  dataset.PixelSpacing = decimals(planes[0].spacing_mm)
  apart = np.linalg.norm(planes[1].position_mm - planes[0].position_mm)
  dataset.SliceThickness = decimals([planes[0].thickness_mm or apart])[0]
  _copy_lossy(first, dataset)
  return dataset


def _right_angled(orientation: np.ndarray) -> np.ndarray:
  """(6,) unit vectors at right angles; unchanged where they are, but for rounding."""
  row, column = orientation.reshape(2, 3)
  row = row / np.linalg.norm(row)
  column = column - (column @ row) * row
  right = np.concatenate([row, column / np.linalg.norm(column)])
  return orientation if np.allclose(right, orientation, atol=1e-5) else right


def _copy_identity(header: Dataset, dataset: Dataset) -> None:
  for keyword in _IDENTITY[1:]:  # The character set is ours.
    value = _text(header, keyword)
    if value and (keyword != 'PatientSex' or value in _SEXES):
      setattr(dataset, keyword, value)
  if dataset.get('PatientIdentityRemoved') == 'YES' and (
    'DeidentificationMethod' not in dataset
  ):
    dataset.DeidentificationMethod = 'not told by the source'


def _copy_lossy(header: Dataset, dataset: Dataset) -> None:
  """Whether the source's pixels were changed by their compression."""
  if _text(header, 'LossyImageCompression') != '01':
    return
  dataset.LossyImageCompression = '01'
  if len(ratio := _numbers(header, 'LossyImageCompressionRatio')):
    dataset.LossyImageCompressionRatio = decimals(ratio)
  if method := _text(header, 'LossyImageCompressionMethod'):
    dataset.LossyImageCompressionMethod = method


def _series(header: Dataset) -> str:
  odd = hashed_uid(str(header.get('SeriesInstanceUID')))
  return _text(header, 'SeriesInstanceUID') or odd


def _text(header: Dataset, keyword: str) -> str:
  """A value as text; empty where there is none, or none of its kind."""
  if keyword not in header or header[keyword].value is None:
    return ''
  element = header[keyword]
  values = element.value if element.VM > 1 else [element.value]
  text = '\\'.join(str(v) for v in values).strip(' \0')
  form = _FORMS.get(element.VR)
  return text if form is None or re.fullmatch(form, text) else ''


def _date(header: Dataset) -> tuple[str, str]:
  """Date and time of the series, as near as the header tells."""
  for name in _DATES:
    if date := _text(header, f'{name}Date'):
      return date, _text(header, f'{name}Time') or NO_TIME
  return NO_DATE, NO_TIME


def _short(scan_id: str) -> str:
  """A scan's ID as a patient's: at most 64 characters, none with a meaning."""
  plain = re.sub(r'[\\^=\x00-\x1f]', '_', scan_id)
  return plain if len(plain) <= 64 else hashed_uid(plain)
