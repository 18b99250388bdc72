"""Batches of slice stacks of one view, drawn from stored scans."""

from collections.abc import Sequence

import numpy as np

from covid3way.scans.store import StoredScan
from covid3way.training import views


class Slices:
  """The slices of a view in some scans: which are worth drawing, and how to read them.

  Attributes:
    foreground: (n, 2) scan and slice numbers that hold target voxels.
    background: (n, 2) the other slices that cross the lungs.
  """

  def __init__(
    self,
    scans: Sequence[StoredScan],
    *,
    view: str,
    target: str,
    region: str,
    offsets: Sequence[int],
    window: tuple[slice, slice, slice],
  ):
    self._scans, self._offsets, self._window = scans, offsets, window
    self._target, self._region = target, region
    self._view, self._axis = view, views.NORMAL_AXIS[view]
    others = tuple(a for a in range(3) if a != self._axis)
    foreground, background = [], []
    for number, scan in enumerate(scans):
      lungs, wanted = (
        (scan.volumes[name][window].read().result() > 0).any(axis=others)
        for name in ('lungs', target)
      )
      first = window[self._axis].start
      foreground += [(number, first + i) for i in np.flatnonzero(wanted)]
      background += [(number, first + i) for i in np.flatnonzero(lungs & ~wanted)]
    self.foreground = np.array(foreground).reshape(-1, 2)
    self.background = np.array(background).reshape(-1, 2)

  def read(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """(b, 2) scan and slice numbers -> `stacks`, `labels` and `weights`.

    See `batch_at` for their shapes.
    """
    wanted = [self._request(number, index) for number, index in chosen]
    # All reads are in flight before the first is waited for.
    stacks = [np.stack([f.result() for f in stack], axis=-1) for stack, _, _ in wanted]
    labels = [label.result() > 0 for _, label, _ in wanted]
    if self._region == 'all':
      weights = np.ones_like(labels)
    else:
      weights = [lungs.result() > 0 for _, _, lungs in wanted]
    return {
      'stacks': np.stack(stacks).astype(np.float32),
      'labels': np.stack(labels).astype(np.int32),
      'weights': np.stack(weights),
    }

  def _request(self, number: int, index: int):
    volumes = self._scans[number].volumes
    n = volumes['signal'].shape[self._axis]
    indices = views.stack_indices([index], self._offsets, n)[0]
    return (
      [self._plane(volumes['signal'], i).read() for i in indices],
      self._plane(volumes[self._target], index).read(),
      self._plane(volumes['lungs'], index).read(),
    )

  def _plane(self, volume, index: int):
    where = list(self._window)
    where[self._axis] = int(index)
    return volume[tuple(where)]


def batch_at(
  number: int,
  slices: Slices,
  *,
  batch_size: int,
  foreground_share: float,
  seed: int,
) -> dict[str, np.ndarray]:
  """A training batch by its number; slices flipped at random.

  It depends on number and seed alone, so whoever knows how many batches a training has
  seen can go on with the next.

  Args:
    number: of the batch.
    slices: to draw from, with replacement.
    batch_size: slice stacks per batch, b.
    foreground_share: expected share of stacks whose central slice holds target.
    seed: of the draws.

  Returns:
    `stacks` (b, h, w, d) float32, window units, `labels` (b, h, w) int32 and `weights`
    (b, h, w) bool, where the loss is counted.
  """
  rng = np.random.default_rng((seed, number))
  wanted = rng.random(batch_size) < foreground_share
  chosen = [_draw(slices, foreground, rng) for foreground in wanted]
  return _flip(slices.read(np.array(chosen)), rng)


def _draw(slices: Slices, foreground: bool, rng: np.random.Generator) -> np.ndarray:
  """A scan, all equally likely, then one of its slices of the wanted kind.

  Drawn among all slices, the few severe scans would leave the early ones unseen.
  """
  kinds = (slices.foreground, slices.background)
  candidates = next(k for k in (kinds if foreground else kinds[::-1]) if len(k))
  scan = rng.choice(np.unique(candidates[:, 0]))
  return rng.choice(candidates[candidates[:, 0] == scan])


def _flip(
  batch: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Flips each stack, with its label, along either side and through its depth.

  The offsets are symmetric, so a stack read backwards is a mirrored patient.
  """
  for i in range(len(batch['labels'])):
    h, w, d = (int(step) for step in rng.choice([-1, 1], 3))
    batch['stacks'][i] = batch['stacks'][i, ::h, ::w, ::d]
    for name in ('labels', 'weights'):
      batch[name][i] = batch[name][i, ::h, ::w]
  return batch
