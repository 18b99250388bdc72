"""Randomly damaged files and headers: a scan that is finite, or an error by name.

Mutation `n` depends on `n` alone, so a number in a failure is enough to see it again:
`mutate(n, folder)`. The fast run takes the first 300, the slow one (-m slow) 5,000; a
longer one is `MUTATIONS=200000 pytest -m slow tests/test_mutations.py`, about 15 ms
each. None may take more than 5 s, or ask for more than 1 GiB.
"""

import contextlib
import functools
import gzip
import io
import os
import resource
import shutil
import signal
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import broken_dicom as broken
import nibabel
import numpy as np
import pydicom
import pytest
import series
from pydicom import filewriter
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.tag import Tag

from covid3way import base
from covid3way.scans import source

FAST, SLOW, BLOCK = 300, int(os.environ.get('MUTATIONS', 5000)), 250
SEED = 6
_SECONDS, _BYTES = 5, 2**30
_SHAPE = (34, 33, 5)  # JPEG 2000 wants 32 at least

# Every tag that a reader looks at, and those that decoders do.
KEYWORDS = (
  'SpecificCharacterSet', 'ImageType', 'SOPClassUID', 'SOPInstanceUID', 'Modality',
  'Manufacturer', 'PatientName', 'PatientID', 'SliceThickness', 'GantryDetectorTilt',
  'ConvolutionKernel', 'SeriesInstanceUID', 'InstanceNumber', 'AcquisitionNumber',
  'AcquisitionTime', 'TemporalPositionIndex', 'ImagePositionPatient',
  'ImageOrientationPatient', 'SliceLocation', 'SamplesPerPixel',
  'PhotometricInterpretation', 'PlanarConfiguration', 'NumberOfFrames', 'Rows',
  'Columns', 'PixelSpacing', 'BitsAllocated', 'BitsStored', 'HighBit',
  'PixelRepresentation', 'PixelPaddingValue', 'PixelPaddingRangeLimit', 'WindowCenter',
  'WindowWidth', 'RescaleIntercept', 'RescaleSlope', 'RescaleType', 'PixelData',
  'PatientBirthDate', 'PatientIdentityRemoved', 'FrameType', 'KVP',
)  # fmt: skip
_TEXTS = (
  b'', b' ', b'0', b'1', b'-1', b'1e308', b'-1e308', b'1e-308', b'1e30', b'65535',
  b'4294967296', b'NaN', b'inf', b'-inf', b'1,5', b'1.5.2', b'0x10', b'abc', b'\\',
  b'\\\\\\\\', b'1\\2', b'1\\2\\3', b'1\\0\\0\\0\\1\\0', b'0\\0\\0\\0\\0\\0',
  b'1e200\\1e200\\1e200', b'0.0001\\0.0001', b'1e-9\\1e-9', b'LOCALIZER', b'MONO1',
  b'RGB', b'PALETTE COLOR', b'YES', b'\xff\xfe\x00\x80', b'\x1b$B\x1b(B', b'9' * 64,
  b'A' * 5000, b'1.2.840.10008.5.1.4.1.1.2.1', b'1.2.840.10008.1.2.4.50',
  b'\x00\x00', b'\x01\x00', b'\xff\xff', b'\x00\x80', b'\x03\x00', b'\x08\x00',
  b'\x20\x00', b'\x00\x00\x00\x00', b'\xff\xff\xff\xff', b'\xff\xff\xff\x7f',
)  # fmt: skip
_VRS = (
  'CS', 'DA', 'DS', 'FD', 'FL', 'IS', 'LO', 'OB', 'OW', 'PN', 'SL', 'SQ', 'SS', 'UI',
  'UL', 'UN', 'US', 'UT',
)  # fmt: skip


class Mutant(NamedTuple):
  """What was damaged, how, and what is given to the reader."""

  kind: str
  path: Path


# Clean files


def _write_clean(**tags) -> list[pydicom.Dataset]:
  return series.slices(shape=_SHAPE, **tags)


@functools.cache
def clean_files(encoding: str) -> dict[str, bytes]:
  """A tiny series, one file per slice, or one file."""
  if encoding == 'enhanced_multi_frame':
    datasets = _merged()
    return {'IM0': series.to_bytes(datasets)}
  encode = series.to_bytes
  if encoding in broken.DEFECTS:
    encode = broken.DEFECTS[encoding].changes['encode']
  return {f'IM{k}': encode(d) for k, d in enumerate(_write_clean())}


