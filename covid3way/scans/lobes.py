"""Lobe masks of other programs: which label means which lobe."""

from collections.abc import Mapping

import numpy as np

from covid3way.base import LEFT, RIGHT, InputError, MaskGridError

# Lobe -> the lung it belongs to; own labels are 1 to 5 in this order.
LOBES = {
  'left_upper': LEFT,
  'left_lower': LEFT,
  'right_upper': RIGHT,
  'right_middle': RIGHT,
  'right_lower': RIGHT,
}
# Labels in the order of `LOBES`. TotalSegmentator's `total` task numbered its classes
# anew in version 2; labels 13 and 14 are lobes in both, and not the same ones.
CONVENTIONS: Mapping[str, tuple[int, ...]] = {
  'lungmask LTRCLobes': (1, 2, 3, 4, 5),
  'TotalSegmentator 2': (10, 11, 12, 13, 14),
  'TotalSegmentator 1': (13, 14, 15, 16, 17),
}
_SIDES = {LEFT: 'left', RIGHT: 'right'}
_RENUMBER = (
  'number the lobes 1 left upper, 2 left lower, 3 right upper, 4 right middle, '
  '5 right lower'
)


def named_lobes(labels: np.ndarray, lungs: np.ndarray, *, scan_id: str) -> np.ndarray:
  """A lobe mask in own labels, after a look at whether it can be of these lungs.

  The convention is the one of `CONVENTIONS` that has all labels of any of them that
  lie in the lungs, by more than half of their voxels: a whole TotalSegmentator mask
  has 10 to 17 in both versions, but of them only lobes in the lungs.

  Args:
    labels: (x, y, z) uint8; labels that mean no lobe are ignored.
    lungs: (x, y, z) 1 left, 2 right, on the same grid.
    scan_id: for errors.

  Returns:
    (x, y, z) uint8: 1 ... 5 in the order of `LOBES`, 0 elsewhere.

  Raises:
    InputError: no convention has its labels, or two have.
    MaskGridError: it is flipped, or of other lungs.
  """
  voxels, heights = _count(labels, lungs)
  ids = _convention(voxels, scan_id)
  _check_sides(voxels, ids, scan_id)
  _check_heights(voxels, heights, ids, scan_id)
  _check_cover(voxels, ids, scan_id)
  own = np.zeros(256, np.uint8)
  own[list(ids)] = range(1, len(ids) + 1)
  result = np.empty(labels.shape, np.uint8)
  for named, plane in zip(result, labels, strict=True):
    named[:] = own[plane]  # All at once, indices would take eight times the mask.
  return result


def _count(labels: np.ndarray, lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(256, 3) voxels by label and lung, (256,) sums of their z; a plane at a time."""
  voxels, heights = np.zeros(256 * 3, np.int64), np.zeros(256)
  z = np.broadcast_to(np.arange(labels.shape[2]), labels.shape[1:])
  for plane, lung in zip(labels, lungs, strict=True):
    codes = 3 * plane.astype(np.intp) + lung
    voxels += np.bincount(codes.ravel(), minlength=voxels.size)
    heights += np.bincount(plane.ravel(), z.ravel(), minlength=256)
  return voxels.reshape(256, 3), heights


def _convention(voxels: np.ndarray, scan_id: str) -> tuple[int, ...]:
  inside = 2 * voxels[:, 1:].sum(axis=1) > voxels.sum(axis=1)
  meant = {i for ids in CONVENTIONS.values() for i in ids if inside[i]}
  fitting = {n: ids for n, ids in CONVENTIONS.items() if meant <= set(ids)}
  if meant and len(fitting) == 1:
    return next(iter(fitting.values()))
  told = ', '.join(str(i) for i in np.flatnonzero(voxels.any(axis=1)) if i) or 'none'
  within = ', '.join(map(str, sorted(meant))) or 'none'
  found = f'a lobe mask with labels {told}, of which in the lungs: {within}'
  if not meant or not fitting:
    known = '; '.join(f'{n}: {ids[0]} to {ids[-1]}' for n, ids in CONVENTIONS.items())
    raise InputError(scan_id, f'{found}; known are {known}', _RENUMBER)
  raise InputError(scan_id, f'{found}, as in {" and in ".join(fitting)}', _RENUMBER)


def _check_sides(voxels: np.ndarray, ids: tuple[int, ...], scan_id: str) -> None:
  for label, (lobe, side) in zip(ids, LOBES.items(), strict=True):
    other = LEFT + RIGHT - side
    if voxels[label, other] > voxels[label, side]:
      share = voxels[label, other] / voxels[label, 1:].sum()
      raise MaskGridError(
        scan_id,
        f'label {label} of the lobe mask, {lobe.replace("_", " ")} lobe, lies in the '
        f'{_SIDES[other]} lung by {share:.0%}',
        'flip the mask left to right; if it is no lobe mask, do not give it as one',
      )


def _check_heights(
  voxels: np.ndarray, heights: np.ndarray, ids: tuple[int, ...], scan_id: str
) -> None:
  place = dict(zip(LOBES, ids, strict=True))
  for side in _SIDES.values():
    upper, lower = place[f'{side}_upper'], place[f'{side}_lower']
    n_upper, n_lower = voxels[[upper, lower]].sum(axis=1)
    if n_upper and n_lower and heights[upper] / n_upper < heights[lower] / n_lower:
      raise MaskGridError(
        scan_id,
        f'the {side} upper lobe of the lobe mask lies below the lower one',
        'flip the mask head to feet, or save it anew on the grid of the scan',
      )


def _check_cover(voxels: np.ndarray, ids: tuple[int, ...], scan_id: str) -> None:
  for side, name in _SIDES.items():
    lung = voxels[:, side].sum()
    covered = sum(
      voxels[i, side] for i, s in zip(ids, LOBES.values(), strict=True) if s == side
    )
    if 2 * covered < lung:
      raise MaskGridError(
        scan_id,
        f'the lobe mask covers only {covered / lung:.0%} of the {name} lung',
        'give the lobe mask of this scan, with all its lobes',
      )
