"""The tubes of one chest: trachea, great vessels, and the trees within the lungs."""

import dataclasses

import numpy as np

from covid3way.phantom import thorax, trees

CARINA = (1.0, 17.0, 38.0)
# Where airway, artery and vein enter each lung; side -1 is the patient's right.
_HILUM = {-1: (-33.0, 15.0, 8.0), 1: (41.0, 20.0, 10.0)}
_VEIN_ROOT = {-1: (-30.0, 8.0, -16.0), 1: (34.0, 12.0, -12.0)}


@dataclasses.dataclass(frozen=True, eq=False)
class Tubes:
  """Trees in world mm.

  Attributes:
    airways: trachea (generation 0), main bronchi (1) and what they divide into.
    arteries, veins: within and at the root of the lungs.
  """

  airways: trees.Tree
  arteries: trees.Tree
  veins: trees.Tree


def make_tubes(
  rng: np.random.Generator,
  lung_points: dict[int, np.ndarray],
  to_world,
  *,
  artery_radius_mm: float = 7.0,
  vein_radius_mm: float = 6.5,
  airway_end_mm: float = 1.5,
) -> Tubes:
  """Grows airways, arteries and veins.

  Args:
    rng: its own stream.
    lung_points: side (-1 right, 1 left) -> (n, 3) points of that lung, world mm.
    to_world: model coordinates, mm -> world, mm.
    artery_radius_mm: at the root of each lung.
    vein_radius_mm: at the root of each lung.
    airway_end_mm: thinner airways are not told apart from parenchyma by CT.
  """
  airways, arteries, veins = [], [], []
  for side, points in lung_points.items():
    hilum = to_world(_HILUM[side])
    whole = trees.grow(rng, points, hilum, radius_mm=5.4, generation=2)
    aside = (0.75 * side, -0.25, 0.6)
    ratio = artery_radius_mm / 5.4
    arteries.append(trees.bend(rng, trees.beside(whole, aside, ratio=ratio, gap=1.9)))
    veins.append(
      trees.bend(
        rng,
        trees.grow(
          rng,
          points,
          to_world(_VEIN_ROOT[side]),
          radius_mm=vein_radius_mm,
          generation=2,
        ),
      )
    )
    main = trees.chain([to_world(CARINA), hilum], [6.8 - 0.4 * side], generation=1)
    airways.append(_hang(main, whole.select(whole.radius_mm > airway_end_mm)))
  trachea = trees.chain(
    [to_world(p) for p in ((0, 4, 165), (0, 8, 110), CARINA)], [9, 8.8]
  )
  airways = _hang(trachea, trees.join(airways))
  return Tubes(airways, trees.join(arteries), trees.join(veins))


def _hang(trunk: trees.Tree, crown: trees.Tree) -> trees.Tree:
  """A crown whose roots become children of the trunk's last branch."""
  tree = trees.join([trunk, crown])
  n = len(trunk.parent)
  roots = (tree.parent < 0) & (np.arange(len(tree.parent)) >= n)
  return dataclasses.replace(tree, parent=np.where(roots, n - 1, tree.parent))


def make_great(to_world) -> trees.Tree:
  """Aorta, venae cavae, pulmonary trunk, arteries of the arch; it turns to the left."""
  back = {z: float(thorax.spine_y(z)) for z in (40, 0, -80, -160)}
  paths = [
    # ascending aorta, arch, descending aorta
    ([(2, -18, -25), (-11, -28, 5), (-11, -26, 32), (-4, -16, 54), (9, 0, 63),
      (20, 18, 60), (25, back[40] - 20, 42), (25, back[0] - 14, 0),
      (18, back[-80] - 20, -80), (9, back[-160] - 26, -165)],
     [15, 15, 15, 14, 13.5, 13, 12.5, 12, 11.5]),
    # pulmonary trunk and its two arteries
    ([(18, -42, -22), (21, -32, 8), (24, -12, 20), (45, 12, 16)], [14, 13.5, 10]),
    ([(22, -22, 14), (2, -6, 14), (-38, 8, 8)], [11, 9.5]),
    # superior vena cava with the left brachiocephalic vein, inferior vena cava
    ([(-24, -14, -12), (-24, -16, 62), (-22, -18, 88), (-30, -14, 150)], [9, 9, 7]),
    ([(-22, -22, 72), (18, -24, 88), (34, -14, 150)], [6.5, 6.5]),
    ([(-20, 4, -45), (-20, 14, -165)], [12]),
    # arteries of the arch
    ([(-6, -14, 62), (-13, -8, 95), (-26, 0, 160)], [6.5, 5.5]),
    ([(7, -4, 66), (12, 0, 105), (18, 4, 160)], [4.5, 4.5]),
    ([(15, 10, 66), (20, 14, 100), (42, 10, 128)], [5, 5]),
  ]  # fmt: skip
  return trees.join(
    [trees.chain([to_world(p) for p in points], radii) for points, radii in paths]
  )
