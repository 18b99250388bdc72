"""One slice file -> Hounsfield units, strictly: whole and decoded, or an error."""

from typing import BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
  JPEG2000,
  UID,
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
  JPEG2000Lossless,
  RLELossless,
)

_END_OF_IMAGE = b'\xff\xd9'  # closes a frame of JPEG, JPEG-LS and JPEG 2000 alike
# OpenJPEG directly is faster than by way of GDCM. The RLE decoder of pylibjpeg panics
# on damaged frames, past any `except Exception`.
_DECODERS = {
  JPEG2000: 'pylibjpeg',
  JPEG2000Lossless: 'pylibjpeg',
  RLELossless: 'pydicom',
}


def read_hu(stream: BinaryIO) -> np.ndarray:
  """(rows, columns) float32, HU.

  Raises:
    ValueError: the file is cut short, damaged or without what HU need; says which.
  """
  # The decoders raise whatever their C libraries suggest to them, hence Exception.
  try:
    dataset = dcmread(stream, force=True)
    has_pixels = bool(dataset.get('PixelData'))
  except Exception:
    raise ValueError('is cut short or not readable as DICOM') from None
  if not has_pixels:
    raise ValueError('is cut short: it has no pixel data')
  syntax = transfer_syntax(dataset)
  dataset.file_meta.TransferSyntaxUID = syntax
  slope, intercept = _rescale(dataset)
  try:
    whole = not syntax.is_compressed or _frame_is_whole(dataset, syntax)
    decoder = _DECODERS.get(syntax, '')
    stored = pixel_array(dataset, decoding_plugin=decoder) if whole else None
  except Exception:
    raise ValueError(f'has pixel data that do not decode ({syntax.name})') from None
  if stored is None:
    raise ValueError(f'has pixel data that are cut short ({syntax.name})')
  if stored.shape != (dataset.Rows, dataset.Columns):
    raise ValueError('holds other than one grey image')
  return stored.astype(np.float32) * slope + intercept


def transfer_syntax(dataset: Dataset) -> UID:
  """The declared syntax, or, in files older than the file header, the one found."""
  declared = dataset.file_meta.get('TransferSyntaxUID')
  implicit, _ = dataset.original_encoding
  return declared or (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def _frame_is_whole(dataset: Dataset, syntax: UID) -> bool:
  # Some decoders fill up the missing rest of a frame rather than complain.
  if syntax == RLELossless:  # has no end marker; its decoder counts the bytes
    return True
  frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
  return frame.rstrip(b'\0').endswith(_END_OF_IMAGE)


def _rescale(dataset: Dataset) -> tuple[np.float32, np.float32]:
  try:
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
  except (AttributeError, TypeError, ValueError, NotImplementedError):
    raise ValueError('has no rescale slope and intercept, so no HU') from None
  if not np.isfinite([slope, intercept]).all() or slope == 0:
    raise ValueError(f'has rescale slope {slope} and intercept {intercept}')
  return np.float32(slope), np.float32(intercept)
