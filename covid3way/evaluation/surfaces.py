"""Distances between the surfaces of two masks, and their summaries, in mm.

Surface elements lie between voxels: one for each 2 x 2 x 2 neighbourhood that is
partly infected, placed in its middle, as large as the piece of the iso-surface inside
(marching cubes, Lorensen and Cline, SIGGRAPH 1987). Definitions are those of the
package surface-distance (Nikolov et al., J Med Internet Res 2021), so figures are
comparable with publications that used it. What empty masks give is in `metrics`.
"""

import dataclasses
import functools
import itertools

import numpy as np
from scipy import ndimage, spatial

from covid3way.base import MaskGridError

Spacing = tuple[float, float, float]

# What the iso-surface is around infected corners joined by edges of a unit cube: plane
# polygons through the middles of the edges that lead out, as vectors normal to them,
# as long as their areas; in eighths, sign left out. All else is one of these turned or
# mirrored, several of them side by side, or the same with in and out swapped.
_PIECES = (
  ('000', [(1, 1, 1)]),
  ('000 001', [(4, 4, 0)]),
  ('000 001 010', [(4, 0, 0), (3, 3, 3)]),
  ('000 001 010 011', [(8, 0, 0)]),
  ('000 001 010 100', [(6, 6, 6)]),
  ('010 000 001 101', [(0, 2, 2), (2, 0, 2), (4, 4, 4)]),
)


def crop(
  reference: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[slice, ...]]:
  """Both masks as bool, cut to the box around them, and that box.

  Raises:
    MaskGridError: they are not on one grid.
  """
  if reference.shape != predicted.shape:
    found = f'{predicted.shape} voxels where the reference has {reference.shape}'
    raise MaskGridError('predicted mask', found, 'compare masks on one grid')
  either = np.logical_or(reference, predicted)
  (box,) = ndimage.find_objects(either.view(np.uint8), max_label=1)
  box = box or (slice(0, 0),) * either.ndim
  return reference[box].astype(bool), predicted[box].astype(bool), box


@dataclasses.dataclass(frozen=True, eq=False)
class Surfaces:
  """How far each element of one surface is from the other; reference's first.

  Attributes:
    distances_mm: (e,) each, sorted; infinite where the other mask is empty.
    areas_mm2: (e,) each, of the same elements.
  """

  distances_mm: tuple[np.ndarray, np.ndarray]
  areas_mm2: tuple[np.ndarray, np.ndarray]

  def dice(self, tolerance_mm: float) -> float:
    """Share of both surfaces' area that is within the tolerance of the other."""
    total = sum(area.sum() for area in self.areas_mm2)
    near = sum(
      area[distance <= tolerance_mm].sum()
      for distance, area in zip(self.distances_mm, self.areas_mm2, strict=True)
    )
    return float(near / total) if total else 1.0

  def hausdorff_95(self) -> float:
    """The greater of both 95th percentiles of the distance, by area, mm."""
    if not all(area.size for area in self.areas_mm2):
      return float('nan')
    worst = []
    for distance, area in zip(self.distances_mm, self.areas_mm2, strict=True):
      share = np.cumsum(area) / area.sum()
      # The sum of shares may end just below 1, never below 0.95.
      worst.append(distance[np.searchsorted(share, 0.95)])
    return float(max(worst))


def between(
  reference: np.ndarray, predicted: np.ndarray, spacing_mm: Spacing
) -> Surfaces:
  """Measures the surfaces of two masks (x, y, z) against each other."""
  area_of_code = element_areas(tuple(spacing_mm))
  codes = [neighbourhoods(mask) for mask in crop(reference, predicted)[:2]]
  borders = [(code > 0) & (code < 255) for code in codes]
  distances_mm, areas_mm2 = [], []
  for own, other, code in zip(borders, borders[::-1], codes, strict=True):
    distance, area = _distances(own, other, spacing_mm), area_of_code[code[own]]
    order = np.lexsort((area, distance))
    distances_mm.append(distance[order])
    areas_mm2.append(area[order])
  return Surfaces(tuple(distances_mm), tuple(areas_mm2))


def surface_dice(
  reference: np.ndarray,
  predicted: np.ndarray,
  spacing_mm: Spacing,
  tolerance_mm: float,
) -> float:
  """Normalised surface Dice of two masks (x, y, z), in [0, 1].

  Usual tolerances are 3 mm for lesions and 1 mm for lungs.
  """
  return between(reference, predicted, spacing_mm).dice(tolerance_mm)


def hausdorff_95(
  reference: np.ndarray, predicted: np.ndarray, spacing_mm: Spacing
) -> float:
  """95th percentile of the Hausdorff distance of two masks (x, y, z), mm."""
  return between(reference, predicted, spacing_mm).hausdorff_95()


def neighbourhoods(mask: np.ndarray) -> np.ndarray:
  """(x, y, z) bool -> (x + 1, y + 1, z + 1) uint8: the eight voxels around each corner.

  The voxel before the corner along all axes is the highest bit, the one after it
  along z the next; beyond the border there is nothing.
  """
  padded = np.pad(mask, 1).view(np.uint8)
  codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
  for number, corner in enumerate(itertools.product((0, 1), repeat=3)):
    view = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
    codes |= padded[view] << (7 - number)
  return codes


@functools.lru_cache(maxsize=16)
def element_areas(spacing_mm: Spacing) -> np.ndarray:
  """(256,): area of the surface element of each neighbourhood, mm^2."""
  face_mm2 = np.prod(spacing_mm) / np.array(spacing_mm)
  area_of_piece = {}
  for corners, normals in _PIECES:
    corners = np.array([[int(c) for c in corner] for corner in corners.split()])
    for turn in itertools.permutations(range(3)):
      area = np.linalg.norm(np.array(normals)[:, turn] / 8 * face_mm2, axis=1).sum()
      for flip in itertools.product((0, 1), repeat=3):
        area_of_piece[_key(corners[:, turn] ^ flip)] = area
  areas = np.zeros(256)
  for code in range(256):
    inside = np.unpackbits(np.uint8(code)).reshape(2, 2, 2)
    # Whatever is rarer, in or out, is cut off; of two halves either.
    rarer = inside if inside.sum() <= 4 else 1 - inside
    labels, n = ndimage.label(rarer)
    areas[code] = sum(
      area_of_piece[_key(np.argwhere(labels == label))] for label in range(1, n + 1)
    )
  return areas


def _key(corners: np.ndarray) -> frozenset[tuple[int, ...]]:
  return frozenset(map(tuple, corners.tolist()))


def _distances(own: np.ndarray, other: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
  """From each element of one border to the nearest of the other, mm.

  A tree, not a distance transform: surfaces are few among the voxels of their box, and
  elements that both have need no search.
  """
  distances = np.where(other[own], 0.0, np.inf)
  apart = own & ~other
  if apart.any() and other.any():
    points, targets = np.argwhere(apart), np.argwhere(other)
    tree = spatial.KDTree(targets * spacing_mm, balanced_tree=False)
    _, nearest = tree.query(points * spacing_mm)
    # Anew from whole voxels: multiples of the spacing are exact to the last digit, and
    # may be just the tolerance.
    steps = (points - targets[nearest]) * spacing_mm
    distances[~other[own]] = np.sqrt(np.sum(steps**2, axis=1))
  return distances
