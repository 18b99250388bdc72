"""Pure geometry of a DICOM series: planes in the patient -> order and grid.

Only ImagePositionPatient, ImageOrientationPatient and PixelSpacing count. File names,
InstanceNumber, SliceLocation and SliceThickness are wrong too often to be looked at.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from covid3way import base

MIN_SLICES = 3
SAME_POSITION_MM = 0.01
MISSING_GAP = 1.5  # times the median increment
# Vendors round positions to 0.1 mm; a shift by a twentieth of a slice is harmless.
JITTER_MM, JITTER_SHARE = 0.1, 0.05
# Rounded direction cosines drift by up to 2 mm per metre (0.1 degrees).
DRIFT_MM, DRIFT_SHARE = 0.1, 0.002


class Plane(NamedTuple):
  """Where one slice lies, LPS mm.

  Attributes:
    position_mm: (3,) centre of the first voxel.
    directions: (2, 3) unit vectors: along a row (growing column), along a column.
    spacing_mm: (2,) between rows, between columns, as PixelSpacing.
    shape: (rows, columns).
  """

  position_mm: np.ndarray
  directions: np.ndarray
  spacing_mm: np.ndarray
  shape: tuple[int, int]

  @property
  def normal(self) -> np.ndarray:
    """(3,) to the head for a supine, head-first, axial slice."""
    return np.cross(*self.directions)


class Extent(NamedTuple):
  """How much of the patient a series covers; the best series sorts first."""

  axial: bool
  length_mm: float
  increment_mm: float


def plane(header: Dataset) -> Plane | None:
  """The plane of a slice, or None when a tag is absent or makes no sense."""
  try:
    position = np.array(header.ImagePositionPatient, np.float64)
    directions = np.array(header.ImageOrientationPatient, np.float64).reshape(2, 3)
    spacing = np.array(header.PixelSpacing, np.float64)
    shape = int(header.Rows), int(header.Columns)
  except (AttributeError, TypeError, ValueError):
    return None
  lengths = np.linalg.norm(directions, axis=1)
  sensible = (
    position.shape == (3,)
    and spacing.shape == (2,)
    and np.isfinite(position).all()
    and np.isfinite(spacing).all()
    and (spacing > 0).all()
    and np.allclose(lengths, 1, atol=0.01)
    and abs(directions[0] @ directions[1]) < 0.01
    and min(shape) > 0
  )
  if not sensible:
    return None
  return Plane(position, directions / lengths[:, None], spacing, shape)


def extent(planes: Sequence[Plane]) -> Extent:
  """What `planes` cover, by the orientation of the first one."""
  normal = planes[0].normal
  along = np.unique(np.round([p.position_mm @ normal for p in planes], 2))
  increment = np.median(np.diff(along)) if along.size > 1 else np.inf
  return Extent(
    bool(abs(normal[2]) > np.cos(np.radians(45))),
    float(along[-1] - along[0]),
    float(increment),
  )


def stack(planes: Sequence[Plane], *, scan_id: str) -> tuple[np.ndarray, base.Grid]:
  """Sort the planes of one series along their normal and check that they make a grid.

  Returns:
    (slices,) int indices into `planes`, ascending along the normal; and the grid, with
    native order (columns, rows, slices).

  Raises:
    DuplicateSliceError, MissingSliceError: as they say.
    GeometryError: too few slices, slices unlike each other, uneven or sheared.
  """
  if len(planes) < MIN_SLICES:
    raise base.GeometryError(
      scan_id,
      f'only {len(planes)} CT slice(s)',
      f'give the whole series, {MIN_SLICES} slices at least',
    )
  _check_alike(planes, scan_id)
  first, normal = planes[0], planes[0].normal
  positions = np.array([p.position_mm for p in planes])
  order = np.argsort(positions @ normal, kind='stable')
  positions = positions[order]
  _check_gaps(positions @ normal, scan_id)
  _check_drift(positions, normal, scan_id)

  affine = np.eye(4)
  affine[:3, :2] = (first.directions * first.spacing_mm[::-1, None]).T
  affine[:3, 2] = (positions[-1] - positions[0]) / (len(planes) - 1)
  affine[:3, 3] = positions[0]
  rows, columns = first.shape
  return order, base.Grid((columns, rows, len(planes)), affine)


def _check_alike(planes: Sequence[Plane], scan_id: str) -> None:
  first = planes[0]
  differing = {
    'size (Rows, Columns)': lambda p: p.shape == first.shape,
    'orientation': lambda p: np.allclose(p.directions, first.directions, atol=1e-3),
    'pixel spacing': lambda p: np.allclose(p.spacing_mm, first.spacing_mm, rtol=1e-3),
  }
  for what, alike in differing.items():
    count = sum(not alike(p) for p in planes)
    if count:
      raise base.GeometryError(
        scan_id,
        f'{count} of {len(planes)} slices of one series have another {what}',
        'keep the files of one reconstruction only',
      )


def _check_gaps(along_mm: np.ndarray, scan_id: str) -> None:
  gaps = np.diff(along_mm)
  same = np.flatnonzero(gaps <= SAME_POSITION_MM)
  if same.size:
    raise base.DuplicateSliceError(
      scan_id,
      f'two different slices at {along_mm[same[0]]:.2f} mm, {same.size} such pair(s)',
      'keep one reconstruction, or one phase, of this series',
    )
  usual = float(np.median(gaps))
  wide = np.flatnonzero(gaps >= MISSING_GAP * usual)
  if wide.size:
    k = wide[0]
    raise base.MissingSliceError(
      scan_id,
      f'a gap of {gaps[k]:.2f} mm at {along_mm[k]:.2f} mm where slices are '
      f'{usual:.2f} mm apart, {wide.size} such gap(s)',
      'add the missing files, or export the series again',
    )
  even = np.linspace(along_mm[0], along_mm[-1], along_mm.size)
  jitter = float(np.abs(along_mm - even).max())
  if jitter > max(JITTER_MM, JITTER_SHARE * usual):
    raise base.GeometryError(
      scan_id,
      f'slices between {gaps.min():.2f} and {gaps.max():.2f} mm apart',
      'give an evenly spaced reconstruction',
    )


def _check_drift(positions_mm: np.ndarray, normal: np.ndarray, scan_id: str) -> None:
  shifts = positions_mm - positions_mm[0]
  along = shifts @ normal
  drift = float(np.linalg.norm(shifts - np.outer(along, normal), axis=1).max())
  if drift > DRIFT_MM + DRIFT_SHARE * along[-1]:
    degrees = np.degrees(np.arctan2(drift, along[-1]))
    raise base.GeometryError(
      scan_id,
      f'slices shift sideways by {drift:.1f} mm, as with a gantry tilted by '
      f'{degrees:.1f} degrees',
      'resample it to upright slices first (a tilt correction, as in dcm2niix)',
    )
