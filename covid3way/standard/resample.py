"""Separable resampling of volumes: banded weights per axis, applied as products.

Every output sample has the kernel's values at the few input samples around it. Outside
the input lies zero: the taps that fall there count in the normalisation, so a volume
given relative to air is, exactly, a volume padded with air without end. When the output
is coarser than the input the kernel widens by the ratio of the two spacings, so that
nothing aliases.

A block of neighbouring outputs needs a short run of inputs: as a small dense matrix it
is applied at the speed of a matrix product, with a fraction of the work of a whole
one. It is done on the host, where scans arrive and results leave.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

Region = tuple[slice, slice, slice]


def lanczos(t: np.ndarray) -> np.ndarray:
  """Lanczos kernel with a = 4, the order that medical resampling code uses.

  Paper, Section III-B.1 and its reference 27; Range about [-0.21, 1].
  """
  return np.where(np.abs(t) < 4, np.sinc(t) * np.sinc(t / 4), 0.0)


def triangle(t: np.ndarray) -> np.ndarray:
  """Linear interpolation; positive, so a mask's weights stay in [0, 1]."""
  return np.maximum(1 - np.abs(t), 0.0)


_HALF_WIDTH = {lanczos: 4, triangle: 1}
# The fastest of some that were tried, the second for all axes.
_SLAB_PLANES = 16  # Of x; with all that it is made of, a slab takes tens of MB.
_BLOCK = 32  # Outputs of a small matrix: more waste products, fewer waste calls.
_TURN = threading.Lock()
_THREADS = 8  # At most: more wait for memory, of which each takes that of a slab.


