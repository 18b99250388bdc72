"""Named ways in which exports break a CT series, that of `chest_series`.

`DEFECTS` says of each whether a reader can put it right, with which warnings, or has to
refuse it, with which error. Files are written by pydicom (and GDCM for one syntax), not
by covid3way. Defects act in stages, from the planes of the scanner to the path that is
given to the reader, so most of them can be combined: see `combine`.
"""

import copy
import dataclasses
import functools
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import series as tiny
from chest_series import (
  CENTRE_MM,
  SLICES,
  Plane,
  clean_planes,
  hu_of,
  planes_of,
  scan_planes,
  store,
  stored,
  to_bytes,
)
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import (
  UID,
  BasicTextSRStorage,
  CTImageStorage,
  DeflatedExplicitVRLittleEndian,
  EnhancedCTImageStorage,
  ExplicitVRBigEndian,
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
  JPEG2000Lossless,
  JPEGLosslessSV1,
  JPEGLSLossless,
  MediaStorageDirectoryStorage,
  RLELossless,
  RTStructureSetStorage,
  SecondaryCaptureImageStorage,
)

from covid3way import base
from covid3way.base import WarningKind

_MARKED = 14  # the slice that suffers where only one does; it crosses lungs and lesion

# Defects

Verdict = frozenset[WarningKind] | type[base.Covid3wayError]
FINE: Verdict = frozenset()
STAGES = ('planes', 'pixels', 'tags', 'slices', 'merge', 'encode', 'files', 'path')


@dataclasses.dataclass(frozen=True)
class Defect:
  """A way to break a series.

  Attributes:
    verdict: the warnings of the scan, or the class of the error.
    touches: what it takes hold of; two defects that share a word do not combine.
    changes: what it does, by stage. In the stage `planes` planes become planes, from
      `pixels` to `merge` uncompressed datasets become datasets, `encode` makes the
      bytes of a dataset, in `files` names and bytes become such, `path` places them in
      a folder and tells what to read.
  """

  verdict: Verdict
  touches: frozenset[str]
  changes: dict[str, Callable]


DEFECTS: dict[str, Defect] = {}


def _defect(stage: str, verdict: Verdict | WarningKind, touches: str = '', name=''):
  if isinstance(verdict, WarningKind):
    verdict = frozenset({verdict})

  def add(change: Callable) -> Callable:
    key, words = name or change.__name__, frozenset(touches.split())
    known = DEFECTS.setdefault(key, Defect(verdict, words, {}))
    assert stage not in known.changes
    assert (known.verdict, known.touches) == (verdict, words)
    known.changes[stage] = change
    return change

  return add


def write(folder: Path, *names: str) -> Path:
  """The clean series with these defects; the path to be read."""
  steps = {s: [] for s in STAGES}
  for name, defect in DEFECTS.items():  # in the order of the table
    for stage, change in defect.changes.items() if name in names else ():
      steps[stage].append(change)
  datasets = scan_planes(_apply(steps['planes'], clean_planes()))
  for stage in ('pixels', 'tags', 'slices', 'merge'):
    datasets = _apply(steps[stage], datasets)
  (encode,) = steps['encode'] or (to_bytes,)
  # Names against the order of the slices, without a suffix, as on many CDs.
  files = {f'IM{(37 * k) % 101:03d}': encode(d) for k, d in enumerate(datasets)}
  (place,) = steps['path'] or (_place,)
  return place(folder, _apply(steps['files'], files))


def _apply(changes: Sequence[Callable], value):
  for change in changes:
    value = change(value)
  return value


def _place(folder: Path, files: dict[str, bytes]) -> Path:
  for name, data in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
  return folder


def combine(first: str, second: str) -> bool:
  """Whether two defects can be had together."""
  a, b = DEFECTS[first], DEFECTS[second]
  both = {'encode', 'path'} & a.changes.keys() & b.changes.keys()
  return first != second and not both and not a.touches & b.touches


def verdict_of_pair(
  first: str, second: str
) -> frozenset[WarningKind] | tuple[type[base.Covid3wayError], ...]:
  """What a pair should give: all warnings, or any of these errors."""
  verdicts = DEFECTS[first].verdict, DEFECTS[second].verdict
  errors = tuple(v for v in verdicts if isinstance(v, type))
  if not errors:
    return verdicts[0] | verdicts[1]
  return errors + tuple(ALSO[n] for n in (first, second) if n in ALSO)


