"""The standard embedding space and its inverse (paper, Section III-B.1 and Fig. 2)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from covid3way.base import AIR_HU, LEFT, RIGHT, Window
from covid3way.standard import resample

EXTENT_MM = (334.0, 334.0, 512.0)

Region = resample.Region
WHOLE: Region = (slice(None),) * 3


@dataclasses.dataclass(frozen=True)
class StandardSpace:
  """334 x 334 x 512 mm in `shape` voxels; the paper's own is 512 x 512 x 512."""

  shape: tuple[int, int, int] = (512, 512, 512)

  @property
  def spacing_mm(self) -> tuple[float, float, float]:
    """Distance of neighbouring voxel centres along x, y, z."""
    return tuple(e / n for e, n in zip(EXTENT_MM, self.shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where a scan lies in a standard space: all that the way there and back needs.

  Attributes:
    space: the standard space.
    own_shape: voxels of the scan's own grid, `[x, y, z]`.
    own_spacing_mm: its spacing.
    centre_voxel: own-grid coordinates of the middle of the standard space.
  """

  space: StandardSpace
  own_shape: tuple[int, int, int]
  own_spacing_mm: tuple[float, float, float]
  centre_voxel: tuple[float, float, float]

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Placement':
    """The inverse of `dataclasses.asdict`, through JSON."""
    rest = ('own_shape', 'own_spacing_mm', 'centre_voxel')
    space = StandardSpace(tuple(values['space']['shape']))
    return cls(space, *(tuple(values[name]) for name in rest))

  def to_own(self, axis: int, standard_voxel: np.ndarray) -> np.ndarray:
    """Standard-space coordinates along an axis -> own-grid coordinates, in voxels."""
    scale = self.space.spacing_mm[axis] / self.own_spacing_mm[axis]
    middle = (self.space.shape[axis] - 1) / 2
    return self.centre_voxel[axis] + scale * (standard_voxel - middle)

  def to_standard(self, axis: int, own_voxel: np.ndarray) -> np.ndarray:
    """Own-grid coordinates along an axis -> standard-space coordinates, in voxels."""
    scale = self.own_spacing_mm[axis] / self.space.spacing_mm[axis]
    middle = (self.space.shape[axis] - 1) / 2
    return middle + scale * (own_voxel - self.centre_voxel[axis])


def place(
  own_shape: tuple[int, int, int],
  own_spacing_mm: tuple[float, float, float],
  space: StandardSpace,
  lungs: np.ndarray | None = None,
) -> Placement:
  """Centres the standard space on the lungs' bounding box, else on the scan.

  Args:
    own_shape: voxels of the scan's own grid, `[x, y, z]`.
    own_spacing_mm: its spacing.
    space: the standard space.
    lungs: (x, y, z) lung mask on the own grid, if one was found.
  """
  centre = tuple((n - 1) / 2 for n in own_shape)
  if lungs is not None and lungs.any():
    centre = tuple(float(b.mean()) for b in _bounds(lungs))
  return Placement(space, tuple(own_shape), tuple(own_spacing_mm), centre)


def _bounds(mask: np.ndarray) -> list[np.ndarray]:
  """First and last index of a mask along each axis."""
  others = [tuple(a for a in range(3) if a != axis) for axis in range(3)]
  return [np.flatnonzero(mask.any(axis=o))[[0, -1]] for o in others]


def outside_ml(mask: np.ndarray, placement: Placement) -> float:
  """Volume of an own-grid mask that the standard space does not hold, ml."""
  inside = mask
  for axis in range(3):
    voxel = placement.to_standard(axis, np.arange(mask.shape[axis]))
    keep = (voxel >= -0.5) & (voxel <= placement.space.shape[axis] - 0.5)
    inside = np.compress(keep, inside, axis=axis)
  lost = np.count_nonzero(mask) - np.count_nonzero(inside)
  return float(lost * np.prod(placement.own_spacing_mm) / 1000)


def _weights(kernel, placement: Placement, *, inverse: bool) -> resample.Weights:
  weights = []
  for axis in range(3):
    own, standard = placement.own_shape[axis], placement.space.shape[axis]
    scale = placement.space.spacing_mm[axis] / placement.own_spacing_mm[axis]
    n_in, n_out = (standard, own) if inverse else (own, standard)
    locate = placement.to_standard if inverse else placement.to_own
    weights.append(
      resample.axis_weights(
        kernel,
        n_in,
        n_out,
        scale=1 / scale if inverse else scale,
        first=float(locate(axis, 0)),
      )
    )
  return tuple(weights)


def normalise(hu, window: Window):
  """Eq. (1): (HU - level) / width; linear, not clipped."""
  return (hu - window.level_hu) / window.width_hu


def cast_signal(hu: np.ndarray, placement: Placement, window: Window) -> jax.Array:
  """Own grid, HU -> standard space, window units. Lanczos; air outside the scan.

  Args:
    hu: (x, y, z) on the own grid.
    placement: of that grid.
    window: lung window of Eq. (1).

  Returns:
    (x', y', z') float32 of the standard space's shape.
  """
  air = np.float32(normalise(AIR_HU, window))
  signal = _empty_for_jax(placement.space.shape)

  def write(planes: slice, weights: resample.Weights) -> None:
    region, above_air = resample.apply(hu, weights, outside=AIR_HU)
    above_air /= np.float32(window.width_hu)
    signal[planes] = air
    signal[planes][region] += above_air

  resample.in_slabs(write, _weights(resample.lanczos, placement, inverse=False))
  return jax.device_put(signal)  # Which takes it over; `jnp.asarray` copies.


def _empty_for_jax(shape: Sequence[int]) -> np.ndarray:
  """Float32 to be filled; JAX copies what does not lie at a multiple of 64 bytes."""
  count = int(np.prod(shape))
  memory = np.empty(count + 16, np.float32)
  first = -memory.ctypes.data % 64 // 4
  return memory[first : first + count].reshape(shape)


def cast_mask(mask: np.ndarray, placement: Placement) -> np.ndarray:
  """Own-grid mask -> standard space: linear interpolation, cut at one half.

  Returns:
    (x', y', z') bool.
  """
  return _cut(mask, _weights(resample.triangle, placement, inverse=False))


def cast_sides(lungs: np.ndarray, placement: Placement) -> np.ndarray:
  """Own-grid lungs (1 left, 2 right) -> standard space, with no seam where they touch.

  Returns:
    (x', y', z') uint8 with the same labels.
  """
  lung = lungs > 0
  excess = (lungs == LEFT) - (lungs == RIGHT).astype(np.int8)
  sides = np.zeros(placement.space.shape, np.uint8)

  def write(planes: slice, weights: resample.Weights) -> None:
    region, share = resample.apply(lung, weights)
    _, left = resample.apply(excess, weights)  # Zero where `lung` is: the same region.
    side = np.where(left > 0, np.uint8(LEFT), np.uint8(RIGHT))
    np.multiply(side, share > 0.5, out=sides[planes][region])

  resample.in_slabs(write, _weights(resample.triangle, placement, inverse=False))
  return sides


def return_volume(
  volume: np.ndarray, placement: Placement, region: Region = WHOLE
) -> np.ndarray:
  """Standard space -> own grid by linear interpolation, zero outside the space.

  Args:
    volume: (x', y', z') of the standard space's shape.
    placement: of the own grid.
    region: of the own grid, which alone is computed.

  Returns:
    (x, y, z) float32 on the own grid, within the range of `volume` and zero.
  """
  volume, whole = np.asarray(volume), _weights_back(placement, region)
  result = np.zeros([len(w) for w in whole], np.float32)

  def write(planes: slice, weights: resample.Weights) -> None:
    part, values = resample.apply(volume, weights)
    result[planes][part] = values

  resample.in_slabs(write, whole)
  return result


def return_mask(
  mask: np.ndarray, placement: Placement, region: Region = WHOLE
) -> np.ndarray:
  """Standard-space mask -> own grid; binary, because it is cut at one half.

  Returns:
    (x, y, z) bool on the own grid, or on its region.
  """
  return _cut(np.asarray(mask), _weights_back(placement, region))


def _cut(mask: np.ndarray, whole: resample.Weights) -> np.ndarray:
  """A mask resampled and cut at one half."""
  result = np.zeros([len(w) for w in whole], bool)

  def write(planes: slice, weights: resample.Weights) -> None:
    region, share = resample.apply(mask, weights)
    np.greater(share, 0.5, out=result[planes][region])

  resample.in_slabs(write, whole)
  return result


def _weights_back(placement: Placement, region: Region) -> resample.Weights:
  weights = _weights(resample.triangle, placement, inverse=True)
  return tuple(w[part] for w, part in zip(weights, region, strict=True))
