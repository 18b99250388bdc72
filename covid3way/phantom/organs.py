"""From shapes to tissues: the surface of the lungs, and the body around them."""

import numpy as np

from covid3way.phantom import fields, thorax, trees

FAT_HU, MUSCLE_HU, BLOOD_HU, LIVER_HU, GAS_HU = -100.0, 50.0, 42.0, 58.0, -980.0
CORTEX_HU, MARROW_HU, GRISTLE_HU = 620.0, 190.0, 110.0


def lung_surface(frame: thorax.Frame, domes_mm) -> np.ndarray:
  """Distance inside the lungs, mm: within ribs and domes, outside of all else."""
  lung = np.minimum(frame.cage[0] - 1, thorax.diaphragm(frame, *domes_mm) - 1)
  lung = np.minimum(lung, -thorax.mediastinum(frame))
  y = frame.y - thorax.spine_y(frame.z)
  # Beside the vertebrae the wall widens towards the back.
  behind = thorax.section(
    frame.x, y - 12, 17 + 24 * np.clip(y / 30, 0, 1) ** 2, np.float32(34)
  )
  lung = np.minimum(lung, -behind)
  return np.minimum(lung, -thorax.heart(frame) - 3)


def clearance(great: trees.Tree, shape, origin, spacing_mm) -> np.ndarray:
  """Minus infinity within 2.5 mm of the great vessels, else infinity."""
  near = trees.stamp(great, shape, origin, spacing_mm, wall_mm=2.5)
  return (np.float32(0.5) - near) * np.float32(spacing_mm) + np.where(
    near > 0, 0, np.inf
  ).astype(np.float32)


def fissures(frame: thorax.Frame, spacing_mm: float) -> np.ndarray:
  """Share of the voxel filled by the pleura between the lobes, [0, 1]."""
  oblique = (frame.z + 28 - np.float32(1.25) * frame.y) / np.float32(1.6)
  level = np.where((frame.x < 0) & (oblique > 0), frame.z - 6 - 0.1 * frame.y, 1e3)
  near = np.minimum(np.abs(oblique), np.abs(level))
  return np.float32(0.7 / max(spacing_mm, 0.7)) * np.clip(1 - near / spacing_mm, 0, 1)


def paint_body(rng, frame: thorax.Frame, build, spacing_mm: float) -> np.ndarray:
  """Everything but the lungs and the vessels, HU, (x, y, z) float32."""
  hu = np.full(frame.x.shape, np.float32(-1000))
  grain = fields.smooth_noise(rng, hu.shape, 9 / spacing_mm)

  def paint(distance, value, box=...):
    fields.paint(hu[box], fields.coverage(distance, spacing_mm), np.float32(value))

  paint(frame.skin, MUSCLE_HU - 20)
  paint(frame.skin - 2, FAT_HU)
  inside, _ = frame.cage
  # Planes of fat between the layers of muscle, and gaps where the grain is coarse.
  outer = np.minimum(frame.skin - build.fat_mm - 3 * grain, np.abs(inside + 15) - 1.4)
  outer = np.minimum(outer, np.abs(inside + 27 + 6 * grain) - 1.2)
  paint(np.minimum(outer, frame.skin - 2.5), MUSCLE_HU)
  paint(inside + 12, MUSCLE_HU)
  paint(inside, FAT_HU)
  _paint_bones(paint, frame, build)
  _paint_abdomen(paint, frame, build)
  _paint_centre(paint, frame)
  hu += np.float32(6) * grain * (frame.skin > 0)
  _paint_couch(paint, frame)
  return hu


def _bone(paint, distance, box=..., cortex_mm=1.4) -> None:
  paint(distance, CORTEX_HU, box)
  paint(distance - cortex_mm, MARROW_HU, box)


def _paint_bones(paint, frame, build) -> None:
  rib, gristle = thorax.ribs(frame, build.rib_skew_mm)
  _bone(paint, rib)
  paint(gristle, GRISTLE_HU)
  box = frame.box(x=(-40, 40), y=(0, 130))
  near = frame.crop(box)
  body, arch, canal = thorax.spine(near)
  paint(body + 4, MUSCLE_HU + 30, box)
  _bone(paint, body, box)
  _bone(paint, arch, box)
  paint(canal, 25, box)
  box = frame.box(x=(-25, 25), y=(-130, 0))
  _bone(paint, thorax.sternum(frame.crop(box)), box)
  box = frame.box(y=(20, 130), z=(0, 140))
  _bone(paint, thorax.scapulae(frame.crop(box)), box)


def _paint_abdomen(paint, frame, build) -> None:
  """Liver on the right, stomach with its bubble and spleen on the left."""
  below = -thorax.diaphragm(frame, *build.domes_mm)
  cavity = np.minimum(frame.cage[0] + 2, below)
  box = frame.box(z=(-150, max(build.domes_mm)))
  near, cavity = frame.crop(box), cavity[box]
  paint(cavity, MUSCLE_HU, box)
  inner = cavity - 3
  paint(inner, FAT_HU, box)
  edge = 38 - near.x - 0.25 * (near.y + 40) + 0.4 * (near.z + 120)
  paint(np.minimum(inner, np.minimum(edge, 70 - near.y + 0.3 * near.x)), LIVER_HU, box)
  top = build.domes_mm[1]
  stomach = np.minimum(
    thorax.ellipsoid(near, (58, -14, top - 42), (46, 46, 40)), inner - 2
  )
  paint(stomach, MUSCLE_HU, box)
  paint(stomach - 4, 20, box)
  paint(np.minimum(stomach - 4, -near.y - 22), GAS_HU, box)
  spleen = thorax.ellipsoid(near, (88, 40, top - 50), (34, 40, 44))
  paint(np.minimum(spleen, inner - 1), LIVER_HU - 4, box)


def _paint_centre(paint, frame) -> None:
  """Heart in its fat, and the gullet."""
  box = frame.box(x=(-70, 100), y=(-100, 60), z=(-120, 40))
  near = frame.crop(box)
  heart = thorax.heart(near)
  paint(heart + 3, FAT_HU, box)
  paint(heart - 1.5, MUSCLE_HU - 5, box)
  box = frame.box(x=(-10, 25), y=(-10, 80))
  near = frame.crop(box)
  gullet = thorax.section(
    near.x - 6, near.y - thorax.spine_y(near.z) + 25, np.float32(9), np.float32(6)
  )
  paint(gullet, MUSCLE_HU - 10, box)


def _paint_couch(paint, frame) -> None:
  """The curved shell on which the patient lies: never part of the body."""
  top = 128 - (frame.x / 150) ** 2 * 26
  depth = frame.y - top
  paint(np.minimum(depth, 14 - depth), -880.0)
  paint(1.3 - np.abs(depth), -50.0)
  paint(1.0 - np.abs(depth - 14), -150.0)