# Planes


def _extended(planes: list[Plane], count: int) -> list[Plane]:
  """More slices at both ends, so that turned slices still cover the lungs."""
  step = planes[1].position - planes[0].position
  before = [planes[0].moved(-step * k) for k in range(count, 0, -1)]
  return [*before, *planes, *(planes[-1].moved(step * k) for k in range(1, count + 1))]


def _turn(axis: Sequence[float], degrees: float) -> np.ndarray:
  """(3, 3) rotation, Rodrigues' formula."""
  x, y, z = np.array(axis) / np.linalg.norm(axis)
  k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  angle = np.radians(degrees)
  return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def _tilted(planes: list[Plane], degrees: float) -> list[Plane]:
  """The gantry turns about the x axis; the table still moves along z."""
  turn, result = _turn((1, 0, 0), degrees), []
  for plane in _extended(planes, 3):
    middle = np.array([*CENTRE_MM[:2], plane.position[2]])
    result.append(
      plane._replace(
        position=middle + turn @ (plane.position - middle),
        row=turn @ plane.row,
        column=turn @ plane.column,
      )
    )
  return result


_TILTED = frozenset({WarningKind.TILT_CORRECTED, WarningKind.OBLIQUE})
for _name, _degrees in {'forward': -18, 'back': 15, 'little': 3}.items():
  _defect('planes', _TILTED, 'direction', f'tilted_{_name}')(
    functools.partial(_tilted, degrees=_degrees)
  )
_LYING = _TILTED, 'direction GantryDetectorTilt', 'tilted_and_the_tag_lies'
_defect('planes', *_LYING)(functools.partial(_tilted, degrees=15))


@_defect('planes', WarningKind.OBLIQUE, 'direction')
def oblique(planes):
  turn = _turn((1, -1, 1), 10)
  return [
    p._replace(
      position=CENTRE_MM + turn @ (p.position - CENTRE_MM),
      row=turn @ p.row,
      column=turn @ p.column,
    )
    for p in _extended(planes, 3)
  ]


def _directions() -> None:
  offered = {
    'sagittal': ((0, 1, 0), (0, 0, -1), 42, (51, 48)),
    'coronal': ((1, 0, 0), (0, 0, -1), 32, (51, 64)),
    'feet_first': ((-1, 0, 0), (0, 1, 0), SLICES, (48, 64)),
    'prone': ((-1, 0, 0), (0, -1, 0), SLICES, (48, 64)),
    'on_the_left_side': ((0, 1, 0), (-1, 0, 0), SLICES, (64, 48)),
  }
  for name, (row, column, count, shape) in offered.items():
    _defect('planes', FINE, 'direction size', name)(
      lambda _, w=(row, column, count), s=shape: planes_of(*w, shape=s)
    )


_directions()


@_defect('planes', FINE, 'direction size')
def pixels_not_square(planes):
  del planes
  return planes_of((1, 0, 0), (0, 1, 0), SLICES, shape=(70, 64), spacing=(4.0, 6.0))


_EVENED = frozenset({WarningKind.SPACING_EVENED, WarningKind.GRID_NOT_STORED})


@_defect('planes', _EVENED, 'step')
def two_zones_of_spacing(planes):
  """The upper half 6 mm apart instead of 9."""
  step, half = planes[1].position - planes[0].position, len(planes) // 2
  count = int((len(planes) - 1 - half) * 1.5)
  upper = [planes[half].moved(step * k / 1.5) for k in range(1, count + 1)]
  return [*planes[: half + 1], *upper]


@_defect('planes', _EVENED, 'step')
def jittered_positions(planes):
  step = planes[1].position - planes[0].position
  shift = np.random.default_rng(3).uniform(-0.16, 0.16, len(planes))
  shift[[0, -1]] = 0
  return [p.moved(step * s) for p, s in zip(planes, shift, strict=True)]


@_defect('planes', FINE, 'step')
def positions_rounded(planes):
  return [p._replace(position=np.round(p.position + 0.03, 1)) for p in planes]


# Datasets


def _each(change: Callable[[Dataset], None]) -> Callable:
  def of_all(datasets):
    for d in datasets:
      change(d)
    return datasets

  of_all.__name__ = change.__name__
  return of_all


