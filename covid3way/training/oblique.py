"""The oblique planes of stored scans: which there are, and how to read them."""

import functools
import threading
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from covid3way.scans.store import StoredScan
from covid3way.training.planes import PlaneGrid
from covid3way.training.slices import TIMEOUT_S, Candidates, Masks, naming, told_apart

_OPEN_SCANS = 4  # Kept decoded: a plane crosses most of a scan's cubes.


def find_planes(scan: StoredScan, masks: Masks, grid: PlaneGrid) -> Candidates:
  """The planes of a scan that cross target or region, view after view.

  Raises:
    InputError, DamagedFileError: the masks cannot be read.
  """
  return told_apart(*(_crossed(m, masks, grid) for m in masks.read(scan)), 0)


def _crossed(mask: np.ndarray, masks: Masks, grid: PlaneGrid) -> np.ndarray:
  """(v * side,) bool: which planes have a voxel of the mask nearest to them."""
  begin = np.array([part.start for part in masks.window])[:, None]
  found = np.zeros((grid.views, grid.side), bool)
  for x in np.flatnonzero(mask.any(axis=(1, 2))):  # All at once would fill the memory.
    y, z = np.nonzero(mask[x])
    planes = np.rint(grid.heights(np.stack([np.full_like(y, x), y, z]) + begin))
    for view, near in enumerate(planes.astype(int)):
      found[view, near[(near >= 0) & (near < grid.side)]] = True
  return found.ravel()


class ObliquePlanes:
  """The oblique planes of some scans.

  Attributes:
    scans: of which they are.
    candidates: per scan, which to draw from; numbers are view * side + plane.
  """

  def __init__(
    self,
    scans: Sequence[StoredScan],
    candidates: Sequence[Candidates],
    *,
    masks: Masks,
    grid: PlaneGrid,
  ):
    self.scans, self.candidates = scans, candidates
    self._masks, self._grid = masks, grid
    self._cached = functools.lru_cache(maxsize=_OPEN_SCANS)(self._read_whole)
    self._lock = threading.Lock()

  def read(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Reads planes: the signal interpolated linearly, masks taken from the nearest.

    Args:
      chosen: (b, 2) scan and plane numbers.

    Returns:
      As of `Slices.read`; weights are False where a plane leaves the volume.

    Raises:
      DamagedFileError: a scan cannot be read; it is named.
    """
    stacks, labels, weights = [], [], []
    for number, index in chosen:
      view, plane = divmod(int(index), self._grid.side)
      at = self._grid.voxels(view, np.array([plane]))[..., 0]
      signal, target, counted = self._whole(int(number))
      plane = ndimage.map_coordinates(signal, at, order=1, mode='nearest')
      stacks.append(plane[..., None].astype(np.float16))
      nearest = {'order': 0, 'mode': 'constant'}
      labels.append(ndimage.map_coordinates(target, at, **nearest) > 0)
      weights.append(ndimage.map_coordinates(counted, at, **nearest) > 0)
    pixels_mm = np.full((len(chosen), 2), self._grid.pixel_mm, np.float32)
    return {
      'stacks': np.stack(stacks),
      'labels': np.stack(labels),
      'weights': np.stack(weights),
      'pixels_mm': pixels_mm,
    }

  def _whole(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with self._lock:  # Or several threads would read the same scan at once.
      return self._cached(number)

  def _read_whole(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal float32, target and region uint8, (x, y, z)."""
    scan = self.scans[number]
    with naming(scan):
      signal, target, lungs = (
        scan.volumes[name].read().result(TIMEOUT_S)
        for name in ('signal', self._masks.target, 'lungs')
      )
    counted = lungs if self._masks.region == 'lungs' else np.ones_like(lungs)
    return signal.astype(np.float32), target, counted
