"""A volume -> a CT series as a hospital would send it, for the phantom cohort.

The same input gives the same bytes: UIDs are hashes, there is no clock and no chance.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from covid3way import base
from covid3way.scans.identity import hashed_uid

_DEFAULTS = {
  'SpecificCharacterSet': 'ISO_IR 100',
  'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL'],
  'StudyDate': '',
  'StudyTime': '',
  'AccessionNumber': '',
  'Modality': 'CT',
  'Manufacturer': '',
  'ReferringPhysicianName': '',
  'PatientName': '',
  'PatientID': '',
  'PatientBirthDate': '',
  'PatientSex': '',
  'KVP': None,
  'PatientPosition': 'HFS',
  'StudyID': '',
  'SeriesNumber': 1,
  'AcquisitionNumber': 1,
  'PositionReferenceIndicator': '',
  'SamplesPerPixel': 1,
  'PhotometricInterpretation': 'MONOCHROME2',
  'PixelRepresentation': 1,
  'RescaleIntercept': -1024,
  'RescaleSlope': 1,
  'RescaleType': 'HU',
}


def write_series(
  folder: Path,
  hu_native: np.ndarray,
  grid: base.Grid,
  *,
  header: Mapping[str, Any],
  seed_uid: str,
  file_names: Sequence[str] | None = None,
) -> None:
  """Write one file per slice: CT Image Storage, uncompressed, 16 bits.

  Args:
    folder: must exist.
    hu_native: (columns, rows, slices) HU, rounded to the rescale slope.
    grid: `native_shape` of `hu_native`; native_affine without shear.
    header: DICOM keyword -> value, over the defaults; for the same of all slices.
    seed_uid: series of other seeds have other UIDs.
    file_names: one per slice; `0000.dcm`, ... when None.

  Raises:
    ValueError: shapes differ, or HU do not fit into 16 bits with this rescale.
  """
  if hu_native.shape != tuple(grid.native_shape):
    raise ValueError(f'volume {hu_native.shape}, grid {grid.native_shape}')
  names = file_names or [f'{k:04d}.dcm' for k in range(hu_native.shape[2])]
  common = _common(grid, header, seed_uid)
  stored = _stored(hu_native, common)
  for k, name in enumerate(names):
    dataset = Dataset()
    dataset.update(common)
    dataset.SOPInstanceUID = hashed_uid(seed_uid, 'slice', str(k))
    dataset.InstanceNumber = k + 1
    dataset.ImagePositionPatient = decimals(grid.native_affine[:3] @ [0, 0, k, 1])
    dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
    dataset.file_meta = _file_meta(dataset.SOPInstanceUID)
    dcmwrite(folder / name, dataset, enforce_file_format=True)


def _common(grid: base.Grid, header: Mapping[str, Any], seed_uid: str) -> Dataset:
  spacing_mm = np.linalg.norm(grid.native_affine[:3, :3], axis=0)
  directions = grid.native_affine[:3, :3] / spacing_mm
  columns, rows, _ = grid.native_shape
  geometry = {
    'ImageOrientationPatient': decimals(directions[:, :2].T.ravel()),
    'PixelSpacing': decimals(spacing_mm[1::-1]),  # between rows comes first
    'SliceThickness': decimals(spacing_mm[2:])[0],
    'Rows': rows,
    'Columns': columns,
    'BitsAllocated': 16,
    'BitsStored': 16,
    'HighBit': 15,
  }
  identity = {
    'SOPClassUID': CTImageStorage,
    'StudyInstanceUID': hashed_uid(seed_uid, 'study'),
    'SeriesInstanceUID': hashed_uid(seed_uid, 'series'),
    'FrameOfReferenceUID': hashed_uid(seed_uid, 'frame'),
  }
  dataset = Dataset()
  for keyword, value in {**_DEFAULTS, **geometry, **identity, **header}.items():
    setattr(dataset, keyword, value)
  return dataset


def _stored(hu: np.ndarray, header: Dataset) -> np.ndarray:
  """Stored values, little endian; `hu` = stored * slope + intercept."""
  slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
  dtype = np.dtype('<i2' if header.PixelRepresentation else '<u2')
  values = np.rint((hu - intercept) / slope)
  limits = np.iinfo(dtype)
  if not (values.min() >= limits.min and values.max() <= limits.max):
    raise ValueError(f'HU from {hu.min()} to {hu.max()} do not fit into {dtype.name}')
  return values.astype(dtype)


def _file_meta(sop_instance_uid: str) -> FileMetaDataset:
  meta = FileMetaDataset()
  meta.MediaStorageSOPClassUID = CTImageStorage
  meta.MediaStorageSOPInstanceUID = sop_instance_uid
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  # Ours, since pydicom's holds its version, which would change the bytes.
  meta.ImplementationClassUID = hashed_uid('covid3way', 'implementation')
  meta.ImplementationVersionName = 'COVID3WAY'
  return meta


def decimals(values: Sequence[float]) -> list[DSfloat]:
  """Decimal strings of at most 16 characters."""
  return [DSfloat(float(v) + 0.0, auto_format=True) for v in values]  # no '-0.0'
