"""NIfTI files -> `Scan` and masks; volumes -> NIfTI files on the scan's own grid."""

import dataclasses
import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError, SpatialImage

from covid3way import base
from covid3way.base import ScanWarning, WarningKind
from covid3way.scans import dicom_geometry, reading, straighten
from covid3way.scans.files import whole

SUFFIXES = ('.nii', '.nii.gz')
MIN_VOXELS = 3  # per axis
SHEAR_COSINE = 1e-3
SAME_PLACE_VOXELS = 0.05  # float32 and rounded headers stay below it
_SLAB_SLICES = 32  # Read or written at once.
_PAIRS = ((0, 1), (0, 2), (1, 2))
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_BROKEN = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)


def read_scan(path: Path, *, scan_id: str, domain: str = '') -> base.Scan:
  """Read a .nii or .nii.gz file of HU; its native order is (i, j, k).

  A file sheared along one axis, as a tilted gantry gives, is interpolated onto a grid
  with right angles, see `base.Grid.acquired`.

  Args:
    path: of the file.
    scan_id: names the scan.
    domain: of the signal, as in a manifest; '' is HU, and checked to be.

  Raises:
    InputError: there is no such file, or it may not be read.
    DamagedFileError: it is cut short, or no NIfTI.
    GeometryError: 4-D, too thin, not in mm, or sheared along several axes.
    NonFiniteError: NaN or infinity among its values.
    SignalError: its values are no HU.
  """
  image = _load(path, scan_id)
  grid, warnings = _grid(image, scan_id)
  provenance = {'format': 'NIfTI', 'stored_as': str(image.get_data_dtype())}
  intake = reading.Intake(scan_id)
  native = _values(image, path, grid, scan_id, take=intake.take)
  if grid.acquired:
    native = _upright(native, grid, fill=base.AIR_HU)
  return reading.assemble(
    native,
    grid,
    intake,
    domain=domain,
    provenance=provenance,
    warnings=[*_orientation_warnings(image), *warnings],
  )


def read_volume(path: Path, *, scan_id: str) -> tuple[np.ndarray, base.Grid]:
  """Read any volume, (x, y, z) float32, and its grid, as `read_scan`.

  Where a sheared file is put upright, its lowest value fills the corners.

  Raises:
    InputError, DamagedFileError, GeometryError: as `read_scan`.
  """
  image = _load(path, scan_id)
  grid, _ = _grid(image, scan_id)
  native = _values(image, path, grid, scan_id)
  if grid.acquired:
    native = _upright(native, grid, fill=float(native.min()))
  return np.ascontiguousarray(grid.to_lps(native)), grid


def read_labels(path: Path, *, scan_id: str) -> tuple[np.ndarray, base.Grid]:
  """Read a mask of whichever scan, (x, y, z) uint8, labels kept, and its grid.

  Raises:
    InputError: as `read_scan`, or other than whole numbers from 0 to 255.
    DamagedFileError, GeometryError: as `read_scan`.
  """
  labels, grid = _stored_labels(path, scan_id)
  if grid.acquired:
    labels = _upright(labels, grid, fill=0, labels=True)
  return np.ascontiguousarray(grid.to_lps(labels)), grid


def read_mask(path: Path, grid: base.Grid, *, scan_id: str) -> np.ndarray:
  """Read a mask of a scan, (x, y, z) uint8, labels kept.

  The file may hold the scan's grid in another voxel order, or the voxels that the scan
  had before it was put upright.

  Raises:
    MaskGridError: it is on another grid.
    InputError, DamagedFileError, GeometryError: as `read_labels`.
  """
  labels, own = _stored_labels(path, scan_id)
  drawn_on = _as_stored(own)
  if _same_place(drawn_on, grid):
    return np.ascontiguousarray(drawn_on.to_lps(labels))
  stored = _as_stored(grid)
  if not _same_place(drawn_on, stored):
    raise base.MaskGridError(
      scan_id,
      f'mask {path.name} is {_describe(drawn_on)}; the scan is {_describe(stored)}',
      'draw or resample the mask on the grid of the scan',
    )
  native = stored.to_native(drawn_on.to_lps(labels))
  return np.ascontiguousarray(grid.to_lps(_upright(native, grid, fill=0, labels=True)))


def write_volume(
  path: Path, volume_lps: np.ndarray, grid: base.Grid, *, dtype: np.typing.DTypeLike
) -> None:
  """Write (x, y, z) on exactly the shape and affine of the file that `grid` is of.

  Appears whole or not at all; the same input gives the same bytes.

  Args:
    path: ends in .nii or .nii.gz.
    volume_lps: `grid.shape`.
    grid: the scan's own.
    dtype: stored type; values are cast.

  Raises:
    StorageError: the disk refused.
  """
  write_slabs(path, np.asarray(volume_lps).__getitem__, grid, dtype=dtype)


