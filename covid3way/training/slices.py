"""The slices of one view in stored scans: which there are, and how to read them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from covid3way.base import Covid3wayError, DamagedFileError, InputError
from covid3way.scans.store import StoredScan
from covid3way.training import views

TIMEOUT_S = 600.0  # A disk that has not answered by then will not.


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
  """Slices, or other samples, of one scan that are worth drawing.

  Attributes:
    foreground: (f,) numbers of those that hold target voxels.
    background: (g,) the others that cross the region where the loss is counted.
  """

  foreground: np.ndarray
  background: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
  """What of a scan's masks is looked at.

  Attributes:
    target: name of the mask that is learned.
    region: `lungs`, where the loss is counted, or `all`.
    window: of the volume, outside of which nothing is looked for.
  """

  target: str
  region: str
  window: tuple[slice, slice, slice]

  def read(self, scan: StoredScan) -> tuple[np.ndarray, np.ndarray]:
    """(x, y, z) bool within the window: the target, and where the loss is counted.

    Raises:
      InputError, DamagedFileError: the masks cannot be read.
    """
    with naming(scan):
      lungs, wanted = (
        scan.volumes[name][self.window].read().result(TIMEOUT_S) > 0
        for name in ('lungs', self.target)
      )
    return wanted, lungs if self.region == 'lungs' else np.ones_like(lungs)


def find_candidates(scan: StoredScan, masks: Masks) -> dict[str, Candidates]:
  """The candidates of each view; reads the scan's masks once for all of them.

  Raises:
    InputError, DamagedFileError: the masks cannot be read.
  """
  wanted, counted = masks.read(scan)
  found = {}
  for view, axis in views.NORMAL_AXIS.items():
    others = tuple(a for a in range(3) if a != axis)
    target_in, region_in = wanted.any(axis=others), counted.any(axis=others)
    start = masks.window[axis].start
    found[view] = told_apart(target_in, region_in, start)
  return found


def told_apart(target_in: np.ndarray, region_in: np.ndarray, start: int) -> Candidates:
  """Candidates of (n,) bool: which samples, from number `start` on, hold what."""
  return Candidates(
    start + np.flatnonzero(target_in), start + np.flatnonzero(region_in & ~target_in)
  )


class Samples(Protocol):
  """What a network is shown of some scans: slices, sub-volumes or oblique planes.

  Attributes:
    scans: of which they are.
    candidates: per scan, which samples to draw from.
  """

  scans: Sequence[StoredScan]
  candidates: Sequence[Candidates]

  def read(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """(b, 2) scan and sample numbers -> a batch; see `Slices.read`."""


def every(samples: Samples) -> np.ndarray:
  """(n, 2) scan and sample numbers of all candidates, foreground first."""
  pairs = [
    (number, index)
    for kind in ('foreground', 'background')
    for number, each in enumerate(samples.candidates)
    for index in getattr(each, kind)
  ]
  return np.array(pairs, int).reshape(-1, 2)


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
    masks: Masks,
    offsets: Sequence[int],
    spacing_mm: tuple[float, float, float],
  ):
    self.scans, self.candidates = scans, candidates
    self._offsets, self._masks = offsets, masks
    self._axis = views.NORMAL_AXIS[view]
    pixel_mm = [mm for a, mm in enumerate(spacing_mm) if a != self._axis]
    self._pixel_mm = np.array(pixel_mm, np.float32)

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
    parts = [self._parts(int(number), int(index)) for number, index in chosen]
    as_stack = functools.partial(np.moveaxis, source=self._axis, destination=-1)
    return read_parts(self.scans, chosen[:, 0], parts, self._masks, as_stack) | {
      'pixels_mm': np.tile(self._pixel_mm, (len(chosen), 1))
    }

  def _parts(self, number: int, index: int):
    """Where a stack and its central slice lie in a scan."""
    n = self.scans[number].shape[self._axis]
    where, centre = list(self._masks.window), list(self._masks.window)
    where[self._axis] = views.stack_indices([index], self._offsets, n)[0]
    centre[self._axis] = index
    return tuple(where), tuple(centre)


def read_parts(
  scans: Sequence[StoredScan],
  numbers: Sequence[int],
  parts: Sequence[tuple[Any, Any]],
  masks: Masks,
  as_stack: Callable[[np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
  """Reads parts of scans, all at once.

  Args:
    scans: of which they are.
    numbers: (b,) of the scans.
    parts: per sample, where its signal lies, and where its masks do.
    masks: which are read.
    as_stack: signal as read -> channels last.

  Returns:
    `stacks`, `labels` and `weights`; see `Slices.read`.

  Raises:
    DamagedFileError: a scan cannot be read; it is named.
  """
  requests, stacks, labels, weights = [], [], [], []
  # All reads are in flight before the first is waited for.
  for number, (where, centre) in zip(numbers, parts, strict=True):
    volumes = scans[number].volumes
    with naming(scans[number]):
      kept = (volumes[masks.target][centre], volumes['lungs'][centre])
      each = (volumes['signal'][where], *kept)
      requests.append([volume.read() for volume in each])
  for number, request in zip(numbers, requests, strict=True):
    with naming(scans[number]):
      signal, target, lungs = (read.result(TIMEOUT_S) for read in request)
    stacks.append(as_stack(signal))
    labels.append(target > 0)
    weights.append(lungs > 0 if masks.region == 'lungs' else np.ones(lungs.shape, bool))
  return {
    'stacks': np.stack(stacks),
    'labels': np.stack(labels),
    'weights': np.stack(weights),
  }


@contextlib.contextmanager
def naming(scan: StoredScan) -> Iterator[None]:
  """Says which scan it was that could not be read.

  Raises:
    InputError: the storage does not answer.
    DamagedFileError: it does, with something else.
  """
  try:
    yield
  except Covid3wayError:  # It says so itself.
    raise
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