def _merged() -> pydicom.Dataset:
  (merged,) = broken.DEFECTS['enhanced_multi_frame'].changes['merge'](_write_clean())
  return merged


@functools.cache
def clean_nifti() -> bytes:
  values = np.linspace(-1000, 400, 6 * 5 * 4).reshape(6, 5, 4)
  image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1, 2, 1]))
  image.header.set_xyzt_units('mm')
  return image.to_bytes()


CSV = (
  'patient_id,scan_id,day,image,window_level_hu,window_width_hu,stage,site\n'
  'p1,s1,0,a.nii,-600,1200,early,A\n'
  'p1,s2,3.5,b.nii,,,"severe, late",A\n'
  'p2,s3,,a.nii,-500,1500,,"B ""north"""\n'
)


# Damage


def damage(data: bytes, rng: np.random.Generator, *, until: int | None = None) -> bytes:
  """A few bytes changed, cut out, put in, doubled or zeroed, most often early on."""
  end = len(data) if until is None or rng.random() < 0.2 else min(until, len(data))
  data = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    at, size = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 40))
    way = rng.integers(8)
    if way <= 2:  # flip bits
      for place in rng.integers(0, max(end, 1), rng.integers(1, 6)):
        if place < len(data):
          data[place] ^= 1 << int(rng.integers(8))
    elif way == 3:  # any bytes
      data[at : at + size] = rng.bytes(size)
    elif way == 4:  # put in
      data[at:at] = rng.bytes(size)
    elif way == 5:  # cut out
      del data[at : at + size]
    elif way == 6:  # an extreme value
      size = int(rng.choice([2, 4]))
      value = rng.choice([b'\xff', b'\0', b'\x7f', b'\x80'])
      data[at : at + size] = bytes(value * size)[:size]
    else:  # cut short
      del data[int(rng.integers(0, len(data) + 1)) :]
  return bytes(data)


def _odd_element(rng: np.random.Generator) -> RawDataElement:
  tag = Tag(str(rng.choice(KEYWORDS)))
  vr = dictionary_VR(tag) if rng.random() < 0.7 else str(rng.choice(_VRS))
  vr = vr if len(vr) == 2 else str(rng.choice(['US', 'SS', 'OW']))
  text = _TEXTS[rng.integers(len(_TEXTS))]
  text += b' ' * (len(text) % 2)
  return _raw(tag, vr, text)


def _set(d: pydicom.Dataset, element: RawDataElement, rng: np.random.Generator):
  """In the dataset; of an enhanced one also in any of its functional groups."""
  places = list(_with_items(d))
  holding = [p for p in places if element.tag in p]
  place = holding[rng.integers(len(holding))] if holding else places[0]
  if rng.random() < 0.15:
    if element.tag in place:
      del place[element.tag]
  else:
    place[element.tag] = element


def _to_bytes(d: pydicom.Dataset) -> bytes:
  """A file with odd elements as they are: what was not decoded is copied."""
  d.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
  stream = DicomBytesIO(bytes(128) + b'DICM')
  stream.seek(0, os.SEEK_END)
  filewriter.write_file_meta_info(stream, d.file_meta)
  return stream.getvalue() + _elements(d)


def _elements(d: pydicom.Dataset) -> bytes:
  """Explicit VR little endian; sequences and their items of known length."""
  stream = DicomBytesIO()
  stream.is_little_endian, stream.is_implicit_VR = True, False
  for tag in sorted(d.keys()):
    element = d.get_item(tag)
    if not isinstance(element, RawDataElement):
      if element.VR == 'SQ':
        items = [_elements(item) for item in element.value]
        parts = [b'\xfe\xff\x00\xe0' + struct.pack('<L', len(i)) + i for i in items]
        element = _raw(tag, 'SQ', b''.join(parts))
      elif tag == Tag('PixelData'):
        element = _raw(tag, 'OW', element.value)
    filewriter.write_data_element(stream, element, ['iso8859'])
  return stream.getvalue()


def _raw(tag: Tag, vr: str, value: bytes) -> RawDataElement:
  return RawDataElement(tag, vr, len(value), value, 0, False, True)


