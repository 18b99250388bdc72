"""Slices that lie askew or unevenly -> an even grid with right angles, and back.

The grid runs along the slices' own rows, columns and normal. In plane a slice is moved
by a sub-pixel shift: four taps of Keys' cubic (IEEE Trans. ASSP 29, 1981, a = -1/2),
which keeps every polynomial up to the second degree. Along the normal it is linear.
Labels go to the nearest voxel, both ways, so that they come back unchanged.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from covid3way import base

_WHOLE_VOXEL = 1e-3  # Shifts this near to whole voxels are whole.
_BLOCK = 32  # Columns and rows of all slices, copied together.
_BLOCK_SLICES = 16  # Turned together: 16 float32 fill a line of the cache.


def lay(
  shape: Sequence[int],
  in_plane_mm: np.ndarray,
  positions_mm: np.ndarray,
  along: np.ndarray,
  increment_mm: float,
  *,
  affine: np.ndarray | None,
  still_mm: float,
  axis: int = 2,
) -> base.Grid:
  """The even grid with right angles that holds all slices, shifted as they are.

  Args:
    shape: voxels as stored; slices along `axis`.
    in_plane_mm: (3, 2) LPS steps along the other two axes, perpendicular.
    positions_mm: (slices, 3) of each slice's first voxel, ascending.
    along: (slices,) places along the normal, in increments from the first.
    increment_mm: of the grid along the normal.
    affine: (4, 4) of the voxels as stored; None where none says it.
    still_mm: shifts along an axis that stay below it are no shifts.
    axis: from slice to slice.

  Returns:
    The grid; `acquired` is None when slices lie on it as they are.
  """
  normal = np.cross(*in_plane_mm.T)
  normal /= np.linalg.norm(normal)
  moved_mm = positions_mm - positions_mm[0]
  normal *= np.sign(moved_mm[-1] @ normal)
  steps = np.column_stack([in_plane_mm, normal * increment_mm])
  shifts = np.linalg.solve(steps, moved_mm.T).T[:, :2]
  still = np.abs(shifts) * np.linalg.norm(in_plane_mm, axis=0) <= still_mm
  shifts[:, still.all(axis=0)] = 0
  lowest = shifts.min(axis=0)
  shifts -= lowest

  order = [a for a in range(3) if a != axis] + [axis]
  native_affine = np.eye(4)
  native_affine[:3, order] = steps
  native_affine[:3, 3] = positions_mm[0] + in_plane_mm @ lowest
  places = np.empty((len(along), 3))
  places[:, order] = np.column_stack([shifts, along])
  size = np.ceil(places.max(axis=0) - _WHOLE_VOXEL).astype(int)
  size[order[:2]] += np.array(shape)[order[:2]]
  size[axis] += 1
  native_shape = tuple(int(n) for n in size)
  as_stored = not shifts.any() and np.array_equal(along, np.arange(len(along)))
  acquired = base.Acquired(tuple(shape), affine, places, axis)
  return base.Grid(native_shape, native_affine, None if as_stored else acquired)


def straighten(
  stored: np.ndarray,
  acquired: base.Acquired,
  native_shape: tuple[int, int, int],
  *,
  fill: float,
  labels: bool = False,
) -> np.ndarray:
  """A volume as stored -> the Grid's native array, of one type with it.

  Args:
    stored: `acquired.shape`.
    acquired: of the Grid.
    native_shape: of the Grid.
    fill: where no slice reaches.
    labels: whether to take the nearest voxel rather than to interpolate.
  """
  result = np.empty(native_shape, stored.dtype)
  slices = np.moveaxis(stored, acquired.axis, 0)
  grid = base.Grid(native_shape, np.eye(4), acquired)
  place_slices(slices, grid, result, fill=fill, labels=labels)
  return result


def place_slices(
  slices: Iterable[np.ndarray],
  grid: base.Grid,
  result: np.ndarray,
  *,
  fill: float,
  labels: bool = False,
) -> None:
  """`straighten` of slices that come one by one, into the native array `result`."""
  planes = slices
  axis = 2
  if grid.acquired:
    planes, axis = _planes(slices, grid, fill, labels), grid.acquired.axis
  target, start, block = np.moveaxis(result, axis, -1), 0, []
  for plane in planes:
    block.append(plane)
    if len(block) == _BLOCK_SLICES or start + len(block) == target.shape[-1]:
      target[..., start : start + len(block)] = np.stack(block, axis=-1)
      start, block = start + len(block), []


def to_acquired(native: np.ndarray, grid: base.Grid, *, labels: bool) -> np.ndarray:
  """A native array of the Grid -> the voxels as stored; itself without `acquired`.

  Args:
    native: `grid.native_shape`.
    grid: of the scan.
    labels: nearest voxel, of one type with `native`; else linear, a bool mask is cut
      at half.
  """
  if not grid.acquired:
    return native
  acquired, is_mask = grid.acquired, native.dtype == bool and not labels
  result = np.empty(acquired.shape, native.dtype)
  planes = np.moveaxis(native, acquired.axis, 0)
  stored = np.moveaxis(result, acquired.axis, 0)
  shifts, along = _parts(acquired)
  for k, (shift, z) in enumerate(zip(shifts, along, strict=True)):
    low, weight = _split(z, labels, len(planes))
    plane = planes[low]
    if weight:
      plane = plane * np.float32(1 - weight) + planes[low + 1] * np.float32(weight)
    for a, by in enumerate(shift):
      plane = _taken(plane, by, stored.shape[1 + a], a, labels)
    stored[k] = plane >= 0.5 if is_mask else plane
  return result


def slices_first(stored: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
  """(columns, rows, slices) -> (slices, rows, columns), C-contiguous, as files hold it.

  Copied in blocks that stay in the cache: numpy alone takes five times as long.
  """
  result = np.empty(stored.shape[::-1], dtype)
  for i in range(0, stored.shape[0], _BLOCK):
    columns = slice(i, i + _BLOCK)
    for j in range(0, stored.shape[1], _BLOCK):
      rows = slice(j, j + _BLOCK)
      result[:, rows, columns] = stored[columns, rows].T
  return result


def _parts(acquired: base.Acquired) -> tuple[np.ndarray, np.ndarray]:
  """(slices, 2) shifts in plane, (slices,) places along the axis of slices; voxels."""
  in_plane = np.delete(acquired.places, acquired.axis, axis=1)
  return in_plane, acquired.places[:, acquired.axis]


def _planes(
  slices: Iterable[np.ndarray], grid: base.Grid, fill: float, labels: bool
) -> Iterator[np.ndarray]:
  """The planes of the Grid, from slices as stored; two are held at a time."""
  shifts, along = _parts(grid.acquired)
  shape = np.delete(grid.native_shape, grid.acquired.axis)
  count, done, before = grid.native_shape[grid.acquired.axis], 0, None
  for k, each in enumerate(slices):
    after = _shifted(each, shifts[k], shape, fill, labels)
    while done < count and done <= along[k] + _WHOLE_VOXEL:
      gap = along[k] - along[k - 1] if k else 1.0
      weight = np.float32(max(0.0, (along[k] - done) / gap))
      if labels:
        weight = np.round(weight)
      whole = weight < _WHOLE_VOXEL or before is None
      yield after if whole else before * weight + after * (1 - weight)
      done += 1
    before = after


def _shifted(
  plane: np.ndarray, shift: np.ndarray, shape: np.ndarray, fill: float, labels: bool
) -> np.ndarray:
  """A slice moved by `shift` voxels onto a plane of `shape`; between its own values."""
  lowest, highest = plane.min(), plane.max()
  for axis, by in enumerate(shift):
    whole, part = _split(by, labels, None)
    moved = np.moveaxis(plane, axis, 0)
    wide = np.full((shape[axis] + 3, moved.shape[1]), fill, plane.dtype)
    if not part:
      wide[whole : whole + len(moved)] = moved
      moved = wide[: shape[axis]]
    else:
      wide[whole + 2 : whole + 2 + len(moved)] = moved
      parts = zip(_cubic(1 - part), range(4), strict=True)
      moved = sum(w * wide[c : c + shape[axis]] for w, c in parts)
    plane = np.moveaxis(moved, 0, axis)
  return np.clip(plane, min(lowest, fill), max(highest, fill))


def _taken(
  plane: np.ndarray, shift: float, size: int, axis: int, labels: bool
) -> np.ndarray:
  """`size` voxels along an axis, beginning `shift` voxels in; linear between two."""
  whole, part = _split(shift, labels, None)
  plane = np.moveaxis(plane, axis, 0)
  taken = plane[whole : whole + size]
  if part:
    ahead = plane[whole + 1 : whole + 1 + size]
    taken = taken * np.float32(1 - part) + ahead * np.float32(part)
  return np.moveaxis(taken, 0, axis)


def _split(place: float, labels: bool, count: int | None) -> tuple[int, float]:
  """Whole voxels and the rest of one, 0 for labels; `count` bounds the former."""
  whole = int(np.floor(place + (0.5 if labels else _WHOLE_VOXEL)))
  part = 0.0 if labels else max(0.0, place - whole)
  if count is not None and whole >= count - 1:
    return count - 1, 0.0
  return whole, 0.0 if part < _WHOLE_VOXEL else float(part)


def _cubic(t: float) -> np.ndarray:
  """(4,) float32, the weights of samples at -1, 0, 1 and 2 for a value at `t`."""
  return np.float32(
    [
      (-t + 2 * t**2 - t**3) / 2,
      (2 - 5 * t**2 + 3 * t**3) / 2,
      (t + 4 * t**2 - 3 * t**3) / 2,
      (-(t**2) + t**3) / 2,
    ]
  )
