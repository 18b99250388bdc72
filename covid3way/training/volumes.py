"""The sub-volumes of stored scans: which there are, and how to read them."""

import itertools
from collections.abc import Sequence

import numpy as np

from covid3way.scans.store import StoredScan
from covid3way.training.slices import Candidates, Masks, read_parts, told_apart

_STEPS = 4  # Sub-volumes begin so many times per side of one.

Corners = tuple[np.ndarray, np.ndarray, np.ndarray]


def corners(
  window: tuple[slice, slice, slice], patch: Sequence[int], shape: Sequence[int]
) -> Corners:
  """Where sub-volumes begin along x, y and z: evenly, and from end to end of a window.

  A window narrower than the patch has one, around its middle.

  Args:
    window: of the volume, to be covered.
    patch: sides of a sub-volume, voxels; at most the volume's.
    shape: of the volume.
  """
  found = []
  for part, side, n in zip(window, patch, shape, strict=True):
    low, high = part.start, part.stop - side
    if high < low:
      low = high = min(max((low + high) // 2, 0), n - side)
    number = -(-(high - low) * _STEPS // side) + 1
    found.append(np.unique(np.linspace(low, high, number).round().astype(int)))
  return tuple(found)


def find_sub_volumes(
  scan: StoredScan, masks: Masks, patch: Sequence[int]
) -> Candidates:
  """The sub-volumes of a scan that hold target or cross the region.

  Raises:
    InputError, DamagedFileError: the masks cannot be read.
  """
  begin = corners(masks.window, patch, scan.shape)
  whole = Masks(masks.target, masks.region, tuple(slice(0, n) for n in scan.shape))
  return told_apart(*(_any_within(m, begin, patch) for m in whole.read(scan)), 0)


def _any_within(mask: np.ndarray, begin: Corners, patch: Sequence[int]) -> np.ndarray:
  """(n,) bool of all corners, x slowest: whether the mask is anywhere in there."""
  for axis, (starts, side) in enumerate(zip(begin, patch, strict=True)):
    parts = [mask.take(range(s, s + side), axis).any(axis) for s in starts]
    mask = np.stack(parts, axis)
  return mask.ravel()


class SubVolumes:
  """The sub-volumes of some scans.

  Attributes:
    scans: of which they are.
    candidates: per scan, which to draw from; numbers of `corners`, x slowest.
  """

  def __init__(
    self,
    scans: Sequence[StoredScan],
    candidates: Sequence[Candidates],
    *,
    masks: Masks,
    patch: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
  ):
    self.scans, self.candidates = scans, candidates
    self._masks, self._patch = masks, patch
    self._corners = list(
      itertools.product(*corners(masks.window, patch, scans[0].shape) if scans else ())
    )
    self._pixels_mm = np.array(spacing_mm, np.float32)

  def read(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Reads sub-volumes.

    Args:
      chosen: (b, 2) scan and sub-volume numbers.

    Returns:
      `stacks` (b, x, y, z, 1) float16, window units; `labels` and `weights`
      (b, x, y, z) bool; `pixels_mm` (b, 3) float32, size of a voxel.

    Raises:
      DamagedFileError: a scan cannot be read; it is named.
    """
    parts = [self._parts(int(index)) for _, index in chosen]
    return read_parts(
      self.scans, chosen[:, 0], parts, self._masks, lambda signal: signal[..., None]
    ) | {'pixels_mm': np.tile(self._pixels_mm, (len(chosen), 1))}

  def _parts(self, index: int):
    """Where a sub-volume lies, its signal and its masks."""
    begin = self._corners[index]
    where = tuple(slice(b, b + p) for b, p in zip(begin, self._patch, strict=True))
    return where, where