def _with_items(d: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
  """The dataset, and those in its sequences."""
  yield d
  for tag in list(d.keys()):
    element = d.get_item(tag)
    if not isinstance(element, RawDataElement) and element.VR == 'SQ':
      for item in element.value:
        yield from _with_items(item)


# Kinds: (rng, folder) -> path


def _series_bytes(encoding: str, rng: np.random.Generator, folder: Path) -> Path:
  files = dict(clean_files(encoding))
  name = str(rng.choice(list(files)))
  files[name] = damage(files[name], rng, until=_header_end(files[name], encoding))
  return _place(folder, files)


def _header_end(data: bytes, encoding: str) -> int | None:
  at = data.rfind(b'\xe0\x7f\x10\x00')
  # Of compressed files the pixels are the interesting part.
  return None if at < 0 or encoding.startswith(('jpeg', 'rle')) else at + 12


def _series_elements(rng: np.random.Generator, folder: Path) -> Path:
  datasets = _write_clean()
  for _ in range(rng.integers(1, 3)):
    element = _odd_element(rng)
    seed = rng.integers(2**32)
    some = datasets if rng.random() < 0.5 else [datasets[rng.integers(len(datasets))]]
    for d in some:
      _set(d, element, np.random.default_rng(seed))
  return _place(folder, {f'IM{k}': _to_bytes(d) for k, d in enumerate(datasets)})


def _frame_elements(rng: np.random.Generator, folder: Path) -> Path:
  merged = _merged()
  for _ in range(rng.integers(1, 4)):
    _set(merged, _odd_element(rng), rng)
  return _place(folder, {'IM0': _to_bytes(merged)})


def _nifti_bytes(rng: np.random.Generator, folder: Path) -> Path:
  return _file(folder, 'scan.nii', damage(clean_nifti(), rng, until=352))


def _gzip_bytes(rng: np.random.Generator, folder: Path) -> Path:
  """Damaged before it was compressed, or after."""
  if rng.random() < 0.5:
    data = gzip.compress(damage(clean_nifti(), rng, until=352))
  else:
    data = damage(gzip.compress(clean_nifti()), rng)
  return _file(folder, 'scan.nii.gz', data)


def _zip_bytes(rng: np.random.Generator, folder: Path) -> Path:
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, data in clean_files('plain').items():
      archive.writestr(name, data)
  return _file(folder, 'scan.zip', damage(stream.getvalue(), rng))


def _manifest_bytes(rng: np.random.Generator, folder: Path) -> Path:
  for name in ('a.nii', 'b.nii'):
    _file(folder, name, clean_nifti())
  return _file(folder, 'manifest.csv', damage(CSV.encode(), rng))


def _place(folder: Path, files: dict[str, bytes]) -> Path:
  for name, data in files.items():
    _file(folder / 'ct', name, data)
  return folder / 'ct'


def _file(folder: Path, name: str, data: bytes) -> Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_bytes(data)
  return folder / name


ENCODINGS = (
  'plain', 'implicit_vr', 'big_endian', 'deflated', 'jpeg_lossless', 'jpeg_ls',
  'jpeg_2000', 'rle', 'no_file_header', 'enhanced_multi_frame',
)  # fmt: skip
KINDS = {
  **{f'bytes of {e}': functools.partial(_series_bytes, e) for e in ENCODINGS},
  **{f'elements {k}': _series_elements for k in range(6)},
  **{f'frame elements {k}': _frame_elements for k in range(3)},
  'nifti': _nifti_bytes,
  'nifti.gz': _gzip_bytes,
  'zip': _zip_bytes,
  'manifest': _manifest_bytes,
}


def mutate(number: int, folder: Path) -> Mutant:
  kind = list(KINDS)[number % len(KINDS)]
  return Mutant(kind, KINDS[kind](np.random.default_rng([SEED, number]), folder))


# What is to come of it


class TooLong(BaseException):
  """Not an Exception, which a reader may catch."""


@contextlib.contextmanager
def bounds():
  """Memory that runs out early, so that a huge request is an error."""

  def stop(*_):
    raise TooLong

  limits = resource.getrlimit(resource.RLIMIT_AS)
  used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, limits[1]))
  before = signal.signal(signal.SIGALRM, stop)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def outcome(path: Path) -> str:
  """'scan' for one that is finite, or the name of the error; else raises."""
  signal.alarm(_SECONDS)
  try:
    rows = source.resolve(path)
    for row in rows if path.suffix != '.csv' else ():
      _check_finite(source.read_scan(row))
  except base.Covid3wayError as error:
    assert error.found
    assert error.remedy
    return type(error).__name__
  finally:
    signal.alarm(0)
  return 'scan'


