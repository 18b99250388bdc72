"""The pixels of DICOM files -> Hounsfield units, strictly: whole, or an error."""

import contextlib
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import iter_pixels, pixel_array
from pydicom.uid import (
  JPEG2000,
  UID,
  DeflatedExplicitVRLittleEndian,
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
  JPEG2000Lossless,
  JPEGBaseline8Bit,
  JPEGExtended12Bit,
  JPEGLossless,
  JPEGLosslessSV1,
  JPEGLSLossless,
  JPEGLSNearLossless,
  RLELossless,
)

from covid3way import base
from covid3way.scans.dicom_files import CtFile, damaged

PADDING_HU = 2000.0  # What is declared as padding and reads as more is no tissue.
_START_OF_IMAGE = b'\xff\xd8'
_END_OF_IMAGE = b'\xff\xd9'  # closes a frame of JPEG, JPEG-LS and JPEG 2000 alike
# Markers of JPEG segments: baseline, extended and lossless frames, scan, tables, and
# what else may stand before the scan: quantisation, restarts, comments, applications.
_FRAME_HEADERS = (0xC0, 0xC1, 0xC3)
_HUFFMAN_TABLES, _START_OF_SCAN = 0xC4, 0xDA
_OTHER_SEGMENTS = (0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))
# Decoders that end the whole process on some damaged frames are not asked: GDCM for
# JPEG-LS, pylibjpeg for RLE. OpenJPEG directly is faster than by way of GDCM.
_DECODERS = {
  JPEGLSLossless: 'pyjpegls',
  JPEGLSNearLossless: 'pyjpegls',
  JPEG2000: 'pylibjpeg',
  JPEG2000Lossless: 'pylibjpeg',
  RLELossless: 'pydicom',
}
_BY_GDCM = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)


class Pixels:
  """Reads the slices of a scan, and counts padding that was replaced."""

  def __init__(self, scan_id: str):
    self.scan_id, self.replaced, self.voxels = scan_id, 0, 0

  def read(self, images: Sequence[CtFile]) -> Iterator[np.ndarray]:
    """(rows, columns) float32, HU, slice by slice; a file is opened once for many.

    Raises:
      DamagedFileError: a file that is cut short, does not decode, or is gone by now.
    """
    for file, group in itertools.groupby(images, lambda image: image.file):
      group = list(group)
      try:
        with file.open() as stream:
          frames = read_frames(stream, [image.frame for image in group])
          with contextlib.closing(frames):
            for image, stored in zip(group, frames, strict=True):
              hu, replaced = to_hu(stored, image.header)
              self.replaced += replaced
              self.voxels += hu.size
              yield hu
      except ValueError as error:
        raise damaged(self.scan_id, file.name, str(error)) from None
      except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise damaged(self.scan_id, file.name, 'can no longer be read') from None

  def warnings(self) -> list[base.ScanWarning]:
    """What was done to them."""
    if not self.replaced:
      return []
    message = (
      f'{100 * self.replaced / self.voxels:.3g}% of the voxels were padding that reads '
      f'as dense and were set to {base.AIR_HU:.0f} HU'
    )
    return [base.ScanWarning(base.WarningKind.PADDING_REPLACED, message)]


def read_frames(stream: BinaryIO, frames: Sequence[int]) -> Iterator[np.ndarray]:
  """The stored values, (rows, columns) integers, of some frames of a file, one by one.

  Of an uncompressed file of many frames no more than one frame is held.

  Raises:
    ValueError: the file is cut short or damaged; says which.
  """
  # The decoders raise whatever their C libraries suggest to them, hence Exception.
  try:
    header = dcmread(stream, force=True, stop_before_pixels=True)
    syntax = transfer_syntax(header)
    by_frame = not syntax.is_encapsulated and int(header.get('NumberOfFrames') or 1) > 1
    by_frame = by_frame and syntax != DeflatedExplicitVRLittleEndian
    stream.seek(0)
    dataset = header if by_frame else dcmread(stream, force=True)
    has_pixels = by_frame or bool(dataset.get('PixelData'))
  except Exception:
    raise ValueError('is cut short or not readable as DICOM') from None
  if not has_pixels:
    raise ValueError('is cut short: it has no pixel data')
  # GDCM tells the kinds of JPEG apart by itself; pydicom keeps the first from it.
  told = JPEGLossless if syntax == JPEGExtended12Bit else syntax
  dataset.file_meta.TransferSyntaxUID = told
  with contextlib.closing(_decoded(stream, dataset, syntax, frames, by_frame)) as found:
    for _ in frames:
      try:
        stored = next(found)
      except Exception:
        raise ValueError(f'has pixel data that do not decode ({syntax.name})') from None
      if stored is None:
        raise ValueError(f'has pixel data that are cut short ({syntax.name})')
      if stored.shape != (dataset.Rows, dataset.Columns):
        raise ValueError('holds other than one grey image')
      yield stored


