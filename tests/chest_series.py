"""A phantom's chest, and its CT series as datasets; files are written by pydicom alone.

Coarse and without airways, so that a series is written and read in a tenth of a second.
"""

import copy
import functools
import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian
from scipy import ndimage

from covid3way.phantom import anatomy, protocols

SECRETS = ('Mustermann', 'Erika', 'HOSP4711', '19640812')
STEP_MM, PIXEL_MM = 9.0, 6.0
COLUMNS, ROWS, SLICES = 64, 48, 32
CENTRE_MM = np.array([0.0, 17.0, 13.5])
_CHEST_MM = 4.0  # of the phantom
# In the right lung, behind its middle, with lung all around.
LESION_MM, LESION_RADII_MM = (-72.0, 18.0, 0.0), (21.0, 20.0, 26.0)
LUNG_HU, LESION_HU = -840.0, -50.0


# The chest


@functools.cache
def chest() -> tuple[np.ndarray, np.ndarray]:
  """(x, y, z) float32 HU with one lesion, and the LPS position of its first voxel.

  No airways, no vessels in the lungs: on voxels this large it would be chance which of
  them a lung mask takes in.
  """
  healthy = anatomy.make_anatomy(
    np.random.default_rng(0),
    protocols.PROTOCOLS[3],
    spacing_mm=_CHEST_MM,
    lung_points=300,
  )
  hu, origin = healthy.hu.copy(), healthy.origin_mm
  ball = ((np.indices((9, 9, 9)) - 4) ** 2).sum(0) <= 16
  lungs = ndimage.binary_opening(healthy.lungs > 0, ball)
  body = ndimage.binary_fill_holes(hu > -300, np.ones((3, 3, 1)))
  hu[body & (hu < -150)] = 30.0
  hu[lungs] = LUNG_HU
  index = np.moveaxis(np.indices(hu.shape), 0, -1)
  away = (index * _CHEST_MM + origin - LESION_MM) / LESION_RADII_MM
  hu[((away**2).sum(-1) < 1) & lungs] = LESION_HU
  return hu, origin


def hu_at(world_mm: np.ndarray) -> np.ndarray:
  """(..., 3) LPS mm -> HU of the chest there, linear between its voxels."""
  hu, origin = chest()
  index = np.moveaxis((world_mm - origin) / _CHEST_MM, -1, 0)
  return ndimage.map_coordinates(hu, index, order=1, mode='nearest')


# The scanner


class Plane(NamedTuple):
  """One slice: first voxel, directions along a row and a column, distances, size."""

  position: np.ndarray
  row: np.ndarray
  column: np.ndarray
  spacing: tuple[float, float]  # between rows, between columns
  shape: tuple[int, int]  # rows, columns

  def moved(self, shift: np.ndarray) -> 'Plane':
    return self._replace(position=self.position + shift)

  def world(self) -> np.ndarray:
    """(rows, columns, 3) LPS mm."""
    j, i = np.mgrid[: self.shape[0], : self.shape[1]]
    along_row = np.multiply.outer(i * self.spacing[1], self.row)
    return (
      self.position + along_row + np.multiply.outer(j * self.spacing[0], self.column)
    )


def planes_of(
  row: Sequence[float],
  column: Sequence[float],
  count: int,
  *,
  shape: tuple[int, int] = (ROWS, COLUMNS),
  spacing: tuple[float, float] = (PIXEL_MM, PIXEL_MM),
) -> list[Plane]:
  """Slices in these directions around the middle of the chest."""
  row, column = np.array(row, float), np.array(column, float)
  normal = np.cross(row, column)
  first = CENTRE_MM - normal * STEP_MM * (count - 1) / 2
  first = first - row * spacing[1] * (shape[1] - 1) / 2
  first = first - column * spacing[0] * (shape[0] - 1) / 2
  plane = Plane(first, row, column, spacing, shape)
  return [plane.moved(normal * STEP_MM * k) for k in range(count)]


def clean_planes() -> list[Plane]:
  return planes_of((1, 0, 0), (0, 1, 0), SLICES)


