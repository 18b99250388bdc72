"""Tiny DICOM series built with pydicom alone: nothing here comes from covid3way.

Every voxel holds a function of its world position, so a reader that mixes up an axis,
a direction or an order is caught by any voxel.
"""

import copy
import io
from collections.abc import Sequence
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
  JPEG2000,
  CTImageStorage,
  EnhancedCTImageStorage,
  ExplicitVRLittleEndian,
  JPEG2000Lossless,
  JPEGExtended12Bit,
  JPEGLossless,
  JPEGLosslessSV1,
  JPEGLSLossless,
  JPEGLSNearLossless,
  RLELossless,
)

DATA = Path(__file__).parents[2] / 'shared' / 'data'
SUPINE = (1, 0, 0, 0, 1, 0)
PRONE = (-1, 0, 0, 0, -1, 0)
FEET_FIRST = (-1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)
COMPRESSED = (
  JPEGLossless,
  JPEGLosslessSV1,
  JPEGLSLossless,
  JPEG2000Lossless,
  RLELossless,
)
LOSSY = (JPEGLSNearLossless, JPEG2000, JPEGExtended12Bit)


def hu_at(world: np.ndarray) -> np.ndarray:
  """(..., 3) mm -> HU, whole for whole mm, all different in a small volume."""
  return world @ [1.0, 17.0, 3.0] - 75