def to_hu(stored: np.ndarray, header: Dataset) -> tuple[np.ndarray, int]:
  """Stored values -> (rows, columns) float32, HU; how many were padding read as high.

  Unused bits are cleared. A padding value that needs them, or reads as more than any
  tissue, as negative numbers in unsigned pixels do, becomes air; another one is left:
  it is 0 (water!) in files of some exporters.

  Args:
    stored: of `read_frames`.
    header: of that frame: what says how its values are to be read.

  Raises:
    ValueError: without what HU need.
  """
  slope, intercept = _rescale(header)
  used = _used_bits(stored, header)
  hu = used.astype(np.float32) * slope + intercept
  is_padding = _padding(stored, header)
  if is_padding is None:
    return hu, 0
  is_padding &= (hu > PADDING_HU) | (used != stored)
  hu[is_padding] = base.AIR_HU
  return hu, int(np.count_nonzero(is_padding))


def transfer_syntax(dataset: Dataset) -> UID:
  """The declared syntax, or, in files older than the file header, the one found."""
  declared = dataset.file_meta.get('TransferSyntaxUID')
  implicit, _ = dataset.original_encoding
  return declared or (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def _decoded(
  stream: BinaryIO,
  dataset: Dataset,
  syntax: UID,
  frames: Sequence[int],
  by_frame: bool,
) -> Iterator[np.ndarray | None]:
  """Frames as stored, unused bits and all; None for one that is cut short."""
  if by_frame:
    yield from iter_pixels(
      stream, indices=frames, transfer_syntax_uid=syntax, correct_unused_bits=False
    )
    return
  for frame in frames:
    if not syntax.is_encapsulated:
      yield pixel_array(dataset, index=frame, correct_unused_bits=False)
    elif syntax != RLELossless and not _frame_is_whole(dataset, syntax, frame):
      yield None
    else:
      plugin = _DECODERS.get(syntax, '')
      yield pixel_array(dataset, index=frame, decoding_plugin=plugin)


def _encoded(dataset: Dataset, frame: int) -> bytes:
  offsets = None
  if 'ExtendedOffsetTable' in dataset:
    offsets = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
  return get_frame(
    dataset.PixelData,
    frame,
    number_of_frames=int(dataset.get('NumberOfFrames') or 1),
    extended_offsets=offsets,
  )


def _frame_is_whole(dataset: Dataset, syntax: UID, frame: int) -> bool:
  # Some decoders fill up the missing rest of a frame rather than complain. Frames of
  # RLE have no end marker; its decoder counts the bytes.
  encoded = _encoded(dataset, frame)
  if not encoded.rstrip(b'\0').endswith(_END_OF_IMAGE):
    return False
  size = int(dataset.Rows), int(dataset.Columns)
  return syntax not in _BY_GDCM or _jpeg_is_sound(encoded, size)


def _jpeg_is_sound(frame: bytes, size: tuple[int, int]) -> bool:
  """Whether the segments before the scan are whole and fit (ITU-T T.81, annex B).

  GDCM ends the process on some that are not.
  """
  at, frames, tables = 2, 0, 0
  while frame.startswith(_START_OF_IMAGE) and at + 4 <= len(frame):
    prefix, marker = frame[at : at + 2]
    end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], 'big')
    body = frame[at + 4 : end]
    if prefix != 0xFF or end < at + 4 or end > len(frame):
      return False
    if marker in _FRAME_HEADERS:
      rows, columns = (int.from_bytes(body[k : k + 2], 'big') for k in (1, 3))
      one_grey = len(body) == 9 and 2 <= body[0] <= 16 and body[5] == 1
      if not one_grey or (rows, columns) != size:
        return False
      frames += 1
    elif marker == _START_OF_SCAN:
      return frames == 1 and tables > 0
    elif marker == _HUFFMAN_TABLES:
      tables += 1
    elif marker not in _OTHER_SEGMENTS:
      return False
    at = end
  return False


def _used_bits(stored: np.ndarray, header: Dataset) -> np.ndarray:
  """Without what lies beside BitsStored (old overlays, garbage); signs extended."""
  allocated = 8 * stored.dtype.itemsize
  used = max(1, int(header.get('BitsStored') or allocated))
  high = int(header.get('HighBit') or used - 1)
  if used >= allocated:
    return stored
  is_decoded = transfer_syntax(header).is_encapsulated  # then the codec moved them
  if is_decoded or not used <= high + 1 <= allocated:
    high = used - 1
  return np.right_shift(np.left_shift(stored, allocated - 1 - high), allocated - used)


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray | None:
  """Where the padding value stands; declared as signed or unsigned, it is its bits."""
  try:
    ends = [int(header.PixelPaddingValue)]
    ends.append(int(header.get('PixelPaddingRangeLimit', ends[0])))
  except (AttributeError, TypeError, ValueError):
    return None
  kind, size = stored.dtype.kind, stored.dtype.itemsize
  words = np.array([end % 256**size for end in ends], f'u{size}')
  lowest, highest = sorted(words.view(f'{kind}{size}').tolist())
  return (stored >= lowest) & (stored <= highest)


def _rescale(header: Dataset) -> tuple[np.float32, np.float32]:
  try:
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
  except (AttributeError, TypeError, ValueError, NotImplementedError):
    raise ValueError('has no rescale slope and intercept, so no HU') from None
  if not np.isfinite([slope, intercept]).all() or slope == 0:
    raise ValueError(f'has rescale slope {slope} and intercept {intercept}')
  return np.float32(slope), np.float32(intercept)
