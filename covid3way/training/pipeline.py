"""Batches of slice stacks: drawn by number, read ahead of the training (grain).

A batch depends on its number and the seed alone: the number of the step that a training
has reached is all the state its input has.

A cube of the store holds 64 slices of each view, and decoding it costs far more than
copying one out of it. So a batch is drawn from a few open slabs (a layer of cubes of
one scan): each lane of the batch stays for `stacks_per_slab` stacks on one slab before
it goes to the next, drawn anew among all scans. Lanes change at different times, and
belong to one host each: no cube is decoded twice as long as the open slabs fit into the
store's cache. Over many batches every slice is as likely as if it were drawn alone.
"""

import dataclasses
import functools
from collections.abc import Iterator

import grain
import numpy as np

from covid3way.base import InputError
from covid3way.scans.store import CHUNK_VOXELS
from covid3way.training.slices import Candidates, Samples


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How batches are drawn.

  Attributes:
    batch_size: slice stacks per batch, on all hosts together, b.
    foreground_share: expected share of a scan's stacks with target in the centre.
    simulated_ratio: expected simulated stacks per real one, where there are any.
    open_slabs: slabs drawn from at a time; divides `batch_size`.
    stacks_per_slab: drawn from a slab before the next is opened.
    seed: of all draws.
  """

  batch_size: int
  foreground_share: float
  simulated_ratio: float
  open_slabs: int
  stacks_per_slab: int
  seed: int

  @property
  def batches_per_slab(self) -> int:
    """How many batches a slab stays open."""
    return max(1, self.stacks_per_slab * self.open_slabs // self.batch_size)


class Sampler:
  """Draws slices of given scans.

  Raises:
    InputError: there are none to draw.
  """

  def __init__(self, samples: Samples, sampling: Sampling):
    self._samples, self._sampling = samples, sampling
    self._slabs = [
      _slabs(each, sampling.foreground_share) for each in samples.candidates
    ]
    kinds = [[], []]
    for number, scan in enumerate(samples.scans):
      if self._slabs[number]:
        kinds['simulated' in scan.attributes].append(number)
    self._real, self._simulated = kinds
    if not (self._real or self._simulated):
      raise InputError('store', 'no slice crosses a lung', 'check the lung masks')
    self._visit = functools.lru_cache(maxsize=4096)(self._draw_slab)

  def draw(self, number: int, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a batch.

    Args:
      number: of the batch.
      rows: of it, which is what one host needs.

    Returns:
      (r, 2) scan and slice numbers, and (r,) uint32 seeds of what else is random.
    """
    how, chosen, seeds = self._sampling, [], []
    for row in rows:
      lane = row * how.open_slabs // how.batch_size
      stagger = lane * how.batches_per_slab // how.open_slabs
      scan, slab = self._visit(lane, (number + stagger) // how.batches_per_slab)
      rng = np.random.default_rng((how.seed, 1, number, row))
      indices, chances = self._slabs[scan][slab]
      chosen.append((scan, rng.choice(indices, p=chances / chances.sum())))
      seeds.append(rng.integers(2**32, dtype=np.uint32))
    return np.array(chosen), np.array(seeds)

  def _draw_slab(self, lane: int, visit: int) -> tuple[int, int]:
    """A scan, all of its kind equally likely, and one of its slabs.

    Drawn among all slices, the few severe scans would leave the early ones unseen.
    """
    rng = np.random.default_rng((self._sampling.seed, 0, lane, visit))
    ratio = self._sampling.simulated_ratio
    simulated = rng.random() < ratio / (1 + ratio)
    first, other = self._real, self._simulated
    scan = int(rng.choice((other or first) if simulated else (first or other)))
    slabs = self._slabs[scan]
    chances = [chances.sum() for _, chances in slabs.values()]
    return scan, int(rng.choice(list(slabs), p=np.array(chances) / sum(chances)))

  def batch(self, number: int, rows: range) -> dict[str, np.ndarray]:
    """Those rows of a batch, read: see `Slices.read`; and their `seeds` (r,) uint32."""
    chosen, seeds = self.draw(number, rows)
    return self._samples.read(chosen) | {'seeds': seeds}


def _slabs(
  candidates: Candidates, foreground_share: float
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """Slab number -> its slices and how likely each is to be drawn."""
  kinds = [(candidates.foreground, foreground_share)]
  kinds += [(candidates.background, 1 - foreground_share)]
  present = [(indices, share) for indices, share in kinds if len(indices)]
  if sum(share for _, share in present) == 0:  # Nothing of the only wanted kind.
    present = [(indices, 1.0) for indices, _ in present]
  indices = np.concatenate([i for i, _ in present] or [np.empty(0, int)])
  chances = np.concatenate([np.full(len(i), s / len(i)) for i, s in present] or [[]])
  slabs = indices // CHUNK_VOXELS
  return {
    int(slab): (indices[slabs == slab], chances[slabs == slab])
    for slab in np.unique(slabs[chances > 0])
  }


def read_ahead(
  sampler: Sampler, numbers: range, rows: range, *, threads: int, batches: int
) -> Iterator[dict[str, np.ndarray]]:
  """The given batches in order, read by threads while others are trained on.

  Args:
    sampler: of the batches.
    numbers: of the batches, consecutive.
    rows: of each, which is what this host needs.
    threads: that read.
    batches: that are read ahead at most.

  Raises:
    DamagedFileError: a scan cannot be read; it is named.
  """
  dataset = grain.MapDataset.range(numbers.start, numbers.stop)
  dataset = dataset.map(functools.partial(sampler.batch, rows=rows))
  return iter(
    dataset.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=batches)
    )
  )