def _one(change: Callable[[Dataset], None]) -> Callable:
  def of_one(datasets):
    change(datasets[_MARKED])
    return datasets

  of_one.__name__ = change.__name__
  return of_one


# Pixels


@_defect('pixels', FINE, 'values RescaleSlope')
def slope_of_each_slice(datasets):
  for k, d in enumerate(datasets):
    d.RescaleSlope, hu = (0.25, 0.5, 1, 2)[k % 4], hu_of(d)
    store(d, (hu + 1024) / d.RescaleSlope, '<u2')
  return datasets


def _shift(d: Dataset, intercept: int, dtype: str, edit=lambda values: None) -> None:
  hu = hu_of(d)
  d.RescaleIntercept = intercept
  values = np.rint(hu - intercept).astype(dtype)
  edit(values)
  store(d, values, dtype)


@_defect('pixels', FINE, 'values')
@_each
def signed_pixels(d):
  _shift(d, 0, '<i2')


@_defect('pixels', FINE, 'values')
@_each
def signed_pixels_with_intercept(d):
  _shift(d, -1024, '<i2')


def _outside_circle(d: Dataset) -> np.ndarray:
  j, i = np.ogrid[-1 : 1 : d.Rows * 1j, -1 : 1 : d.Columns * 1j]
  return i**2 + j**2 > 1.05


def _padded(d: Dataset, intercept: int, dtype: str, value: int, tag: int) -> None:
  def pad(values):
    values[_outside_circle(d)] = value

  _shift(d, intercept, dtype, pad)
  vr = 'SS' if d.PixelRepresentation else 'US'
  d.add_new('PixelPaddingValue', vr, tag)


@_defect('pixels', WarningKind.PADDING_CLIPPED, 'values')
@_each
def padding_2000(d):
  _padded(d, 0, '<i2', -2000, -2000)


@_defect('pixels', WarningKind.PADDING_CLIPPED, 'values')
@_each
def padding_3024(d):
  _padded(d, -1024, '<i2', -2000, -2000)


@_defect('pixels', WarningKind.PADDING_REPLACED, 'values')
@_each
def padding_wrapped(d):
  """-2000 in unsigned pixels: 62,512 HU, brighter than any metal."""
  _padded(d, -1024, '<u2', 63536, 63536)


@_defect('pixels', FINE, 'values')
@_each
def padding_tag_means_water(d):
  """Some exporters say that the value of water, or of soft tissue, is padding."""
  _shift(d, 0, '<i2')
  d.add_new('PixelPaddingValue', 'SS', 0)


@_defect('pixels', FINE, 'values')
@_each
def garbage_in_high_bits(d):
  values = stored(d).astype('<u2')
  d.BitsStored, d.HighBit = 12, 11
  d.PixelData = (np.minimum(values, 4095) | 0xA000).astype('<u2').tobytes()


@_defect('pixels', FINE, 'values direction size')
@_each
def metal_on_the_spine(d):
  values = stored(d).copy()
  values[34:36, 31:33] = 13_000
  d.PixelData = values.tobytes()


@_defect('pixels', base.SignalError, 'values')
@_each
def windowed_to_8_bits(d):
  grey = np.clip((hu_of(d) + 1200) / 1200, 0, 1) * 255
  store(d, grey, '<u1')
  d.RescaleIntercept, d.RescaleSlope = 0, 1


@_defect('pixels', base.SignalError, 'values')
@_each
def windowed_in_16_bits(d):
  grey = np.clip((hu_of(d) + 1200) / 1200, 0, 1) * 255
  store(d, grey, '<u2')
  d.RescaleIntercept, d.RescaleSlope = 0, 1


@_defect('pixels', base.SignalError, 'values')
@_each
def inverted_values(d):
  d.PixelData = (4095 - np.minimum(stored(d), 4095)).astype('<u2').tobytes()


@_defect('pixels', base.SignalError, 'values')
@_each
def intercept_0_for_1024(d):
  d.RescaleIntercept = 0


@_defect('pixels', base.SignalError, 'values')
@_each
def all_of_one_value(d):
  d.PixelData = np.full((d.Rows, d.Columns), 1024, '<u2').tobytes()


