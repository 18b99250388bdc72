"""Branching trees: airways, arteries beside them, veins between them.

A tree grows into a cloud of points that stands for the tissue it serves (Tawhai et
al., J Appl Physiol 2004): a branch runs part of the way to the centre of its points,
then the points are split and each half is served by one child. Radii follow Murray's
law with the number of points as the flow, so a child is always thinner.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
  """Straight branches; a child starts where its parent ends.

  Attributes:
    start, end: (n, 3) mm.
    radius_mm: (n,).
    generation: (n,) int; 0 is the trunk.
    parent: (n,) int, -1 for a trunk.
  """

  start: np.ndarray
  end: np.ndarray
  radius_mm: np.ndarray
  generation: np.ndarray
  parent: np.ndarray

  def select(self, keep: np.ndarray) -> 'Tree':
    """The branches where `keep` is true; a parent that was dropped becomes -1."""
    index = np.where(keep, np.cumsum(keep) - 1, -1)
    parent = np.where(self.parent < 0, -1, index[self.parent])
    fields = (self.start, self.end, self.radius_mm, self.generation, parent)
    return Tree(*(f[keep] for f in fields))


def join(trees: list[Tree]) -> Tree:
  """Several trees as one array of branches."""
  offsets = np.cumsum([0] + [len(t.parent) for t in trees[:-1]])
  parents = [
    np.where(t.parent < 0, -1, t.parent + o)
    for t, o in zip(trees, offsets, strict=True)
  ]
  stack = lambda name: np.concatenate([getattr(t, name) for t in trees])  # noqa: E731
  names = ('start', 'end', 'radius_mm', 'generation')
  return Tree(*map(stack, names), np.concatenate(parents))


def chain(points, radii, *, generation: int = 0) -> Tree:
  """A tube along a polyline: (n + 1, 3) points and n radii, mm; one generation."""
  points, n = np.asarray(points, float), len(radii)
  return Tree(
    points[:-1], points[1:], np.asarray(radii, float),
    np.full(n, generation), np.arange(n) - 1,
  )  # fmt: skip


def grow(
  rng: np.random.Generator,
  points: np.ndarray,
  root: np.ndarray,
  *,
  radius_mm: float,
  generation: int = 0,
  reach: float = 0.42,
  murray: float = 3.3,
  leaf_points: int = 5,
) -> Tree:
  """Grows a tree from `root` into a cloud of points.

  Args:
    rng: its own stream.
    points: (n, 3) mm, the tissue to serve.
    root: (3,) mm.
    radius_mm: radius of the first branch.
    generation: generation of the first branch.
    reach: share of the way to the centre of its points that a branch runs.
    murray: exponent m of Murray's law, sum of r**m conserved at a fork.
    leaf_points: a branch that serves no more points than this ends in their centre.
  """
  branches = []
  waiting = [(points, np.asarray(root, float), generation, -1)]
  while waiting:
    cloud, start, depth, parent = waiting.pop()
    step = cloud.mean(axis=0) - start
    leaf = len(cloud) <= leaf_points
    end = start + step * (1.0 if leaf else reach * rng.uniform(0.8, 1.2))
    radius = radius_mm * (len(cloud) / len(points)) ** (1 / murray)
    branches.append((start, end, radius, depth, parent))
    if leaf:
      continue
    for half in _split(rng, cloud, step):
      waiting.append((half, end, depth + 1, len(branches) - 1))
  start, end, radius, depth, parent = zip(*branches, strict=True)
  return Tree(*map(np.array, (start, end, radius, depth, parent)))


def _split(rng, cloud: np.ndarray, direction: np.ndarray) -> list[np.ndarray]:
  """Two parts of a cloud, cut along the branch where the cloud is widest across it."""
  centred = cloud - cloud.mean(axis=0)
  unit = direction / max(np.linalg.norm(direction), 1e-9)
  # Only half of the extent along the branch counts: forks open sideways.
  across = centred - 0.5 * np.einsum('ni,i->n', centred, unit)[:, None] * unit
  axis = np.linalg.eigh(np.einsum('ni,nj->ij', across, across))[1][:, -1]
  axis = axis * (1.0 if axis[np.argmax(np.abs(axis))] > 0 else -1.0)
  order = np.argsort(np.einsum('ni,i->n', centred, axis), kind='stable')
  cut = int(np.clip(round(len(cloud) * rng.uniform(0.32, 0.68)), 1, len(cloud) - 1))
  return [cloud[order[:cut]], cloud[order[cut:]]]


def beside(tree: Tree, direction, *, ratio: float, gap: float) -> Tree:
  """The artery that runs with an airway: moved aside, radius times `ratio`.

  `gap` is the distance of the two axes in units of the airway's radius.
  """
  aside = np.asarray(direction, float) / np.linalg.norm(direction)
  moved = tree.radius_mm[:, None] * gap * aside
  at_start = np.where(tree.parent[:, None] < 0, moved, moved[tree.parent])
  return Tree(
    tree.start + at_start, tree.end + moved, tree.radius_mm * ratio,
    tree.generation, tree.parent,
  )  # fmt: skip


def bend(rng: np.random.Generator, tree: Tree, *, amount: float = 0.06) -> Tree:
  """Every branch in two pieces with the joint moved aside: nothing grows straight."""
  length = np.linalg.norm(tree.end - tree.start, axis=1, keepdims=True)
  joint = (tree.start + tree.end) / 2
  joint = joint + amount * length * rng.standard_normal(joint.shape)
  n = len(tree.parent)
  parent = np.where(tree.parent < 0, -1, tree.parent + n)
  halves = [(tree.start, joint, parent), (joint, tree.end, np.arange(n))]
  start, end, parents = (np.concatenate(part) for part in zip(*halves, strict=True))
  twice = (np.tile(f, 2) for f in (tree.radius_mm, tree.generation))
  return Tree(start, end, *twice, parents)


def stamp(
  tree: Tree,
  shape: tuple[int, int, int],
  origin_mm: np.ndarray,
  spacing_mm: float,
  *,
  wall_mm: float = 0.0,
  wall_ratio: float = 0.0,
) -> np.ndarray:
  """Share of each voxel inside the tree, [0, 1], (x, y, z) float32.

  Each branch is a capsule drawn in its own bounding box. A branch thinner than a
  voxel keeps its cross-section: it is drawn one voxel wide and fainter.
  """
  field = np.zeros(shape, np.float32)
  radii = tree.radius_mm * (1 + wall_ratio) + wall_mm
  drawn = np.maximum(radii, spacing_mm / 2) / spacing_mm
  # 3 r^2 / h^2: the cross-section of the capsule over that of a tent one voxel high.
  faint = np.minimum(1.0, 3 * (radii / spacing_mm) ** 2)
  start, end = ((p - origin_mm) / spacing_mm for p in (tree.start, tree.end))
  low = np.floor(np.minimum(start, end) - drawn[:, None] - 0.5).astype(int)
  high = np.ceil(np.maximum(start, end) + drawn[:, None] + 0.5).astype(int) + 1
  low, high = np.clip(low, 0, shape), np.clip(high, 0, shape)
  for i in np.flatnonzero((high > low).all(axis=1)):
    box = tuple(slice(a, b) for a, b in zip(low[i], high[i], strict=True))
    distance = _to_segment(low[i], high[i], start[i], end[i] - start[i])
    share = faint[i] * np.clip(drawn[i] - distance + 0.5, 0, 1)
    np.maximum(field[box], share, out=field[box])
  return field


def _to_segment(low, high, start, step) -> np.ndarray:
  """Distance of every voxel of a box to a segment, in voxels, float32."""
  x, y, z = (
    np.arange(a, b, dtype=np.float32).reshape(s) - np.float32(c)
    for a, b, c, s in zip(
      low, high, start, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True
    )
  )
  dx, dy, dz = step.astype(np.float32)
  length2 = max(dx * dx + dy * dy + dz * dz, np.float32(1e-12))
  along = np.clip((x * dx + y * dy + z * dz) / length2, 0, 1)
  return np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2 + (z - along * dz) ** 2)
