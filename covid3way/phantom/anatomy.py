"""A healthy chest, voxel by voxel: tissues painted over one another by partial volume.

All randomness comes from the generator that is passed in; nothing touches the disk.
"""

import dataclasses

import numpy as np

from covid3way.phantom import fields, organs, thorax, trees, vessels
from covid3way.phantom.protocols import Protocol

LEFT, RIGHT = 1, 2
WALL_HU, AIR_HU = 20.0, -1000.0
# A voxel with less lung tissue than this belongs to the vessel or airway in it.
LEAST_SHARE = 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
  """A chest without lesions on an isotropic grid.

  Attributes:
    hu: (x, y, z) float32, no noise.
    lungs: (x, y, z) uint8, 1 left, 2 right, with the vessels in them and without
      trachea and main bronchi.
    parenchyma: (x, y, z) float32, share of the voxel that is lung tissue proper.
    parenchyma_hu: (x, y, z) float32, what `hu` would be if all of it were.
    spacing_mm: edge of a voxel.
    origin_mm: (3,) world position (LPS) of the centre of voxel (0, 0, 0).
    tubes: the trees that were drawn.
  """

  hu: np.ndarray
  lungs: np.ndarray
  parenchyma: np.ndarray
  parenchyma_hu: np.ndarray
  spacing_mm: float
  origin_mm: np.ndarray
  tubes: vessels.Tubes

  def susceptible(self, share: float = LEAST_SHARE) -> np.ndarray:
    """Where lesions may be, (x, y, z) bool: lung, neither airway nor vessel."""
    return (self.lungs > 0) & (self.parenchyma >= share)


@dataclasses.dataclass(frozen=True)
class Build:
  """What differs between patients apart from noise; drawn by `draw_build`.

  Attributes:
    scale: (x, y, z) size relative to the model.
    shift_mm: (x, y, z) off-centre position on the couch.
    turn_deg: rotation about the long axis.
    domes_mm: heights of the right and the left diaphragm, model mm.
    fat_mm: thickness of the fat under the skin.
    lung_signal: mean of the parenchyma, window units.
    gravity_hu: how much denser the back of the lung is than the front.
    rib_skew_mm: where the ribs start.
  """

  scale: tuple[float, float, float]
  shift_mm: tuple[float, float, float]
  turn_deg: float
  domes_mm: tuple[float, float]
  fat_mm: float
  lung_signal: float
  gravity_hu: float
  rib_skew_mm: float

  def to_world(self, point) -> np.ndarray:
    """Model -> world, mm, (3,)."""
    c, s = np.cos(np.radians(self.turn_deg)), np.sin(np.radians(self.turn_deg))
    x, y, z = np.asarray(point, float) * self.scale
    return np.array([c * x - s * y, s * x + c * y, z]) + self.shift_mm


def draw_build(rng: np.random.Generator, *, lung_signal: float = -0.2) -> Build:
  """A patient: sizes within about 8 %, position within a centimetre."""
  size = rng.uniform(0.91, 1.03)
  right = rng.uniform(-74, -50)
  return Build(
    scale=tuple(size * rng.uniform(0.96, 1.03, 3)),
    shift_mm=tuple(rng.uniform((-8, -6, 0), (8, 6, 0))),
    turn_deg=rng.uniform(-4, 4),
    domes_mm=(right, right - rng.uniform(4, 12)),
    fat_mm=rng.uniform(4, 11),
    lung_signal=lung_signal + rng.uniform(-0.012, 0.012),
    gravity_hu=rng.uniform(45, 75),
    rib_skew_mm=rng.uniform(0, thorax.RIB_PITCH_MM),
  )