@_defect('pixels', base.DamagedFileError, 'values')
@_one
def pixels_all_zero_in_one(d):
  d.PixelData = bytes(len(d.PixelData))


# Tags


def _raw(d: Dataset, keyword: str, text: bytes, vr: str = 'DS') -> None:
  """Any text under a tag, whatever pydicom thinks of it."""
  tag = Tag(keyword)
  text += b' ' * (len(text) % 2)
  d[tag] = RawDataElement(tag, vr, len(text), text, 0, False, True)


_FOR_CODECS = ('Rows', 'SamplesPerPixel')  # without which nothing can be compressed


def _tag_table() -> None:
  """Defects that set or delete one tag, in all slices or in one."""
  where = {'all': _each, 'one': _one}
  none = object()
  table = (
    ('gantry_tag_without_tilt', FINE, 'all', 'GantryDetectorTilt', 20),
    ('thicker_than_increment', FINE, 'all', 'SliceThickness', 25),
    ('thickness_absent', FINE, 'all', 'SliceThickness', none),
    ('instance_numbers_equal', FINE, 'all', 'InstanceNumber', 1),
    ('slice_location_wrong', FINE, 'all', 'SliceLocation', 0),
    ('sop_uids_equal', FINE, 'all', 'SOPInstanceUID', '1.2.826.1'),
    ('sop_uid_absent', FINE, 'one', 'SOPInstanceUID', none),
    ('image_type_absent', FINE, 'all', 'ImageType', none),
    ('series_uid_absent', base.DamagedFileError, 'all', 'SeriesInstanceUID', none),
    ('position_absent_in_one', base.DamagedFileError, 'one', 'ImagePositionPatient',
     none),
    ('position_absent', base.DamagedFileError, 'all', 'ImagePositionPatient', none),
    ('position_of_2_numbers', base.DamagedFileError, 'one', 'ImagePositionPatient',
     [0, 0]),
    ('orientation_absent', base.DamagedFileError, 'all', 'ImageOrientationPatient',
     none),
    ('orientation_not_unit', base.DamagedFileError, 'all', 'ImageOrientationPatient',
     [1, 0, 0, 1, 0, 0]),
    ('pixel_spacing_absent', base.DamagedFileError, 'all', 'PixelSpacing', none),
    ('pixel_spacing_0', base.DamagedFileError, 'one', 'PixelSpacing', [0, 0]),
    ('other_pixel_spacing_in_one', base.GeometryError, 'one', 'PixelSpacing', [5, 5]),
    ('slope_0', base.DamagedFileError, 'one', 'RescaleSlope', 0),
    ('slope_absent', base.DamagedFileError, 'all', 'RescaleSlope', none),
    ('intercept_absent', base.DamagedFileError, 'one', 'RescaleIntercept', none),
    ('monochrome_1', base.SignalError, 'all', 'PhotometricInterpretation',
     'MONOCHROME1'),
    ('window_mediastinal', FINE, 'all', 'WindowCenter', 40),
    ('window_of_several', FINE, 'all', 'WindowCenter', [-600, 40, 300]),
    ('window_absent', FINE, 'all', 'WindowWidth', none),
    ('rows_absent', base.DamagedFileError, 'one', 'Rows', none),
    ('modality_absent', FINE, 'all', 'Modality', none),
    ('sop_class_absent', FINE, 'all', 'SOPClassUID', none),
    ('colour_claimed', base.NoCtError, 'all', 'SamplesPerPixel', 3),
  )  # fmt: skip
  for name, verdict, which, keyword, value in table:

    def change(d, keyword=keyword, value=value):
      if value is none:
        if keyword in d:
          delattr(d, keyword)
      else:
        setattr(d, keyword, value)

    touches = f'{keyword} codec' if keyword in _FOR_CODECS else keyword
    _defect('tags', verdict, touches, name)(where[which](change))


_tag_table()


@_each
def _tag_that_lies(d):
  d.GantryDetectorTilt = 15  # backwards; the positions say forwards


_defect('tags', *_LYING)(_tag_that_lies)


