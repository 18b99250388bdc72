"""Pure geometry of a DICOM series: planes in the patient -> order and grid.

Only ImagePositionPatient, ImageOrientationPatient and PixelSpacing count. File names,
InstanceNumber, SliceLocation and SliceThickness are wrong too often to be looked at.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from covid3way import base
from covid3way.base import ScanWarning, WarningKind
from covid3way.scans import straighten

MIN_SLICES = 3
# Nearer to each other than this, or this share of the wide gaps: at one place.
SAME_POSITION_MM, SAME_POSITION_SHARE = 0.01, 0.04
# Gaps are uneven spacing where several alike follow each other, or where every third
# or so is wide. One or two that are half as wide again as their neighbours, here and
# there, are missing slices: nothing is made up for them.
MISSING_GAP, MISSING_RUN, MISSING_SHARE = 1.5, 2, 0.25
MOST_SLICES = 3  # times the slices there are, on an evened grid
ZONE_SHARE = 0.1  # of all gaps, at least, in a zone that sets its increment
MAX_TILT_DEGREES = 45.0
MAX_GROWTH = 32  # of a grid through crooked slices, over the voxels stored
VOXEL_MM = 1e-3, 1e3  # at least and at most
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


class Stack(NamedTuple):
  """Slices in order.

  Attributes:
    order: (slices,) int, indices into the planes, ascending along their normal.
    grid: native order (columns, rows, slices).
    warnings: what was corrected.
  """

  order: np.ndarray
  grid: base.Grid
  warnings: tuple[ScanWarning, ...]


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
    and (spacing >= VOXEL_MM[0]).all()
    and (spacing <= VOXEL_MM[1]).all()
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


def stack(planes: Sequence[Plane], *, scan_id: str) -> Stack:
  """Sort the planes of one series along their normal and lay an even grid through them.

  Slices that shift sideways (a tilted gantry) and uneven spacing give a grid along the
  slices' own axes and normal, whose `acquired` says where each slice lies on it.

  Raises:
    DuplicateSliceError, MissingSliceError: as they say.
    GeometryError: too few slices, slices unlike each other, or crooked.
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
  along_mm = positions @ normal
  _check_duplicates(along_mm, scan_id)
  _check_missing(along_mm, scan_id)
  increment_mm, evened = _increment(along_mm)
  tilt_degrees = _tilt_degrees(positions, normal, scan_id)

  rows, columns = first.shape
  affine = np.eye(4)
  affine[:3, :2] = (first.directions * first.spacing_mm[::-1, None]).T
  affine[:3, 2] = (positions[-1] - positions[0]) / (len(planes) - 1)
  affine[:3, 3] = positions[0]
  shape = (columns, rows, len(planes))
  if not evened and not tilt_degrees:
    return Stack(order, base.Grid(shape, affine), ())
  along = np.arange(len(planes))
  if evened:
    along = (along_mm - along_mm[0]) / increment_mm
    along[-1] = np.round(along[-1])
  grid = straighten.lay(
    shape,
    affine[:3, :2],
    positions,
    along,
    increment_mm,
    affine=None if evened else affine,
    still_mm=_drift_allowed_mm(along_mm),
  )
  check_growth(grid, scan_id=scan_id)
  warnings = tilted(tilt_degrees) + _evened(evened, along_mm, grid)
  return Stack(order, grid, warnings)


class Tangle(NamedTuple):
  """What is odd about the places of slices of one orientation."""

  doubled: bool
  uneven: bool


def tangle(planes: Sequence[Plane]) -> Tangle:
  """Whether slices lie over each other, or unevenly."""
  along_mm = np.sort([p.position_mm @ planes[0].normal for p in planes])
  if along_mm.size < 2:
    return Tangle(doubled=False, uneven=False)
  doubled = np.diff(along_mm).min() <= _same_position_mm(along_mm)
  return Tangle(bool(doubled), bool(_jitters(along_mm)))