@dataclasses.dataclass(frozen=True, eq=False)
class Banded:
  """Weights of one axis.

  Attributes:
    n_in: samples of the input.
    first: (n_out,) input sample of each output's first tap, ascending; may lie outside.
    taps: (n_out, taps) float32; what lies outside the input is zero.
  """

  n_in: int
  first: np.ndarray
  taps: np.ndarray

  def __len__(self) -> int:
    """Samples of the output."""
    return len(self.first)

  def __getitem__(self, outputs: slice) -> 'Banded':
    """The weights of some outputs."""
    return Banded(self.n_in, self.first[outputs], self.taps[outputs])

  @property
  def needed(self) -> slice:
    """The run of inputs that count."""
    if not len(self):
      return slice(0, 0)
    run = self.first.min(), self.first.max() + self.taps.shape[1]
    return slice(*(int(end) for end in np.clip(run, 0, self.n_in)))

  def seeing(self, inputs: slice) -> slice:
    """The run of outputs that have a tap among some inputs."""
    ends = self.first + self.taps.shape[1]
    seen = np.flatnonzero((ends > inputs.start) & (self.first < inputs.stop))
    return slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 0)

  def of(self, inputs: slice) -> 'Banded':
    """The weights where all but some inputs are zero, which are left out."""
    count = inputs.stop - inputs.start
    return dataclasses.replace(self, n_in=count, first=self.first - inputs.start)

  def matrix(self) -> np.ndarray:
    """(n_out, n_in) float32, dense."""
    matrix = np.zeros((len(self), self.n_in), np.float32)
    at = self.first[:, None] + np.arange(self.taps.shape[1])
    row, tap = np.nonzero((at >= 0) & (at < self.n_in))
    matrix[row, at[row, tap]] = self.taps[row, tap]
    return matrix

  def blocks(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Some outputs, the inputs that they need, and (outputs, inputs) float32."""
    for start in range(0, len(self), _BLOCK):
      outputs = slice(start, min(start + _BLOCK, len(self)))
      part = self[outputs]
      yield outputs, part.needed, part.of(part.needed).matrix()


Weights = tuple[Banded, Banded, Banded]


def axis_weights(
  kernel: Callable[[np.ndarray], np.ndarray],
  n_in: int,
  n_out: int,
  *,
  scale: float,
  first: float,
) -> Banded:
  """Weights that take `n_in` samples of one axis to `n_out`.

  Args:
    kernel: `lanczos` or `triangle`.
    n_in: samples of the input.
    n_out: samples of the output.
    scale: output spacing / input spacing.
    first: where output sample 0 lies, in input voxels (0 is the first centre).

  Returns:
    The weights of an output sum to 1 wherever the kernel lies inside the input.
  """
  widen = max(scale, 1.0)
  reach = int(np.ceil(_HALF_WIDTH[kernel] * widen))
  position = first + scale * np.arange(n_out)
  nearest = np.floor(position).astype(int)
  taps = nearest[:, None] + np.arange(1 - reach, reach + 1)
  values = kernel((taps - position[:, None]) / widen)
  values /= values.sum(axis=1, keepdims=True)
  return Banded(n_in, taps[:, 0], values.astype(np.float32))


def apply(
  volume: np.ndarray, weights: Weights, *, outside: float = 0.0
) -> tuple[Region, np.ndarray]:
  """Resamples a volume.

  Args:
    volume: (x, y, z), numbers or bool.
    weights: of each axis.
    outside: what lies outside; results are relative to it.

  Returns:
    A region of the output, and its values, float32. Beyond it the result is exactly
    zero: only what has something other than `outside` nearby is computed.
  """
  needed = tuple(w.needed for w in weights)
  taken = np.asarray(volume[needed])
  box = _bounds(_differs(taken, outside))
  taken = taken[box].astype(np.float32)
  if outside:
    taken -= outside
  inputs = [
    slice(n.start + b.start, n.start + b.stop) for n, b in zip(needed, box, strict=True)
  ]
  there = tuple(w.seeing(i) for w, i in zip(weights, inputs, strict=True))
  along = [w[o].of(i) for w, o, i in zip(weights, there, inputs, strict=True)]
  # Axes that shrink come first: fewer products, smaller intermediates.
  for axis in sorted(range(3), key=lambda i: len(along[i]) / max(along[i].n_in, 1)):
    taken = _product(taken, along[axis], axis)
  return there, taken


def in_slabs(work: Callable[[slice, Weights], None], weights: Weights) -> None:
  """Does `work` for some planes of x of the output at a time, in several threads.

  Args:
    work: takes which planes, and the weights that `apply` needs for these alone.
    weights: of the whole output.
  """
  starts = range(0, len(weights[0]), _SLAB_PLANES)
  slabs = [slice(n, min(n + _SLAB_PLANES, len(weights[0]))) for n in starts]
  # In place of the threads of BLAS, which are slow at products as small as these and
  # wait for each other on a busy machine. The limit is the whole program's, so that
  # those who come at the same time take turns.
  with _TURN, threadpool_limits(1, 'blas') as limits:
    count = limits.get_original_num_threads()['blas'] or 1
    with ThreadPoolExecutor(min(count, _THREADS)) as threads:
      done = threads.map(lambda s: work(s, (weights[0][s], *weights[1:])), slabs)
      list(done)  # Raises here what was raised there.


def _product(volume: np.ndarray, weights: Banded, axis: int) -> np.ndarray:
  """Weights times a volume, along an axis."""
  x, y, z = (len(weights) if i == axis else n for i, n in enumerate(volume.shape))
  result = np.empty((x, y, z), np.float32)
  for there, here, matrix in weights.blocks():
    if axis == 0:
      flat, out = volume.reshape(len(volume), y * z), result.reshape(x, y * z)
      np.matmul(matrix, flat[here], out=out[there])
    elif axis == 1:
      np.matmul(matrix, volume[:, here], out=result[:, there])
    else:
      np.matmul(volume[:, :, here], matrix.T, out=result[:, :, there])
  return result


def _differs(volume: np.ndarray, outside: float) -> np.ndarray:
  """Where a volume differs from what lies outside."""
  if volume.dtype == np.float16 and not outside:
    return volume.view(np.uint16) != 0  # Half floats themselves compare slowly.
  return volume != outside


def _bounds(mask: np.ndarray) -> Region:
  """The box that holds all of a mask."""
  over_x = mask.any(axis=0)
  used = mask.any(axis=(1, 2)), over_x.any(axis=1), over_x.any(axis=0)
  found = [np.flatnonzero(u) for u in used]
  return tuple(slice(f[0], f[-1] + 1) if len(f) else slice(0, 0) for f in found)