def write_slabs(
  path: Path,
  slab_of: Callable[[tuple[slice, slice, slice]], np.ndarray],
  grid: base.Grid,
  *,
  dtype: np.typing.DTypeLike,
) -> None:
  """`write_volume` of what is made some native slices at a time, and never held whole.

  Args:
    path: ends in .nii or .nii.gz.
    slab_of: of three slices of `[x, y, z]`: that part of the volume.
    grid: the scan's own.
    dtype: stored type; values are cast.

  Raises:
    StorageError: the disk refused.
  """
  dtype, stored = np.dtype(dtype), _as_stored(grid)
  slabs = (
    _stored_slab(slab_of, grid, part, dtype) for part in _parts(stored.native_shape[2])
  )
  header = _header(stored, dtype)
  with whole(path) as aside, ImageOpener(aside, 'wb') as stream:
    header.write_to(stream)
    for slab in slabs:
      stream.write(straighten.slices_first(slab, dtype).tobytes())


def _stored_slab(
  slab_of: Callable[[tuple[slice, slice, slice]], np.ndarray],
  grid: base.Grid,
  part: slice,
  dtype: np.dtype,
) -> np.ndarray:
  """Some slices of the third axis as stored; unsigned values are labels."""
  acquired = grid.acquired
  if acquired is None or acquired.affine is None:
    return grid.to_native(slab_of(_region(grid, part)))
  taken = part
  if acquired.axis != 2:  # slices reach across: what their shifts can reach is read
    ends = acquired.places[:, 2].min(), acquired.places[:, 2].max()
    first, last = part.start + int(ends[0]), part.stop + int(np.ceil(ends[1]))
    taken = slice(first, min(last, grid.native_shape[2]))
  native = grid.to_native(slab_of(_region(grid, taken)))
  size = part.stop - part.start
  if acquired.axis == 2:
    places = acquired.places[part] - [0, 0, part.start]
  else:
    places = acquired.places.copy()
    places[:, 2] += part.start - taken.start
  shape = (*acquired.shape[:2], size)
  part_grid = dataclasses.replace(
    grid,
    native_shape=native.shape,
    acquired=dataclasses.replace(acquired, shape=shape, places=places),
  )
  stored = straighten.to_acquired(native, part_grid, labels=dtype.kind in 'bu')
  return np.rint(stored) if dtype.kind == 'i' else stored


def _parts(count: int) -> list[slice]:
  starts = range(0, count, _SLAB_SLICES)
  return [slice(start, min(start + _SLAB_SLICES, count)) for start in starts]


def _header(stored: base.Grid, dtype: np.dtype) -> nibabel.Nifti1Header:
  """What nibabel itself writes before such a volume."""
  affine = _RAS_TO_LPS @ stored.native_affine
  image = nibabel.Nifti1Image(
    np.broadcast_to(dtype.type(0), stored.native_shape), affine
  )
  image.set_sform(affine, code='scanner')
  if _sheared_pairs(affine):  # a qform holds no shear
    image.set_qform(None)
  else:
    image.set_qform(affine, code='scanner')
  image.header.set_xyzt_units('mm')
  image.header.set_slope_inter(1, 0)
  return image.header


def _region(grid: base.Grid, slices: slice) -> tuple[slice, slice, slice]:
  """Some slices of the third native axis -> the part of `[x, y, z]` that they are."""
  count, first, end = grid.native_shape[2], slices.start, slices.stop
  along = {(2, False): slices, (2, True): slice(count - end, count - first)}
  return tuple(along.get(axis, slice(None)) for axis in grid.axes)


def _load(path: Path, scan_id: str) -> SpatialImage:
  try:
    if not path.is_file():
      raise base.InputError(scan_id, f'no file {path.name}', 'check the path')
    _read_to_its_end(path)
    image = nibabel.load(path, mmap=False, keep_file_open=True)
  except PermissionError:
    raise base.InputError(
      scan_id, f'file {path.name} may not be read', 'change its permissions'
    ) from None
  except _BROKEN:
    raise _damaged(scan_id, path) from None
  if not isinstance(image, nibabel.Nifti1Image):
    raise _damaged(scan_id, path)
  return image


def _read_to_its_end(path: Path) -> None:
  """There is the checksum of a compressed file; nibabel stops before it."""
  with path.open('rb') as stream:
    if path.suffix.lower() == '.gz':
      with gzip.open(stream) as content:
        while content.read(1 << 20):
          pass


def _values(
  image: SpatialImage,
  path: Path,
  grid: base.Grid,
  scan_id: str,
  *,
  take: Callable[[np.ndarray], None] = lambda values: None,
) -> np.ndarray:
  """The volume as stored, float32, scaled by slope and intercept of the header.

  Read some slices at a time, each given to `take`.
  """
  values = reading.room(_as_stored(grid), scan_id)
  for part in _parts(values.shape[2]):
    slab = (slice(None), slice(None), part, *[0] * (len(image.shape) - 3))
    try:
      with np.errstate(over='ignore'):  # Infinity is told by whoever takes it.
        # A copy: what is taken is changed in place, and this may be the file's own.
        read = np.array(image.dataobj[slab], np.float32)
    except _BROKEN:
      raise _damaged(scan_id, path) from None
    take(read)
    values[:, :, part] = read
  return values