def places(planes: Sequence[Plane]) -> tuple[np.ndarray, np.ndarray]:
  """(slices,) int, their order along the normal; and for each which place it is at."""
  along_mm = np.array([p.position_mm @ planes[0].normal for p in planes])
  order = np.argsort(along_mm, kind='stable')
  result = np.empty(len(planes), int)
  apart_mm = _same_position_mm(along_mm[order])
  steps = np.diff(along_mm[order], prepend=-np.inf) > apart_mm
  result[order] = np.cumsum(steps)
  return order, result


def alike(a: Plane, b: Plane) -> bool:
  """Whether two planes could be slices of one series."""
  return all(same(a, b) for same in _ALIKE.values())


_ALIKE = {
  'size (Rows, Columns)': lambda a, b: a.shape == b.shape,
  'orientation': lambda a, b: np.allclose(a.directions, b.directions, atol=1e-3),
  'pixel spacing': lambda a, b: np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3),
}


def _check_alike(planes: Sequence[Plane], scan_id: str) -> None:
  for what, same in _ALIKE.items():
    count = sum(not same(p, planes[0]) for p in planes)
    if count:
      raise base.GeometryError(
        scan_id,
        f'{count} of {len(planes)} slices of one series have another {what}',
        'keep the files of one reconstruction only',
      )


def _same_position_mm(along_mm: np.ndarray) -> float:
  gaps = np.diff(along_mm)
  wide = float(np.percentile(gaps, 90)) if gaps.size else 0.0
  return max(SAME_POSITION_MM, SAME_POSITION_SHARE * wide)


def _check_duplicates(along_mm: np.ndarray, scan_id: str) -> None:
  same = np.flatnonzero(np.diff(along_mm) <= _same_position_mm(along_mm))
  if same.size:
    raise base.DuplicateSliceError(
      scan_id,
      f'two different slices at {along_mm[same[0]]:.2f} mm, {same.size} such pair(s)',
      'keep one reconstruction, or one phase, of this series',
    )


def _check_missing(along_mm: np.ndarray, scan_id: str) -> None:
  gaps = np.diff(along_mm)
  runs = _runs(gaps)
  width = [float(np.median(gaps[run])) for run in runs]
  beside = [width[max(0, r - 1) : r] + width[r + 1 : r + 2] for r in range(len(runs))]
  wide = [
    run
    for run, w, others in zip(runs, width, beside, strict=True)
    if run.size <= MISSING_RUN and others and w >= MISSING_GAP * max(others)
  ]
  count = sum(run.size for run in wide)
  if wide and count <= max(MISSING_RUN, MISSING_SHARE * gaps.size):
    k = wide[0][0]
    raise base.MissingSliceError(
      scan_id,
      f'a gap of {gaps[k]:.2f} mm at {along_mm[k]:.2f} mm where slices are '
      f'{np.median(gaps):.2f} mm apart, {count} such gap(s)',
      'add the missing files, or export the series again',
    )


def _runs(gaps: np.ndarray) -> list[np.ndarray]:
  """Indices of neighbouring gaps that are alike."""
  ratio = gaps[1:] / gaps[:-1]
  jumps = np.flatnonzero((ratio >= MISSING_GAP) | (ratio <= 1 / MISSING_GAP)) + 1
  return np.split(np.arange(gaps.size), jumps)


def _jitters(along_mm: np.ndarray) -> bool:
  even = np.linspace(along_mm[0], along_mm[-1], along_mm.size)
  return np.abs(along_mm - even).max() > _jitter_allowed_mm(along_mm)


def _jitter_allowed_mm(along_mm: np.ndarray) -> float:
  return max(JITTER_MM, JITTER_SHARE * float(np.median(np.diff(along_mm))))


