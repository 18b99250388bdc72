"""Probability maps of networks that see sub-volumes: overlapping, blended smoothly."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from covid3way import progress

Slices = tuple[slice, ...]


def sub_volume_map(
  predict: Callable[[np.ndarray], np.ndarray],
  signal: np.ndarray,
  region: np.ndarray,
  *,
  patch: Sequence[int],
  overlap: float = 0.5,
  batch_size: int,
) -> np.ndarray:
  """Probability of every voxel of a region, predicted by overlapping sub-volumes.

  Sub-volumes lie evenly, the first and the last flush with the borders. Those that do
  not touch the region are not computed. Where several overlap each counts by its Hann
  window, which falls towards its sides. A volume that is smaller than a sub-volume is
  filled up with the values of its far sides.

  Args:
    predict: (b, *patch) float32 signal -> (b, *patch) probabilities.
    signal: (x, y, z), window units.
    region: (x, y, z), non-zero where a probability is wanted.
    patch: sides of a sub-volume, voxels.
    overlap: least share of a side that neighbours have in common, from 0 to below 1.
    batch_size: sub-volumes computed at once.

  Returns:
    (x, y, z) float32, 0 outside the region.

  Raises:
    ValueError: signal and region, or the sides of the patch, do not fit each other, or
      the overlap is not in [0, 1).
  """
  if signal.shape != region.shape or len(patch) != signal.ndim:
    raise ValueError(f'signal {signal.shape}, region {region.shape}, patch {patch}')
  if not 0 <= overlap < 1:
    raise ValueError(f'an overlap of {overlap}; it must be at least 0 and less than 1')
  short = [(0, max(p - n, 0)) for p, n in zip(patch, signal.shape, strict=True)]
  signal = np.pad(np.asarray(signal), short, mode='edge')
  inside = np.pad(np.asarray(region) != 0, short)
  result = np.zeros(signal.shape, np.float32)
  wanted = [
    (place, weights)
    for place, weights in _places(signal.shape, patch, overlap)
    if inside[place].any()
  ]
  for start in progress.track(range(0, len(wanted), batch_size), what='sub-volumes'):
    batch = wanted[start : start + batch_size]
    # The last batch is filled up with its last one: one shape, one compilation.
    full = batch + batch[-1:] * (batch_size - len(batch))
    seen = np.stack([signal[place] for place, _ in full]).astype(np.float32)
    found = np.asarray(predict(seen), np.float32)
    for (place, weights), each in zip(batch, found, strict=False):
      result[place] += each * functools.reduce(np.multiply.outer, weights)
  result *= inside
  return result[tuple(slice(n) for n in region.shape)]


def _places(
  shape: Sequence[int], patch: Sequence[int], overlap: float
) -> Iterable[tuple[Slices, tuple[np.ndarray, ...]]]:
  """All sub-volumes, and their weights along each axis; they sum to 1 everywhere."""
  axes = [_axis(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
  for each in itertools.product(*axes):
    yield tuple(zip(*each, strict=True))


def _axis(n: int, patch: int, overlap: float) -> list[tuple[slice, np.ndarray]]:
  """Where sub-volumes lie along an axis of n >= patch voxels, and their weights."""
  step = max(math.floor(patch * (1 - overlap)), 1)
  starts = np.linspace(0, n - patch, math.ceil((n - patch) / step) + 1).round()
  places = [slice(int(start), int(start) + patch) for start in starts]
  window = np.sin(np.pi * (np.arange(patch) + 0.5) / patch) ** 2  # Above 0 everywhere.
  total = np.zeros(n)
  for place in places:
    total[place] += window
  return [(place, (window / total[place]).astype(np.float32)) for place in places]
