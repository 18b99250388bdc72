"""NIfTI files -> `Scan` and masks; volumes -> NIfTI files on the scan's own grid."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from covid3way import base
from covid3way.base import ScanWarning, WarningKind
from covid3way.scans import reading
from covid3way.scans.files import whole

SUFFIXES = ('.nii', '.nii.gz')
MIN_VOXELS = 3  # per axis
SHEAR_COSINE = 1e-3
SAME_PLACE_VOXELS = 0.05  # float32 and rounded headers stay below it
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_BROKEN = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)


def read_scan(path: Path, *, scan_id: str) -> base.Scan:
  """Read a .nii or .nii.gz file of HU; its native order is (i, j, k).

  Raises:
    InputError: there is no such file.
    DamagedFileError: it is cut short, or no NIfTI.
    GeometryError: 4-D, too thin, not in mm, or sheared.
    NonFiniteError: NaN or infinity among its values.
  """
  image = _load(path, scan_id)
  grid = _grid(image, scan_id)
  provenance = {'format': 'NIfTI', 'stored_as': str(image.get_data_dtype())}
  return reading.assemble(
    _values(image, path, scan_id),
    grid,
    scan_id=scan_id,
    provenance=provenance,
    warnings=_orientation_warnings(image),
  )


def read_volume(path: Path, *, scan_id: str) -> tuple[np.ndarray, base.Grid]:
  """Read any volume, (x, y, z) float32, and its grid.

  Raises:
    InputError, DamagedFileError, GeometryError: as `read_scan`.
  """
  image = _load(path, scan_id)
  grid = _grid(image, scan_id)
  return np.ascontiguousarray(grid.to_lps(_values(image, path, scan_id))), grid


def read_labels(path: Path, *, scan_id: str) -> tuple[np.ndarray, base.Grid]:
  """Read a mask of whichever scan, (x, y, z) uint8, labels kept, and its grid.

  Raises:
    InputError: no such file, or other than whole numbers from 0 to 255.
    DamagedFileError, GeometryError: as `read_scan`.
  """
  mask, grid = read_volume(path, scan_id=scan_id)
  with np.errstate(invalid='ignore'):
    labels = mask.astype(np.uint8)
  if not np.array_equal(labels, mask):
    raise base.InputError(
      scan_id,
      f'mask {path.name} holds other than whole numbers from 0 to 255',
      'save labels, not probabilities',
    )
  return labels, grid


def read_mask(path: Path, grid: base.Grid, *, scan_id: str) -> np.ndarray:
  """Read a mask of a scan, (x, y, z) uint8, labels kept.

  The file may hold the scan's grid in another voxel order.

  Raises:
    MaskGridError: it is on another grid.
    InputError, DamagedFileError, GeometryError: as `read_labels`.
  """
  labels, own = read_labels(path, scan_id=scan_id)
  if own.shape != grid.shape or _distance_voxels(own, grid) > SAME_PLACE_VOXELS:
    raise base.MaskGridError(
      scan_id,
      f'mask {path.name} is {_describe(own)}; the scan is {_describe(grid)}',
      'draw or resample the mask on the grid of the scan',
    )
  return labels


def write_volume(
  path: Path, volume_lps: np.ndarray, grid: base.Grid, *, dtype: np.typing.DTypeLike
) -> None:
  """Write (x, y, z) on exactly the native shape and affine of `grid`.

  Appears whole or not at all; the same input gives the same bytes.

  Args:
    path: ends in .nii or .nii.gz.
    volume_lps: `grid.shape`.
    grid: the scan's own.
    dtype: stored type; values are cast.

  Raises:
    StorageError: the disk refused.
  """
  native = np.asarray(grid.to_native(volume_lps), dtype)
  affine = _RAS_TO_LPS @ grid.native_affine
  image = nibabel.Nifti1Image(native, affine, dtype=native.dtype)
  image.set_sform(affine, code='scanner')
  image.set_qform(affine, code='scanner')
  image.header.set_xyzt_units('mm')
  with whole(path) as aside:
    image.to_filename(aside)  # nibabel writes no time into a .gz


def _load(path: Path, scan_id: str) -> SpatialImage:
  if not path.is_file():
    raise base.InputError(scan_id, f'no file {path.name}', 'check the path')
  try:
    image = nibabel.load(path, mmap=False)
  except _BROKEN:
    raise _damaged(scan_id, path) from None
  if not isinstance(image, nibabel.Nifti1Image):
    raise _damaged(scan_id, path)
  return image


def _values(image: SpatialImage, path: Path, scan_id: str) -> np.ndarray:
  """The native volume, float32, scaled by slope and intercept of the header."""
  try:
    values = np.asarray(image.get_fdata(dtype=np.float32, caching='unchanged'))
  except _BROKEN:
    raise _damaged(scan_id, path) from None
  return values.reshape(image.shape[:3])


def _damaged(scan_id: str, path: Path) -> base.DamagedFileError:
  return base.DamagedFileError(
    scan_id, f'file {path.name} is cut short, or no NIfTI', 'copy or convert it again'
  )


def _grid(image: SpatialImage, scan_id: str) -> base.Grid:
  shape, affine = image.shape, _RAS_TO_LPS @ image.affine
  if len(shape) < 3 or any(n > 1 for n in shape[3:]) or min(shape[:3]) < MIN_VOXELS:
    raise base.GeometryError(
      scan_id,
      f'an image of {_times(shape)} voxels',
      f'give one 3-D volume of at least {MIN_VOXELS} voxels along each axis',
    )
  if image.get_data_dtype().kind not in 'iuf':
    raise base.GeometryError(
      scan_id, f'voxels of type {image.get_data_dtype()}', 'give one number per voxel'
    )
  if (unit := _unit(image)) not in ('mm', 'unknown'):
    raise base.GeometryError(
      scan_id, f'voxel sizes in {unit}', 'write the header in mm'
    )
  lengths = np.linalg.norm(affine[:3, :3], axis=0)
  if not np.isfinite(affine).all() or lengths.min() <= 0:
    raise base.GeometryError(
      scan_id, 'no usable voxel size in the header', 'convert the scan again from DICOM'
    )
  cosines = (affine[:3, :3] / lengths).T @ (affine[:3, :3] / lengths)
  if (shear := np.abs(cosines - np.eye(3)).max()) > SHEAR_COSINE:
    degrees = np.degrees(np.arcsin(min(1.0, shear)))
    raise base.GeometryError(
      scan_id,
      f'axes sheared by {degrees:.1f} degrees, as with a tilted gantry',
      'resample it to a grid with right angles first',
    )
  return base.Grid(tuple(int(n) for n in shape[:3]), affine)


def _unit(image: SpatialImage) -> str:
  try:
    return image.header.get_xyzt_units()[0]
  except KeyError:  # a code that the standard does not have
    return 'unknown'


def _orientation_warnings(image: SpatialImage) -> list[ScanWarning]:
  if image.header['sform_code'] or image.header['qform_code']:
    return []
  message = (
    'the file does not say how it lies in the patient (sform and qform code 0); '
    'took its axes as right to left, back to front, feet to head'
  )
  return [ScanWarning(WarningKind.ORIENTATION_ASSUMED, message)]


def _distance_voxels(a: base.Grid, b: base.Grid) -> float:
  """How far corners of two grids of one shape lie apart, at most."""
  corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(a.shape) - 1)
  corners = np.c_[corners, np.ones(8)]
  apart = corners @ (a.affine - b.affine)[:3].T
  return float(np.linalg.norm(apart, axis=1).max() / min(b.spacing_mm))


def _describe(grid: base.Grid) -> str:
  corner = ', '.join(f'{v:.2f}' for v in grid.affine[:3, 3])
  spacing = _times(f'{s:.3f}' for s in grid.spacing_mm)
  return f'{_times(grid.shape)} voxels of {spacing} mm from ({corner}) mm'


def _times(values: Sequence) -> str:
  return ' x '.join(str(v) for v in values)