def _increment(along_mm: np.ndarray) -> tuple[float, bool]:
  """The increment of the grid, and whether slices must be interpolated onto it.

  Uneven slices get that of their finest zone (three alike gaps at least, and a tenth
  of all), else the median gap; slightly changed, so that the grid ends where they end.
  """
  gaps, length = np.diff(along_mm), along_mm[-1] - along_mm[0]
  if not _jitters(along_mm):
    return float(length / gaps.size), False
  least = max(MISSING_RUN + 1, ZONE_SHARE * gaps.size)
  zones = [np.median(gaps[run]) for run in _runs(gaps) if run.size >= least]
  wanted = min(zones, default=np.median(gaps))
  wanted = max(wanted, length / (MOST_SLICES * along_mm.size))
  return float(length / np.round(length / wanted)), True


def allowed_mm(along_mm: np.ndarray) -> float:
  """How far slices that a grid was laid through may lie off it.

  Args:
    along_mm: (slices,) ascending, their places along the normal.
  """
  return _drift_allowed_mm(along_mm) + _jitter_allowed_mm(along_mm)


def _drift_allowed_mm(along_mm: np.ndarray) -> float:
  return DRIFT_MM + DRIFT_SHARE * (along_mm[-1] - along_mm[0])


def _tilt_degrees(positions_mm: np.ndarray, normal: np.ndarray, scan_id: str) -> float:
  """By how much slices shift sideways as they go up; 0 for rounding alone."""
  shifts = positions_mm - positions_mm[0]
  along = shifts @ normal
  sideways = shifts - np.outer(along, normal)
  allowed_mm = _drift_allowed_mm(along)
  drift = float(np.linalg.norm(sideways, axis=1).max())
  if drift <= allowed_mm:
    return 0.0
  slope = along @ sideways / (along @ along)
  crooked = np.linalg.norm(sideways - np.outer(along, slope), axis=1).max()
  if crooked > allowed_mm:
    raise base.GeometryError(
      scan_id,
      f'slices shift sideways by up to {drift:.1f} mm, {crooked:.1f} mm off a line',
      'export the series again; a table that moved sideways cannot be put right',
    )
  degrees = float(np.degrees(np.arctan(np.linalg.norm(slope))))
  if degrees > MAX_TILT_DEGREES:
    raise base.GeometryError(
      scan_id,
      f'slices shift sideways as with a gantry tilted by {degrees:.1f} degrees',
      f'check their positions; up to {MAX_TILT_DEGREES:.0f} degrees are corrected',
    )
  return degrees


def check_growth(grid: base.Grid, *, scan_id: str) -> None:
  """Nothing, for a grid that holds its slices without much around them.

  Raises:
    GeometryError: it would be mostly empty; positions or spacing must be wrong.
  """
  stored = grid.acquired.shape if grid.acquired else grid.native_shape
  if np.prod(grid.native_shape, dtype=float) > MAX_GROWTH * np.prod(
    stored, dtype=float
  ):
    raise base.GeometryError(
      scan_id,
      f'slices so far apart that an even grid of them has {grid.native_shape} voxels',
      'check positions and voxel sizes, or convert the scan again',
    )


def tilted(degrees: float) -> tuple[ScanWarning, ...]:
  """What to tell of slices that were shifted upright, by 0 degrees: nothing."""
  if not degrees:
    return ()
  message = (
    f'slices shift sideways as with a gantry tilted by {degrees:.1f} degrees; '
    'interpolated onto a grid with right angles'
  )
  return (ScanWarning(WarningKind.TILT_CORRECTED, message),)


def _evened(
  evened: bool, along_mm: np.ndarray, grid: base.Grid
) -> tuple[ScanWarning, ...]:
  if not evened:
    return ()
  gaps, count = np.diff(along_mm), grid.native_shape[2]
  increment_mm = (along_mm[-1] - along_mm[0]) / (count - 1)
  spacing = (
    f'slices between {gaps.min():.2f} and {gaps.max():.2f} mm apart; interpolated '
    f'onto {count} slices {increment_mm:.2f} mm apart'
  )
  stored = (
    f'NIfTI outputs lie on the evened grid of {count} slices, not on the '
    f'{along_mm.size} slices as stored'
  )
  return (
    ScanWarning(WarningKind.SPACING_EVENED, spacing),
    ScanWarning(WarningKind.GRID_NOT_STORED, stored),
  )