def _text_table() -> None:
  """Defects that put odd text, or text of another type, under one tag."""
  where = {'all': _each, 'one': _one}
  table = (
    ('slope_nan', base.DamagedFileError, 'one', 'RescaleSlope', b'NaN', 'DS'),
    ('slope_text', base.DamagedFileError, 'one', 'RescaleSlope', b'HU', 'DS'),
    ('intercept_inf', base.DamagedFileError, 'one', 'RescaleIntercept', b'-inf', 'DS'),
    ('window_text', FINE, 'all', 'WindowCenter', b'LUNG', 'DS'),
    ('window_empty', FINE, 'all', 'WindowCenter', b'', 'DS'),
    ('window_decimal_comma', FINE, 'all', 'WindowCenter', b'-600,5', 'DS'),
    ('slope_with_spaces', FINE, 'all', 'RescaleSlope', b'  1.0e0    ', 'DS'),
    ('slope_of_type_lo', FINE, 'all', 'RescaleSlope', b'1', 'LO'),
    ('spacing_with_spaces', FINE, 'all', 'PixelSpacing', b' 6.0 \\ 6.0 ', 'DS'),
    ('spacing_of_type_lo', FINE, 'all', 'PixelSpacing', b'6.0\\6.0', 'LO'),
    ('spacing_decimal_comma', base.DamagedFileError, 'all', 'PixelSpacing',
     b'6,0\\6,0', 'DS'),
    ('position_text', base.DamagedFileError, 'one', 'ImagePositionPatient', b'a\\b\\c',
     'DS'),
    ('position_nan', base.DamagedFileError, 'one', 'ImagePositionPatient',
     b'0\\0\\nan', 'DS'),
    ('instance_number_text', FINE, 'all', 'InstanceNumber', b'first', 'IS'),
    ('character_set_unknown', FINE, 'all', 'SpecificCharacterSet', b'KOI-99', 'CS'),
    ('name_in_no_character_set', FINE, 'all', 'PatientName',
     b'\xff\xfe\x80M\xc3ller^\x1b$)X', 'PN'),
  )  # fmt: skip
  for name, verdict, which, keyword, text, vr in table:

    def change(d, keyword=keyword, text=text, vr=vr):
      _raw(d, keyword, text, vr)

    touches = keyword
    if keyword == 'PixelSpacing':
      touches += ' size'
    _defect('tags', verdict, touches, name)(where[which](change))


_text_table()


@_defect('tags', FINE, 'InstanceNumber')
def instance_numbers_shuffled(datasets):
  order = np.random.default_rng(5).permutation(len(datasets))
  for d, k in zip(datasets, order, strict=True):
    d.InstanceNumber = int(k)
  return datasets


@_defect('tags', FINE)
@_each
def private_tags(d):
  block = d.private_block(0x0099, 'ACME HEADER', create=True)
  block.add_new(1, 'OB', bytes(range(256)) * 4)
  block.add_new(2, 'LT', 'Rows\\Columns\\PixelData')


@_defect('tags', base.MixedPatientsError, 'PatientName')
def two_patients(datasets):
  for d in datasets[::2]:
    d.PatientID = 'HOSP4712'
  return datasets


@_defect('tags', base.GeometryError, 'size values Rows')
@_one
def other_size_in_one(d):
  values = stored(d)[:-8]
  d.Rows, d.PixelData = values.shape[0], values.tobytes()


@_defect('tags', base.GeometryError, 'ImageOrientationPatient direction')
@_one
def other_orientation_in_one(d):
  d.ImageOrientationPatient = [1, 0, 0, 0, 0.98, 0.198997]


# Slices


@_defect('slices', base.MissingSliceError, 'step slices')
def one_slice_missing(datasets):
  return datasets[:_MARKED] + datasets[_MARKED + 1 :]


@_defect('slices', base.MissingSliceError, 'step slices')
def slices_missing(datasets):
  return [d for k, d in enumerate(datasets) if k not in (6, 15, 16, 17, 24)]


@_defect('slices', FINE, 'slices')
def first_and_last_missing(datasets):
  return datasets[1:-1]


@_defect('slices', base.GeometryError, 'slices step')
def two_slices_left(datasets):
  return datasets[12:14]


@_defect('slices', WarningKind.DUPLICATE_FILE_DROPPED, 'slices SOPInstanceUID')
def copies(datasets):
  return datasets + [copy.deepcopy(d) for d in datasets[10:13]]


