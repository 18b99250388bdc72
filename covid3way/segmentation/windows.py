"""Which part of a slice a network looks at: the lungs, in windows of few sizes.

Every size is compiled once, so all scans, views and slices share these few.
"""

from collections.abc import Iterator

import numpy as np

from covid3way.networks.inference import Boxes, boxes, margin_pixels

# Sides in eighths of the slice's. Chosen one after the other, each as the one that
# saves most on four real scans; ten of them cost 8 % more than a size for every slice.
_EIGHTHS = (
  (8, 8),
  (7, 4),
  (4, 4),
  (8, 5),
  (7, 3),
  (4, 2),
  (5, 5),
  (6, 4),
  (2, 1),
  (5, 3),
)


def sizes(sides: tuple[int, int], stride: int) -> tuple[tuple[int, int], ...]:
  """Sizes of windows, the one that is computed fastest first.

  Args:
    sides: of the slices, pixels; multiples of `stride`.
    stride: of the network.
  """
  found = {
    tuple(
      -(-n * part // (8 * stride)) * stride for n, part in zip(sides, of, strict=True)
    )
    for of in _EIGHTHS
  }
  return tuple(sorted(found, key=lambda size: _cost(size, sides, stride)))


def _cost(size: tuple[int, int], sides: tuple[int, int], stride: int) -> float:
  """Of a window, relative to others: the way down costs half as much as the way up."""
  seen = np.minimum(np.add(size, 2 * margin_pixels(stride)), sides)
  return float(np.prod(seen) + 2 * np.prod(size))


def over(
  lungs: np.ndarray, axis: int, stride: int, batch_size: int
) -> Iterator[tuple[np.ndarray, Boxes]]:
  """Windows that hold all of the lungs.

  Args:
    lungs: (x, y, z), non-zero in the lungs.
    axis: that the slices are normal to.
    stride: of the network.
    batch_size: slices that share a window.

  Yields:
    Indices of slices that cross the lungs, at most `batch_size` neighbours, and their
    window.
  """
  slices = np.moveaxis(lungs > 0, axis, 0)
  sides = slices.shape[1:]
  occupied = slices.any(axis=2), slices.any(axis=1)
  known, wanted = sizes(sides, stride), np.flatnonzero(occupied[0].any(axis=1))
  for begin in range(0, len(wanted), batch_size):
    indices = wanted[begin : begin + batch_size]
    ends = [np.flatnonzero(each[indices].any(axis=0))[[0, -1]] for each in occupied]
    first = np.array([low // stride * stride for low, _ in ends])
    needed = np.array([high + 1 for _, high in ends]) - first
    size = next(size for size in known if (needed <= size).all())
    start = np.minimum(first, np.subtract(sides, size))
    yield indices, boxes(tuple(start), size, sides, stride)