def _stored_labels(path: Path, scan_id: str) -> tuple[np.ndarray, base.Grid]:
  """(i, j, k) uint8 as stored, and its grid."""
  image = _load(path, scan_id)
  grid, _ = _grid(image, scan_id)
  values = _values(image, path, grid, scan_id)
  with np.errstate(invalid='ignore'):
    labels = values.astype(np.uint8)
  if not np.array_equal(labels, values):
    raise base.InputError(
      scan_id,
      f'mask {path.name} holds other than whole numbers from 0 to 255',
      'save labels, not probabilities',
    )
  return labels, grid


def _as_stored(grid: base.Grid) -> base.Grid:
  """The voxels as the file holds them, sheared or not."""
  acquired = grid.acquired
  if acquired is None or acquired.affine is None:
    return grid
  return base.Grid(acquired.shape, acquired.affine)


def _upright(
  native: np.ndarray, grid: base.Grid, *, fill: float, labels: bool = False
) -> np.ndarray:
  shape = grid.native_shape
  return straighten.straighten(native, grid.acquired, shape, fill=fill, labels=labels)


def _damaged(scan_id: str, path: Path) -> base.DamagedFileError:
  return base.DamagedFileError(
    scan_id, f'file {path.name} is cut short, or no NIfTI', 'copy or convert it again'
  )


def _grid(
  image: SpatialImage, scan_id: str
) -> tuple[base.Grid, tuple[ScanWarning, ...]]:
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
  smallest_mm, largest_mm = dicom_geometry.VOXEL_MM
  usable = np.isfinite(affine).all() and lengths.min() >= smallest_mm
  if not usable or lengths.max() > largest_mm:
    raise base.GeometryError(
      scan_id, 'no usable voxel size in the header', 'convert the scan again from DICOM'
    )
  shape = tuple(int(n) for n in shape[:3])
  sheared = _sheared_pairs(affine)
  if not sheared:
    return base.Grid(shape, affine), ()
  return _upright_grid(shape, affine, _slice_axis(image, sheared), sheared, scan_id)


def _sheared_pairs(affine: np.ndarray) -> dict[tuple[int, int], float]:
  """Pairs of axes that are not at right angles, and how many degrees off."""
  directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
  cosines = {(a, b): directions[:, a] @ directions[:, b] for a, b in _PAIRS}
  return {
    pair: float(np.degrees(np.arcsin(min(1.0, abs(c)))))
    for pair, c in cosines.items()
    if abs(c) > SHEAR_COSINE
  }


def _slice_axis(
  image: SpatialImage, sheared: Mapping[tuple[int, int], float]
) -> int | None:
  """The axis that the sheared pairs have in common: that of slices, where two have."""
  common = [axis for axis in range(3) if all(axis in pair for pair in sheared)]
  told = image.header.get_dim_info()[2]
  return told if told in common else max(common, default=None)


def _upright_grid(
  shape: tuple[int, int, int],
  affine: np.ndarray,
  axis: int | None,
  sheared: Mapping[tuple[int, int], float],
  scan_id: str,
) -> tuple[base.Grid, tuple[ScanWarning, ...]]:
  in_plane = np.delete(affine[:3, :3], axis, axis=1) if axis is not None else None
  degrees = max(sheared.values())
  if axis is not None:
    normal = np.cross(*in_plane.T) / np.linalg.norm(np.cross(*in_plane.T))
    increment_mm = abs(float(affine[:3, axis] @ normal))
    cosine = min(1.0, increment_mm / np.linalg.norm(affine[:3, axis]))
    degrees = float(np.degrees(np.arccos(cosine)))
  if axis is None or degrees > dicom_geometry.MAX_TILT_DEGREES:
    raise base.GeometryError(
      scan_id,
      f'axes sheared by {degrees:.1f} degrees, not as by a tilted gantry',
      'resample it to a grid with right angles first',
    )
  along = np.arange(shape[axis])
  positions = affine[:3, 3] + np.outer(along, affine[:3, axis])
  grid = straighten.lay(
    shape,
    in_plane,
    positions,
    along,
    increment_mm,
    affine=affine,
    still_mm=dicom_geometry.DRIFT_MM,
    axis=axis,
  )
  dicom_geometry.check_growth(grid, scan_id=scan_id)
  return grid, dicom_geometry.tilted(degrees)


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


def _same_place(a: base.Grid, b: base.Grid) -> bool:
  """Whether two grids have one shape, and corners together but for rounding."""
  corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(a.shape) - 1)
  corners = np.c_[corners, np.ones(8)]
  apart = np.linalg.norm(corners @ (a.affine - b.affine)[:3].T, axis=1).max()
  return a.shape == b.shape and apart <= SAME_PLACE_VOXELS * min(b.spacing_mm)


def _describe(grid: base.Grid) -> str:
  corner = ', '.join(f'{v:.2f}' for v in grid.affine[:3, 3])
  spacing = _times(f'{s:.3f}' for s in grid.spacing_mm)
  return f'{_times(grid.shape)} voxels of {spacing} mm from ({corner}) mm'


def _times(values: Sequence) -> str:
  return ' x '.join(str(v) for v in values)
