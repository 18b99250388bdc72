"""The slices of one view in stored scans: which there are, and how to read them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from covid3way.base import DamagedFileError, InputError
from covid3way.scans.store import StoredScan
from covid3way.training import views

TIMEOUT_S = 600.0  # A disk that has not answered by then will not.


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
  """Slices of one scan that are worth drawing.

  Attributes:
    foreground: (f,) numbers of slices that hold target voxels.
    background: (g,) the others that cross the region where the loss is counted.
  """

  foreground: np.ndarray
  background: np.ndarray


def find_candidates(
  scan: StoredScan, *, target: str, region: str, window: tuple[slice, slice, slice]
) -> dict[str, Candidates]:
  """The candidates of each view; reads the scan's masks once for all of them.

  Args:
    scan: of a store.
    target: name of the mask that is learned.
    region: `lungs`, where slices have to cross them, or `all`.
    window: of the volume, outside of which nothing is looked for.

  Raises:
    InputError, DamagedFileError: the masks cannot be read.
  """
  with naming(scan):
    lungs, wanted = (
      scan.volumes[name][window].read().result(TIMEOUT_S) > 0
      for name in ('lungs', target)
    )
  counted = lungs if region == 'lungs' else np.ones_like(lungs)
  found = {}
  for view, axis in views.NORMAL_AXIS.items():
    others = tuple(a for a in range(3) if a != axis)
    target_in, region_in = wanted.any(axis=others), counted.any(axis=others)
    found[view] = Candidates(
      window[axis].start + np.flatnonzero(target_in),
      window[axis].start + np.flatnonzero(region_in & ~target_in),
    )
  return found


class Slices:
  """The slices of a view in some scans.

  Attributes:
    scans: of which they are.
    candidates: per scan, which slices to draw from.
  """

  def __init__(
    self,
    scans: Sequence[StoredScan],
    candidates: Sequence[Candidates],
    *,
    view: str,
    target: str,
    region: str,
    offsets: Sequence[int],
    window: tuple[slice, slice, slice],
    spacing_mm: tuple[float, float, float],
  ):
    self.scans, self.candidates = scans, candidates
    self._offsets, self._window = offsets, window
    self._target, self._region = target, region
    self._axis = views.NORMAL_AXIS[view]
    pixel_mm = [mm for a, mm in enumerate(spacing_mm) if a != self._axis]
    self._pixel_mm = np.array(pixel_mm, np.float32)

  def all(self) -> np.ndarray:
    """(n, 2) scan and slice numbers of all candidates, foreground first."""
    pairs = [
      (number, index)
      for kind in ('foreground', 'background')
      for number, each in enumerate(self.candidates)
      for index in getattr(each, kind)
    ]
    return np.array(pairs, int).reshape(-1, 2)

  def read(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Reads slice stacks and what belongs to their central slices.

    Args:
      chosen: (b, 2) scan and slice numbers.

    Returns:
      `stacks` (b, h, w, d) float16, window units; `labels` (b, h, w) bool, the target;
      `weights` (b, h, w) bool, where the loss is counted; `pixels_mm` (b, 2) float32,
      size of a pixel along h and w.

    Raises:
      DamagedFileError: a scan cannot be read; it is named.
    """
    # All reads are in flight before the first is waited for.
    requests = [self._request(number, index) for number, index in chosen]
    stacks, labels, weights = [], [], []
    for (number, _), (signal, target, lungs) in zip(chosen, requests, strict=True):
      with naming(self.scans[number]):
        stacks.append(np.moveaxis(signal.result(TIMEOUT_S), self._axis, -1))
        labels.append(target.result(TIMEOUT_S) > 0)
        inside = lungs.result(TIMEOUT_S) > 0
      weights.append(inside if self._region == 'lungs' else np.ones_like(inside))
    return {
      'stacks': np.stack(stacks),
      'labels': np.stack(labels),
      'weights': np.stack(weights),
      'pixels_mm': np.tile(self._pixel_mm, (len(chosen), 1)),
    }

  def _request(self, number: int, index: int):
    volumes = self.scans[number].volumes
    n = volumes['signal'].shape[self._axis]
    indices = views.stack_indices([index], self._offsets, n)[0]
    with naming(self.scans[number]):
      return (
        self._part(volumes['signal'], indices).read(),
        self._part(volumes[self._target], int(index)).read(),
        self._part(volumes['lungs'], int(index)).read(),
      )

  def _part(self, volume, index):
    where = list(self._window)
    where[self._axis] = index
    return volume[tuple(where)]


@contextlib.contextmanager
def naming(scan: StoredScan) -> Iterator[None]:
  """Says which scan it was that could not be read.

  Raises:
    InputError: the storage does not answer.
    DamagedFileError: it does, with something else.
  """
  try:
    yield
  except (OSError, TimeoutError) as error:
    raise InputError(
      scan.scan_id,
      f'its storage does not answer ({type(error).__name__}: {error})',
      'run the same command again',
    ) from error
  except Exception as error:
    raise DamagedFileError(
      scan.scan_id,
      f'cannot be read from the store ({type(error).__name__})',
      'remove its group and preprocess again',
    ) from error