def scan_planes(planes: Sequence[Plane]) -> list[Dataset]:
  """A series, one unsigned 16-bit image per plane."""
  hu = hu_at(np.concatenate([p.world().reshape(-1, 3) for p in planes]))
  ends = np.cumsum([p.shape[0] * p.shape[1] for p in planes])
  return [
    _image(k, plane, part.reshape(plane.shape))
    for k, (plane, part) in enumerate(zip(planes, np.split(hu, ends[:-1]), strict=True))
  ]


def _image(k: int, plane: Plane, hu: np.ndarray) -> Dataset:
  d = Dataset()
  d.SpecificCharacterSet = 'ISO_IR 100'
  d.ImageType = ['ORIGINAL', 'PRIMARY', 'AXIAL']
  d.SOPClassUID = CTImageStorage
  d.SOPInstanceUID = f'1.2.826.1.{k + 1}'
  d.StudyDate = '20200301'
  d.Modality = 'CT'
  d.Manufacturer = 'ACME'
  d.ConvolutionKernel = 'B30f'
  d.PatientName, d.PatientID = 'Mustermann^Erika', 'HOSP4711'
  d.PatientBirthDate = '19640812'
  d.SliceThickness = STEP_MM
  d.KVP = 120
  d.GantryDetectorTilt = 0
  d.PatientPosition = 'HFS'
  d.StudyInstanceUID, d.SeriesInstanceUID = '1.2.826.2', '1.2.826.3'
  d.SeriesNumber, d.AcquisitionNumber, d.InstanceNumber = 2, 1, k + 1
  d.ImagePositionPatient = [round(float(v), 6) for v in plane.position]
  directions = np.concatenate([plane.row, plane.column])
  d.ImageOrientationPatient = [round(float(v), 8) for v in directions]
  d.FrameOfReferenceUID = '1.2.826.4'
  d.SliceLocation = round(float(plane.position[2]), 3)
  d.SamplesPerPixel = 1
  d.PhotometricInterpretation = 'MONOCHROME2'
  d.Rows, d.Columns = plane.shape
  d.PixelSpacing = list(plane.spacing)
  d.BitsAllocated, d.BitsStored, d.HighBit = 16, 16, 15
  d.PixelRepresentation = 0
  d.WindowCenter, d.WindowWidth = -600, 1200
  d.RescaleIntercept, d.RescaleSlope, d.RescaleType = -1024, 1, 'HU'
  d.PixelData = np.rint(hu + 1024).astype('<u2').tobytes()
  d.file_meta = FileMetaDataset()
  d.file_meta.MediaStorageSOPClassUID = CTImageStorage
  d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  return d


def stored(d: Dataset) -> np.ndarray:
  """(rows, columns) as stored."""
  kind = f'<{"ui"[d.PixelRepresentation]}{d.BitsAllocated // 8}'
  return np.frombuffer(d.PixelData, kind).reshape(d.Rows, d.Columns)


def store(d: Dataset, values: np.ndarray, dtype: str) -> None:
  """Puts other values into the image, as `dtype`."""
  d.PixelRepresentation = int('i' in dtype)
  d.BitsAllocated = d.BitsStored = 8 * np.dtype(dtype).itemsize
  d.HighBit = d.BitsStored - 1
  d.PixelData = np.rint(values).astype(dtype).tobytes()


def hu_of(d: Dataset) -> np.ndarray:
  """(rows, columns) HU."""
  return stored(d) * float(d.RescaleSlope) + float(d.RescaleIntercept)


def to_bytes(d: Dataset) -> bytes:
  """A whole file, big-endian if the file header says so."""
  syntax, stream = d.file_meta.TransferSyntaxUID, io.BytesIO()
  d.file_meta.MediaStorageSOPInstanceUID = d.get('SOPInstanceUID', '1.2.826.9')
  if syntax == ExplicitVRBigEndian:
    d = copy.copy(d)
    if d.BitsAllocated == 16:
      d.PixelData = np.frombuffer(d.PixelData, '<u2').byteswap().tobytes()
  with warnings.catch_warnings(), pydicom.config.disable_value_validation():
    warnings.simplefilter('ignore')  # of what is wrong on purpose
    pydicom.dcmwrite(stream, d, enforce_file_format=True)
  return stream.getvalue()