def _check_finite(scan: base.Scan) -> None:
  assert scan.hu.dtype == np.float32
  assert scan.hu.shape == scan.grid.shape
  assert np.isfinite(scan.hu).all()
  assert scan.hu.min() >= base.AIR_HU
  assert np.isfinite(scan.grid.affine).all()
  assert min(scan.grid.spacing_mm) > 0


def run(numbers: range, folder: Path) -> dict[str, int]:
  """How often each outcome came; fails with all that went wrong."""
  counts, wrong = {}, []
  with bounds():
    for number in numbers:
      mutant = mutate(number, folder)
      try:
        result = outcome(mutant.path)
        counts[result] = counts.get(result, 0) + 1
      except (Exception, TooLong) as error:
        told = str(error).splitlines()[:1]
        wrong.append(f'{number} ({mutant.kind}): {type(error).__name__} {told}')
      shutil.rmtree(folder)
  assert not wrong, '\n'.join(wrong)
  return counts


@pytest.fixture(autouse=True)
def limits_can_be_set():
  if not Path('/proc/self/statm').exists():
    pytest.skip('the memory of a process can only be bounded on Linux')


def test_files_before_damage_are_scans(tmp_path):
  for k, encoding in enumerate(ENCODINGS):
    assert outcome(_place(tmp_path / str(k), clean_files(encoding))) == 'scan', encoding
  assert outcome(_file(tmp_path, 'scan.nii', clean_nifti())) == 'scan'
  rows = source.resolve(_manifest(tmp_path))
  assert [row.scan_id for row in rows] == ['s1', 's2', 's3']


def _manifest(folder: Path) -> Path:
  for name in ('a.nii', 'b.nii'):
    _file(folder, name, clean_nifti())
  return _file(folder, 'manifest.csv', CSV.encode())


def test_mutations(tmp_path):
  counts = run(range(FAST), tmp_path / 'mutant')
  assert counts['scan'] > FAST / 10  # most damage is told, but not all damage matters
  assert len(counts) > 5


def _huge_slices() -> dict[str, bytes]:
  datasets = _write_clean()
  for d in datasets:
    d.Rows = d.Columns = 65535
  return {f'IM{k}': series.to_bytes(d) for k, d in enumerate(datasets)}


def _huge_frames() -> dict[str, bytes]:
  merged = _merged()
  merged.Rows = merged.Columns = 65535
  return {'IM0': series.to_bytes(merged)}


def _many_frames() -> dict[str, bytes]:
  merged = _merged()
  merged.NumberOfFrames = 2**31 - 1
  return {'IM0': series.to_bytes(merged)}


def _crooked_fine_pixels() -> dict[str, bytes]:
  datasets = _write_clean(pixel_spacing=(1e-6, 1e-6))
  for k, d in enumerate(datasets):
    x, y, z = d.ImagePositionPatient
    d.ImagePositionPatient = [x + 0.8 * k, y, z]
  return {f'IM{k}': series.to_bytes(d) for k, d in enumerate(datasets)}


def _far_apart() -> dict[str, bytes]:
  datasets = _write_clean()
  for d, z in zip(datasets, (0, 1, 2, 3, 1e9), strict=True):
    d.ImagePositionPatient = [0, 0, z]
  return {f'IM{k}': series.to_bytes(d) for k, d in enumerate(datasets)}


@pytest.mark.parametrize(
  'files',
  [_huge_slices, _huge_frames, _many_frames, _crooked_fine_pixels, _far_apart],
)
def test_a_header_that_promises_much_takes_no_memory(tmp_path, files):
  path = _place(tmp_path, files())
  with bounds():
    assert outcome(path) != 'scan'


@pytest.mark.parametrize('name', ['scan.nii', 'scan.nii.gz'])
def test_a_nifti_header_that_promises_much_takes_no_memory(tmp_path, name):
  data = bytearray(clean_nifti())
  data[42:48] = np.array([32767] * 3, '<i2').tobytes()  # dim[1] to dim[3]
  data = gzip.compress(data) if name.endswith('gz') else bytes(data)
  path = _file(tmp_path, name, data)
  with bounds():
    assert outcome(path) != 'scan'


@pytest.mark.slow
@pytest.mark.parametrize('start', range(0, SLOW, BLOCK))
def test_many_mutations(tmp_path, start):
  run(range(start, min(start + BLOCK, SLOW)), tmp_path / 'mutant')