def _copied(datasets: Sequence[Dataset], branch: str, **tags) -> list[Dataset]:
  """The same slices again, with UIDs of their own."""
  result = []
  for k, d in enumerate(copy.deepcopy(list(datasets))):
    d.SOPInstanceUID = f'1.2.826.{branch}.{k + 1}'
    for keyword, value in tags.items():
      setattr(d, keyword, value)
    result.append(d)
  return result


@_defect('slices', WarningKind.DUPLICATE_FILE_DROPPED, 'slices SOPInstanceUID')
def copies_with_uids_of_their_own(datasets):
  return datasets + _copied(datasets[8:14], '21')


def _noisy(datasets: Sequence[Dataset]) -> None:
  rng = np.random.default_rng(7)
  for d in datasets:
    values = stored(d)
    noise = rng.integers(-12, 13, values.shape)
    limits = np.iinfo(values.dtype)
    values = np.clip(values.astype(int) + noise, limits.min, limits.max)
    d.PixelData = values.astype(stored(d).dtype).tobytes()


@_defect('slices', base.DuplicateSliceError, 'slices SOPInstanceUID values Rows')
def two_slices_at_one_place(datasets):
  again = _copied(datasets[9:10], '22')
  _noisy(again)
  return datasets + again


@_defect('slices', WarningKind.SERIES_CHOSEN, 'slices SOPInstanceUID values Rows')
def two_kernels_in_one_series(datasets):
  again = _copied(datasets, '23', ConvolutionKernel='B70f')
  _noisy(again)
  return datasets + again


@_defect('slices', WarningKind.SERIES_CHOSEN, 'slices SOPInstanceUID SeriesInstanceUID')
def thick_and_thin_series(datasets):
  thick = _copied(datasets[::2], '24', SeriesInstanceUID='1.2.826.33')
  return datasets + thick


@_defect('slices', WarningKind.SERIES_CHOSEN, 'slices SOPInstanceUID SeriesInstanceUID')
def short_series_beside(datasets):
  return datasets + _copied(datasets[10:14], '25', SeriesInstanceUID='1.2.826.33')


def _scout(datasets: Sequence[Dataset], **tags) -> Dataset:
  """A view from the front, as long as the chest, in the same series."""
  (scout,) = scan_planes(planes_of((1, 0, 0), (0, 0, -1), 1, shape=(60, 64)))
  scout.SOPInstanceUID = '1.2.826.26.1'
  for d in datasets[:1]:
    for keyword in ('SeriesInstanceUID', 'PatientID', 'PatientName'):
      if keyword in d:
        scout[Tag(keyword)] = d.get_item(keyword)
  for keyword, value in tags.items():
    setattr(scout, keyword, value)
  return scout


@_defect('slices', WarningKind.FILES_IGNORED, 'scout')
def localizer(datasets):
  image_type = ['ORIGINAL', 'PRIMARY', 'LOCALIZER']
  return [_scout(datasets, ImageType=image_type), *datasets]


@_defect('slices', WarningKind.SLICES_IGNORED, 'scout direction')
def localizer_that_does_not_say_so(datasets):
  return [_scout(datasets), *datasets]


@_defect('slices', FINE, 'order')
def order_shuffled(datasets):
  order = np.random.default_rng(9).permutation(len(datasets))
  return [datasets[k] for k in order]


# Several slices in one file

_MACROS = {
  'PixelMeasuresSequence': ('PixelSpacing', 'SliceThickness'),
  'PlaneOrientationSequence': ('ImageOrientationPatient',),
  'PlanePositionSequence': ('ImagePositionPatient',),
  'PixelValueTransformationSequence': (
    'RescaleIntercept', 'RescaleSlope', 'RescaleType',
  ),
  'FrameVOILUTSequence': ('WindowCenter', 'WindowWidth'),
  'CTImageFrameTypeSequence': ('ImageType',),
}  # fmt: skip


# Of what is said of each file, a merged one says what the first did.
_MERGED = (
  'slices size order scout Rows SamplesPerPixel SOPInstanceUID SOPClassUID PatientName'
)


