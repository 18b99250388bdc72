"""Lungs and infection in three dimensions, drawn by numpy alone.

Masks are smoothed, turned towards the viewer, and followed along parallel rays to where
they reach a level; there they are shaded by their gradient. Lungs are glass: the
flatter a ray meets their wall, the more of it is seen.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from scipy import ndimage, sparse

LUNG_COLOUR = '#c3d3e2'
_FINER = 2  # Rays per pixel and direction.
_VOXEL_MM = 2.0  # Of the turned fields along the rays, and at least of the masks.
_LIGHT = np.array([-0.45, -0.75, 0.5]) / np.linalg.norm([-0.45, -0.75, 0.5])
# A lesion of one voxel must stay visible: its smoothed peak is above this level.
_LESION_SMOOTHING, _LESION_LEVEL = 0.6, 0.18
_LUNG_SMOOTHING, _LUNG_LEVEL = 1.2, 0.5
_WALL_ALPHA = 0.13, 0.60  # Of a wall met at a right angle, and added to it when grazed.


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
  """What is drawn opaque: an (x, y, z) mask and its colour."""

  mask: np.ndarray
  colour: str


def render(
  lungs: np.ndarray,
  surfaces: Sequence[Surface],
  spacing_mm: tuple[float, float, float],
  *,
  azimuth_degrees: float = 25.0,
  pixel_mm: float = 1.0,
  background: str = 'black',
) -> np.ndarray:
  """The lungs as glass and what lies in them, seen from the front.

  Args:
    lungs: (x, y, z) mask, not empty.
    surfaces: on its grid; where two meet, the nearer one is seen.
    spacing_mm: of the grid.
    azimuth_degrees: by which the viewer walks to the patient's right, so that 90 looks
      at the right side.
    pixel_mm: of the picture.
    background: colour.

  Returns:
    (h, w, 3) in [0, 1]; the patient's right is on the left, the head is up.
  """
  box = ndimage.find_objects((np.asarray(lungs) > 0).astype(np.int8))[0]
  step = [max(1, round(_VOXEL_MM / s)) for s in spacing_mm]
  spacing = np.multiply(spacing_mm, step)
  pixel_mm = pixel_mm / _FINER
  turn = _Turn(azimuth_degrees, pixel_mm, spacing)
  lung = _coarse(np.asarray(lungs)[box] > 0, step)
  field = turn(ndimage.gaussian_filter(lung, _LUNG_SMOOTHING))
  picture = np.broadcast_to(to_rgb(background), (*_across(field), 3)).copy()
  glass = np.array(to_rgb(LUNG_COLOUR))
  _add_wall(picture, field[:, ::-1], glass, mirrored=True, pixel_mm=pixel_mm)
  nearest = np.full(_across(field), np.inf)
  for surface in surfaces:
    part = _coarse(np.asarray(surface.mask)[box] > 0, step)
    if part.any():
      own = turn(ndimage.gaussian_filter(part, _LESION_SMOOTHING))
      _add_surface(picture, nearest, own, np.array(to_rgb(surface.colour)), pixel_mm)
  _add_wall(picture, field, glass, mirrored=False, pixel_mm=pixel_mm)
  w, h = (n // _FINER for n in picture.shape[:2])
  rays = picture[: w * _FINER, : h * _FINER].reshape(w, _FINER, h, _FINER, 3)
  return np.clip(rays.mean(axis=(1, 3)).transpose(1, 0, 2)[::-1], 0, 1)


def _across(field: np.ndarray) -> tuple[int, int]:
  """Width and height of the picture of a turned (x, depth, z) field."""
  return field.shape[0], field.shape[2]


def _coarse(mask: np.ndarray, step: Sequence[int]) -> np.ndarray:
  """float32 mask of the blocks with anything in them, with a margin around."""
  padded = np.pad(mask, [(0, -n % s) for n, s in zip(mask.shape, step, strict=True)])
  blocks = [
    part for n, s in zip(padded.shape, step, strict=True) for part in (n // s, s)
  ]
  return np.pad(padded.reshape(blocks).any(axis=(1, 3, 5)), 4).astype(np.float32)


class _Turn:
  """(x, y, z) fields -> (across, depth, up), depth away from the viewer.

  It turns about z, so that a plane of weights serves all slices.
  """

  def __init__(self, azimuth_degrees: float, pixel_mm: float, spacing_mm: np.ndarray):
    angle = np.deg2rad(azimuth_degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    # Columns: where across and depth point in the patient.
    self._axes = np.array([[cosine, sine], [-sine, cosine]])
    self._out_mm = np.array([pixel_mm, _VOXEL_MM])
    self._spacing = spacing_mm

  def __call__(self, field: np.ndarray) -> np.ndarray:
    x, y, z = field.shape
    size_mm = np.array([x, y]) * self._spacing[:2]
    across, depth = np.ceil(np.abs(self._axes.T) @ size_mm / self._out_mm).astype(int)
    middle = np.array([(across - 1) / 2, (depth - 1) / 2])
    steps = np.stack(np.mgrid[:across, :depth], axis=-1).reshape(-1, 2) - middle
    places = steps * self._out_mm @ self._axes.T / self._spacing[:2]
    plane = _weights(places + np.array([(x - 1) / 2, (y - 1) / 2]), (x, y))
    turned = (plane @ field.reshape(x * y, z)).reshape(across, depth, z)
    heights = np.arange(0, z - 1, self._out_mm[0] / self._spacing[2])
    below = heights.astype(int)
    share = (heights - below).astype(np.float32)
    return turned[..., below] * (1 - share) + turned[..., below + 1] * share


def _weights(places: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
  """Linear interpolation at (n, 2) places of a plane, 0 beyond: (n, x * y)."""
  corner = np.floor(places).astype(int)
  share = places - corner
  rows, columns, values = [], [], []
  for sides in itertools.product((0, 1), repeat=2):
    index = corner + sides
    inside = np.all((index >= 0) & (index < shape), axis=1)
    weight = np.prod(np.where(sides, share, 1 - share), axis=1)
    rows.append(np.flatnonzero(inside))
    columns.append(np.ravel_multi_index(tuple(index[inside].T), shape))
    values.append(weight[inside].astype(np.float32))
  row, column, value = map(np.concatenate, (rows, columns, values))
  size = len(places), shape[0] * shape[1]
  return sparse.csr_array((value, (row, column)), shape=size)


def _hit(field: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Where rays along axis 1 first reach a level: x and z indices, and depth."""
  reached = field >= level
  x, z = np.nonzero(reached.any(axis=1))
  after = reached.argmax(axis=1)[x, z]
  before = np.maximum(after - 1, 0)
  low, high = field[x, before, z], field[x, after, z]
  share = np.where(high > low, (level - low) / np.maximum(high - low, 1e-6), 0.0)
  return x, z, before + np.clip(share, 0, 1)