def slices(
  orientation: Sequence[float] = SUPINE,
  *,
  origin_mm=(-10.0, -8.0, -30.0),
  pixel_spacing=(2.0, 1.0),
  step_mm=2.0,
  shape=(6, 7, 5),
  shifts_mm=None,
  slope=1,
  intercept=-1024,
  signed=False,
  **tags,
) -> list[Dataset]:
  """A series of `shape` (columns, rows, slices), PS3.3 equation C.7.6.2.1-1.

  `shifts_mm` (slices, 3): along rows, columns and normal, instead of even steps.
  """
  row, column = np.reshape(orientation, (2, 3)).astype(float)
  columns, rows, count = shape
  if shifts_mm is None:
    shifts_mm = np.outer(np.arange(count), [0, 0, step_mm])
  result = []
  for k, shift_mm in enumerate(shifts_mm):
    axes = np.array([row, column, np.cross(row, column)])
    position = np.array(origin_mm) + shift_mm @ axes
    j, i = np.mgrid[:rows, :columns]
    world = position + np.multiply.outer(i * pixel_spacing[1], row)
    world += np.multiply.outer(j * pixel_spacing[0], column)
    dataset = ct_slice(k, (hu_at(world) - intercept) / slope, signed=signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.ImagePositionPatient = [round(v, 6) for v in position.tolist()]
    dataset.ImageOrientationPatient = [round(float(v), 6) for v in orientation]
    dataset.PixelSpacing = list(pixel_spacing)
    for keyword, value in tags.items():
      setattr(dataset, keyword, value)
    result.append(dataset)
  return result


def ct_slice(k: int, stored: np.ndarray, *, signed: bool) -> Dataset:
  dataset = Dataset()
  dataset.SOPClassUID = CTImageStorage
  dataset.SOPInstanceUID = f'1.2.3.4.{k + 1}'
  dataset.SeriesInstanceUID = '1.2.3.4'
  dataset.StudyInstanceUID = '1.2.3'
  dataset.Modality = 'CT'
  dataset.PatientName, dataset.PatientID = 'Doe^Jane', 'HOSP4711'
  dataset.Manufacturer = 'ACME'
  # Wrong on purpose, as in real exports: no reader may look at these.
  dataset.InstanceNumber = (7 * k) % 5
  dataset.SliceThickness = 0.123
  dataset.SliceLocation = -99.0 * k
  dataset.SamplesPerPixel = 1
  dataset.PhotometricInterpretation = 'MONOCHROME2'
  dataset.Rows, dataset.Columns = stored.shape
  dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
  dataset.PixelRepresentation = int(signed)
  values = np.rint(stored)
  dataset.PixelData = values.astype('<i2' if signed else '<u2').tobytes()
  dataset.file_meta = FileMetaDataset()
  dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
  dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  return dataset


def enhanced(datasets: Sequence[Dataset], number: int = 1) -> Dataset:
  """An Enhanced CT object whose frames are `datasets`, PS3.3 A.38.1, in their order.

  Orientation and spacing are shared; position, rescale and window are each frame's own.
  """
  first = datasets[0]
  result = Dataset()
  result.update(
    {e.tag: copy.deepcopy(e) for e in first if e.keyword not in _OF_A_FRAME}
  )
  result.SOPClassUID = EnhancedCTImageStorage
  result.SOPInstanceUID = f'1.2.3.4.100.{number}'
  result.NumberOfFrames = len(datasets)
  result.PixelData = b''.join(d.PixelData for d in datasets)
  shared = {
    'PlaneOrientationSequence': ['ImageOrientationPatient'],
    'PixelMeasuresSequence': ['PixelSpacing', 'SliceThickness'],
  }
  own = {
    'PlanePositionSequence': ['ImagePositionPatient'],
    'PixelValueTransformationSequence': [
      'RescaleIntercept',
      'RescaleSlope',
      'RescaleType',
    ],
    'FrameVOILUTSequence': ['WindowCenter', 'WindowWidth'],
    'CTReconstructionSequence': ['ConvolutionKernel'],
    'FrameContentSequence': ['TemporalPositionIndex'],
  }
  result.SharedFunctionalGroupsSequence = [_groups(first, shared)]
  result.PerFrameFunctionalGroupsSequence = [_groups(d, own) for d in datasets]
  result.file_meta = FileMetaDataset()
  result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
  result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  return result


_OF_A_FRAME = {
  'ImagePositionPatient',
  'ImageOrientationPatient',
  'PixelSpacing',
  'SliceThickness',
  'RescaleIntercept',
  'RescaleSlope',
  'RescaleType',
  'WindowCenter',
  'WindowWidth',
  'ConvolutionKernel',
  'TemporalPositionIndex',
}


def _groups(dataset: Dataset, macros: dict[str, list[str]]) -> Dataset:
  result = Dataset()
  for macro, keywords in macros.items():
    item = Dataset()
    for keyword in keywords:
      if keyword in dataset:
        setattr(item, keyword, dataset[keyword].value)
    setattr(result, macro, [item])
  return result


def to_bytes(dataset: Dataset) -> bytes:
  stream = io.BytesIO()
  dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
  dataset.save_as(stream, enforce_file_format=True)
  return stream.getvalue()


def write(folder: Path, datasets: Sequence[Dataset]) -> Path:
  """Files named against the order of their slices, some in a subfolder."""
  (folder / 'more').mkdir(parents=True, exist_ok=True)
  for k, dataset in enumerate(datasets):
    name = f'IM{(3 * k + 2) % 7}{chr(122 - k)}'
    path = folder / 'more' / name if k % 2 else folder / name
    path.write_bytes(to_bytes(dataset))
  return folder


def compress(path: Path, syntax: pydicom.uid.UID) -> None:
  """Compress a file in place with GDCM, or with pydicom's own encoders."""
  kinds = {
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    JPEGLSNearLossless: gdcm.TransferSyntax.JPEGLSNearLossless,
    JPEG2000: gdcm.TransferSyntax.JPEG2000,
    JPEGExtended12Bit: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
  }
  if syntax not in kinds:
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return
  reader = gdcm.ImageReader()
  reader.SetFileName(str(path))
  assert reader.Read()
  change = gdcm.ImageChangeTransferSyntax()
  change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
  change.SetInput(reader.GetImage())
  assert change.Change()
  writer = gdcm.ImageWriter()
  writer.SetFileName(str(path))
  writer.SetFile(reader.GetFile())
  writer.SetImage(change.GetOutput())
  assert writer.Write()


def files(folder: Path) -> list[Path]:
  return sorted(p for p in folder.rglob('*') if p.is_file())


def real(name: str) -> Path:
  """A real scan, or a skip that says which is absent."""
  path = DATA / name
  if not path.exists():
    pytest.skip(f'real scan {name} is not beside this checkout, in ../shared/data')
  return path