@_defect('merge', FINE, _MERGED)
def enhanced_multi_frame(datasets):
  """All slices as frames of one Enhanced CT object (PS3.3, A.38)."""
  first = copy.deepcopy(datasets[0])
  merged = Dataset()
  merged.file_meta = first.file_meta
  merged.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
  moved = {Tag(k) for keywords in _MACROS.values() for k in keywords}
  moved |= {Tag('SliceLocation'), Tag('InstanceNumber')}
  for tag in first.keys():
    if tag not in moved:
      merged[tag] = first.get_item(tag)
  merged.SOPClassUID, merged.NumberOfFrames = EnhancedCTImageStorage, len(datasets)
  merged.ImageType = ['ORIGINAL', 'PRIMARY', 'VOLUME', 'NONE']
  merged.InstanceNumber = 1
  merged.PixelData = b''.join(d.PixelData for d in datasets)
  shared, frames = Dataset(), [Dataset() for _ in datasets]
  for macro, keywords in _MACROS.items():
    items = [_picked(d, keywords) for d in datasets]
    if all(str(i) == str(items[0]) for i in items[1:]):
      setattr(shared, macro, Items([items[0]]))
    else:
      for frame, item in zip(frames, items, strict=True):
        setattr(frame, macro, Items([item]))
  merged.SharedFunctionalGroupsSequence = Items([shared])
  merged.PerFrameFunctionalGroupsSequence = Items(frames)
  return [merged]


def _picked(d: Dataset, keywords: Sequence[str]) -> Dataset:
  item = Dataset()
  for keyword in keywords:
    if keyword in d:
      item[Tag(keyword)] = d.get_item(keyword)
  return item


# Files


def _encoded(syntax: UID, d: Dataset) -> bytes:
  if syntax == JPEGLosslessSV1:
    _compress_by_gdcm(d, syntax)
  elif syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
    d.compress(syntax, generate_instance_uid=False)
  d.file_meta.TransferSyntaxUID = syntax
  return to_bytes(d)


def _compress_by_gdcm(d: Dataset, syntax: UID) -> None:
  """Through a file that holds nothing else: odd headers abort GDCM's own reader."""
  plain = Dataset()
  plain.SOPClassUID, plain.SOPInstanceUID = CTImageStorage, '1.2.826.7'
  for keyword in (
    'SamplesPerPixel', 'PhotometricInterpretation', 'Rows', 'Columns', 'NumberOfFrames',
    'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation', 'PixelData',
  ):  # fmt: skip
    if keyword in d:
      plain[keyword] = d[keyword]
  plain.file_meta = FileMetaDataset()
  plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'slice')
    path.write_bytes(to_bytes(plain))
    tiny.compress(path, syntax)
    d['PixelData'] = pydicom.dcmread(path)['PixelData']


_SYNTAXES = {
  'implicit_vr': ImplicitVRLittleEndian,
  'big_endian': ExplicitVRBigEndian,
  'deflated': DeflatedExplicitVRLittleEndian,
  'jpeg_lossless': JPEGLosslessSV1,
  'jpeg_ls': JPEGLSLossless,
  'jpeg_2000': JPEG2000Lossless,
  'rle': RLELossless,
}
for _name, _syntax in _SYNTAXES.items():
  _defect('encode', FINE, 'codec', _name)(functools.partial(_encoded, _syntax))


@_defect('encode', FINE, 'codec')
def syntaxes_mixed(d):
  syntaxes = [ExplicitVRLittleEndian, *_SYNTAXES.values()]
  return _encoded(syntaxes[zlib.crc32(d.PixelData) % len(syntaxes)], d)


@_defect('encode', FINE, 'bytes')
def no_preamble(d):
  return to_bytes(d)[132:]


def _header_length(data: bytes) -> int:
  """Of preamble and file header: its group length is its first element."""
  return 144 + int.from_bytes(data[140:144], 'little')


@_defect('encode', FINE, 'SOPClassUID bytes')
def no_file_header(d):
  data = to_bytes(d)
  return data[_header_length(data) :]


@_defect('encode', FINE)
def trailing_zeros(d):
  return to_bytes(d) + bytes(512)


def _damage(change: Callable[[bytes], bytes]) -> Callable:
  def of_one(files):
    name = list(files)[min(_MARKED, len(files) - 1)]
    return files | {name: change(files[name])}

  of_one.__name__ = change.__name__
  return of_one