def _normals(
  field: np.ndarray, x: np.ndarray, z: np.ndarray, depth: np.ndarray, pixel_mm: float
) -> np.ndarray:
  """(n, 3) unit vectors out of the surface, along across, depth and up."""
  where = np.stack([x, depth, z]).astype(float)
  slopes = []
  for axis, mm in enumerate((pixel_mm, _VOXEL_MM, pixel_mm)):
    reach = np.zeros((3, 1))
    reach[axis] = 1.5 * _VOXEL_MM / mm
    ends = [
      ndimage.map_coordinates(field, where + sign * reach, order=1) for sign in (1, -1)
    ]
    slopes.append(ends[1] - ends[0])
  normal = np.stack(slopes, axis=-1)
  return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)


def _add_surface(
  picture: np.ndarray,
  nearest: np.ndarray,
  field: np.ndarray,
  colour: np.ndarray,
  pixel_mm: float,
) -> None:
  """Draws an opaque surface where nothing nearer is, and notes its depth."""
  x, z, depth = _hit(field, _LESION_LEVEL)
  nearer = depth < nearest[x, z]
  x, z, depth = x[nearer], z[nearer], depth[nearer]
  normal = _normals(field, x, z, depth, pixel_mm)
  lit = np.maximum(normal @ _LIGHT, 0)
  half = _LIGHT + np.array([0, -1, 0])
  shine = np.maximum(normal @ (half / np.linalg.norm(half)), 0) ** 30
  shade = 0.38 + 0.72 * lit
  picture[x, z] = shade[:, None] * colour + 0.25 * shine[:, None]
  nearest[x, z] = depth


def _add_wall(
  picture: np.ndarray,
  field: np.ndarray,
  colour: np.ndarray,
  *,
  mirrored: bool,
  pixel_mm: float,
) -> None:
  """Lays the wall that rays meet first over the picture; mirrored: the far one."""
  x, z, depth = _hit(field, _LUNG_LEVEL)
  normal = _normals(field, x, z, depth, pixel_mm)
  grazed = (1 - np.abs(normal[:, 1])) ** 2
  if mirrored:
    normal = normal * (1, -1, 1)
  least, added = _WALL_ALPHA
  alpha = (least + added * grazed)[:, None]
  lit = 0.55 + 0.45 * np.maximum(normal @ _LIGHT, 0)
  picture[x, z] = (1 - alpha) * picture[x, z] + alpha * colour * lit[:, None]
