"""Isotropic planes along any direction, as MPUnet looks at a volume (Perslev 2019)."""

import dataclasses
import functools
import math

import numpy as np

SIDE_MM = 384.0  # Of the cube that the planes fill; the lungs lie in its middle.
_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class PlaneGrid:
  """Planes normal to some unit vectors, a pixel apart, around a volume's middle.

  Attributes:
    shape: voxels of the volume.
    spacing_mm: of its voxels.
    views: unit vectors, V.
    stride: the planes' sides are multiples of it.
  """

  shape: tuple[int, int, int]
  spacing_mm: tuple[float, float, float]
  views: int
  stride: int

  @property
  def pixel_mm(self) -> float:
    """Side of a pixel, and distance of planes: the volume's coarsest spacing."""
    return max(self.spacing_mm)

  @property
  def side(self) -> int:
    """Pixels along a plane's sides, and planes per view."""
    # Rounded, as 512 / 192 mm must divide 384 mm whatever binary fractions make of it.
    strides = math.ceil(round(SIDE_MM / (self.pixel_mm * self.stride), 6))
    return strides * self.stride

  @functools.cached_property
  def frames(self) -> np.ndarray:
    """(v, 3, 3) rows: two directions in the plane, and its normal."""
    return np.stack([_frame(normal) for normal in unit_vectors(self.views)])

  def voxels(self, view: int, planes: np.ndarray) -> np.ndarray:
    """Where planes lie in the volume.

    Args:
      view: of V.
      planes: (n,) numbers along its normal, 0 to side - 1.

    Returns:
      (3, side, side, n) float32 voxel coordinates.
    """
    line = (np.arange(self.side) - (self.side - 1) / 2) * self.pixel_mm
    steps = np.stack(np.meshgrid(line, line, line[planes], indexing='ij'))
    points_mm = np.tensordot(self.frames[view].T, steps, axes=1)
    scale, middle = self._scale_and_middle()
    return (points_mm * scale + middle).astype(np.float32)

  def heights(self, voxels: np.ndarray) -> np.ndarray:
    """(3, n) voxel coordinates -> (v, n): along each view's normal, in planes."""
    scale, middle = self._scale_and_middle()
    points_mm = (voxels - middle[:, 0, 0, 0, None]) / scale[:, 0, 0, 0, None]
    return self.frames[:, 2] @ points_mm / self.pixel_mm + (self.side - 1) / 2

  def pixels(self, view: int, voxels: np.ndarray) -> np.ndarray:
    """The inverse: (3, n) voxel coordinates -> (3, n) along rows, columns, planes."""
    scale, middle = self._scale_and_middle()
    points_mm = (voxels - middle[:, 0, 0, 0, None]) / scale[:, 0, 0, 0, None]
    return self.frames[view] @ points_mm / self.pixel_mm + (self.side - 1) / 2

  def _scale_and_middle(self) -> tuple[np.ndarray, np.ndarray]:
    scale = 1 / np.array(self.spacing_mm)
    middle = (np.array(self.shape) - 1) / 2
    return scale[:, None, None, None], middle[:, None, None, None]


@functools.lru_cache(maxsize=8)
def unit_vectors(n: int) -> np.ndarray:
  """(n, 3) random directions: of many draws the one whose closest two are farthest.

  The same n gives the same vectors: a model need not keep them.
  """
  draws = np.random.default_rng(0).normal(size=(_DRAWS, n, 3))
  draws /= np.linalg.norm(draws, axis=-1, keepdims=True)
  cosines = np.abs(draws @ draws.swapaxes(1, 2)) - np.eye(n)
  return draws[cosines.max(axis=(1, 2)).argmin()]


def _frame(normal: np.ndarray) -> np.ndarray:
  """A right-handed frame whose third row is the normal."""
  least = np.eye(3)[np.abs(normal).argmin()]
  first = np.cross(normal, least)
  first /= np.linalg.norm(first)
  return np.stack([first, np.cross(normal, first), normal])