@_defect('files', base.DamagedFileError, 'bytes')
@_damage
def pixels_cut_short(data):
  return data[: -len(data) // 3]


@_defect('files', base.DamagedFileError, 'bytes')
@_damage
def header_cut_short(data):
  return data[: _header_length(data) + 250]


@_defect('files', base.DamagedFileError, 'bytes')
@_damage
def zeros_from_the_middle(data):
  """As after a copy that broke off on a disk that had room for the file."""
  return data[:600] + bytes(len(data) - 600)


def _beside(verdict: Verdict | WarningKind, name: str, path: str, data: bytes) -> None:
  _defect('files', verdict, name=name)(lambda files: {path: data, **files})


def _other_object(uid: UID, **tags) -> bytes:
  d = Dataset()
  d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = uid, '1.2.826.8.1', '1.2.826.8'
  d.PatientName, d.PatientID = 'Mustermann^Erika', 'HOSP4711'
  for keyword, value in tags.items():
    setattr(d, keyword, value)
  d.file_meta = FileMetaDataset()
  d.file_meta.MediaStorageSOPClassUID = uid
  d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  return to_bytes(d)


_COLOUR = {
  'Rows': 4,
  'Columns': 4,
  'SamplesPerPixel': 3,
  'PhotometricInterpretation': 'RGB',
  'PlanarConfiguration': 0,
  'BitsAllocated': 8,
  'BitsStored': 8,
  'HighBit': 7,
  'PixelRepresentation': 0,
  'PixelData': bytes(48),
}
_IGNORED = WarningKind.FILES_IGNORED
_beside(_IGNORED, 'text_file_beside', 'notes.txt', b'Seen by the radiologist.' * 20)
_beside(_IGNORED, 'empty_file_beside', 'export.log', b'')
_beside(_IGNORED, 'picture_beside', 'key.jpg', b'\xff\xd8\xff\xe0' + bytes(400))
_beside(_IGNORED, 'structures_beside', 'RS1', _other_object(RTStructureSetStorage))
_beside(_IGNORED, 'report_beside', 'SR1', _other_object(BasicTextSRStorage))
_beside(
  _IGNORED,
  'dose_picture_beside',
  'SC1',
  _other_object(SecondaryCaptureImageStorage, **_COLOUR),
)
_beside(
  _IGNORED, 'directory_beside', 'DICOMDIR', _other_object(MediaStorageDirectoryStorage)
)
_beside(FINE, 'hidden_file_beside', '.DS_Store', b'Bud1')
_beside(base.DamagedFileError, 'empty_file_named_dcm', '0099.dcm', b'')
_beside(base.DamagedFileError, 'web_page_named_dcm', '0099.dcm', b'<html>' * 50)


# Where the files lie


@_defect('path', FINE)
def nested_folders(folder, files):
  """As on a CD, names of folders long and with a space; an empty one beside."""
  (folder / 'empty').mkdir(parents=True)
  return _place(
    folder,
    {f'DICOM/ST 00{k % 3}/SE1/{n}': files[n] for k, n in enumerate(files)},
  )


def _zip(folder: Path, files: dict[str, bytes]) -> Path:
  folder.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(folder / 'scan.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, data in files.items():
      archive.writestr(name, data)
  return folder / 'scan.zip'


_defect('path', FINE, name='zipped')(_zip)


@_defect('path', FINE)
def zipped_on_a_mac(folder, files):
  forks = {f'__MACOSX/ct/._{name}': b'a resource fork' * 12 for name in files}
  return _zip(folder, forks | {f'ct/{name}': data for name, data in files.items()})


@_defect('path', base.DamagedFileError)
def zip_cut_short(folder, files):
  path = _zip(folder, files)
  path.write_bytes(path.read_bytes()[:-200])
  return path


@_defect('path', base.DamagedFileError)
def zip_with_flipped_bytes(folder, files):
  path = _zip(folder, files)
  data = bytearray(path.read_bytes())
  at = data.index(next(iter(files)).encode()) + 300
  data[at : at + 8] = bytes(255 - b for b in data[at : at + 8])
  path.write_bytes(data)
  return path


# What else may be told where there is something else wrong, too.
ALSO = {
  'other_pixel_spacing_in_one': base.MissingSliceError,  # left out, then missing
  'other_size_in_one': base.MissingSliceError,
  'other_orientation_in_one': base.MissingSliceError,
  'localizer_that_does_not_say_so': base.GeometryError,  # not left out
  'enhanced_multi_frame': base.InputError,  # frames without a place
}