def make_anatomy(
  rng: np.random.Generator,
  protocol: Protocol,
  *,
  spacing_mm: float,
  lung_signal: float = -0.2,
  lung_points: int = 3500,
  warp_mm: float = 3.0,
  grain_hu: float = 14.0,
  lobules_hu: float = 11.0,
) -> Anatomy:
  """A chest whose parenchyma lies near `lung_signal` in the scanner's window units.

  Args:
    rng: its own stream.
    protocol: only its lung window is used.
    spacing_mm: edge of a voxel; 2 is enough for a quickstart.
    lung_signal: level of the parenchyma, window units.
    lung_points: density of the vessels: points that each lung's trees must reach.
    warp_mm: standard deviation of the smooth deformation of all organs but tubes.
    grain_hu: standard deviation of the finest structure of the parenchyma.
    lobules_hu: the same for its structure of a centimetre.
  """
  build = draw_build(rng, lung_signal=lung_signal)
  frame, origin = _make_frame(rng, build, spacing_mm, warp_mm)
  shape = frame.x.shape
  lung = organs.lung_surface(frame, build.domes_mm)
  great = vessels.make_great(build.to_world)
  lung = np.minimum(lung, organs.clearance(great, shape, origin, spacing_mm))
  share = fields.coverage(lung, spacing_mm)
  lungs = np.where(share > 0.5, np.where(frame.x > 0, LEFT, RIGHT), 0).astype(np.uint8)
  points = {
    side: _draw_points(rng, lungs == label, lung_points) * spacing_mm + origin
    for side, label in ((-1, RIGHT), (1, LEFT))
  }
  tubes = vessels.make_tubes(rng, points, build.to_world)

  hu = organs.paint_body(rng, frame, build, spacing_mm)
  draw = lambda tree, **wall: trees.stamp(tree, shape, origin, spacing_mm, **wall)  # noqa: E731
  fields.paint(hu, draw(great), organs.BLOOD_HU)
  healthy = grain_hu * fields.smooth_noise(rng, shape, 3.5 / spacing_mm)
  healthy += lobules_hu * fields.smooth_noise(rng, shape, 12 / spacing_mm)
  healthy += 160 * organs.fissures(frame, spacing_mm)
  healthy += build.gravity_hu * frame.y / 170
  # Centred before the floor, so that the mean is the one asked for.
  healthy += protocol.to_hu(build.lung_signal) - healthy[lungs > 0].mean()
  np.maximum(healthy, np.float32(-985), out=healthy)
  fields.paint(hu, share, healthy)
  blood = np.maximum(draw(tubes.arteries), draw(tubes.veins))
  # Bronchi leave the wall between the lungs within generation 2; a deeper branch
  # that strays out of the lung would be air in soft tissue.
  central = tubes.airways.generation <= 2
  outer, lumen = (
    np.maximum(draw(tubes.airways.select(central), **wall),
               (share > 0) * draw(tubes.airways.select(~central), **wall))
    for wall in ({'wall_mm': 0.4, 'wall_ratio': 0.1}, {})
  )  # fmt: skip
  fields.paint(hu, blood, organs.BLOOD_HU)
  fields.paint(hu, outer, WALL_HU)
  fields.paint(hu, lumen, AIR_HU)
  parenchyma = share * (1 - blood) * (1 - outer)
  trunks = draw(tubes.airways.select(tubes.airways.generation <= 1), wall_mm=1.0)
  lungs[trunks > 0.5] = 0
  return Anatomy(hu, lungs, parenchyma, healthy, spacing_mm, origin, tubes)


def _make_frame(rng, build: Build, spacing_mm: float, warp_mm: float):
  """Model coordinates of every voxel, and the world position of the first."""
  low, high = np.array(thorax.EXTENT_MM).T
  low, high = low * [1, 1, build.scale[2]], high * [1, 1, build.scale[2]]
  shape = tuple(np.round((high - low) / spacing_mm).astype(int) + 1)
  x, y, z = (
    (a + spacing_mm * np.arange(n) - s).astype(np.float32).reshape(order)
    for a, n, s, order in zip(
      low, shape, build.shift_mm, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True
    )
  )
  c, s = np.cos(np.radians(build.turn_deg)), np.sin(np.radians(build.turn_deg))
  warp = [
    np.float32(warp_mm) * fields.smooth_noise(rng, shape, 80 / spacing_mm) for _ in 'xy'
  ]
  return thorax.Frame(
    (np.float32(c) * x + np.float32(s) * y) / np.float32(build.scale[0]) + warp[0],
    (np.float32(c) * y - np.float32(s) * x) / np.float32(build.scale[1]) + warp[1],
    z / np.float32(build.scale[2]),
  ), low


def _draw_points(rng, mask: np.ndarray, count: int) -> np.ndarray:
  """(count, 3) positions in voxels, uniform in a mask."""
  chosen = rng.choice(np.flatnonzero(mask), count)
  return np.stack(np.unravel_index(chosen, mask.shape), axis=1) + rng.uniform(
    -0.5, 0.5, (count, 3)
  )
