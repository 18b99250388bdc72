"""Shapes of the chest as distances: positive inside, mm, good near the surface.

Written in the coordinates of one model patient: x to the left, y to the back, z to
the head, z = 0 between the lung roots. Proportions by eye, beside public chest CT.
"""

import dataclasses
import functools

import numpy as np
from scipy.interpolate import PchipInterpolator

EXTENT_MM = ((-190.0, 190.0), (-122.0, 158.0), (-150.0, 158.0))

# Rib cage and skin by height: half width, half depth and centre of the section.
_CAGE_MM = np.array([
  # z, half width, half depth, centre y
  (-160, 134, 88, 2), (-100, 136, 92, 2), (-40, 134, 91, 3), (20, 126, 86, 6),
  (60, 116, 77, 11), (90, 102, 66, 16), (108, 86, 56, 21), (121, 66, 45, 25),
  (130, 44, 35, 28), (143, 17, 22, 30), (160, 9, 14, 32),
])  # fmt: skip
_SKIN_MM = np.array([
  (-160, 160, 112, 8), (-100, 162, 116, 8), (-20, 164, 116, 9), (50, 168, 111, 13),
  (95, 170, 98, 17), (118, 160, 86, 19), (138, 125, 76, 20), (160, 78, 70, 20),
])  # fmt: skip
# Half width of the mediastinum at its widest, by height.
_MEDIASTINUM_MM = np.array([
  (-160, 16), (-60, 20), (0, 25), (40, 27), (70, 27), (100, 26), (130, 25), (160, 30),
])  # fmt: skip

# Rotation and warp move a voxel by less than this.
MARGIN_MM = 25.0
RIB_PITCH_MM = 25.0
RIB_DROP_MM = 80.0


def profile(table: np.ndarray, z, column: int) -> np.ndarray:
  """A column of one of the tables above at the heights z, float32."""
  return PchipInterpolator(table[:, 0], table[:, column])(z).astype(np.float32)


def spine_y(z) -> np.ndarray:
  """Centre of the vertebral bodies: it follows the back of the rib cage."""
  return profile(_CAGE_MM, z, 3) + profile(_CAGE_MM, z, 2) * np.float32(0.93) - 31


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
  """Model coordinates of a box of voxels.

  Attributes:
    x, y: (x, y, z) float32 mm, gently warped so that nothing is a perfect ellipse.
    z: (1, 1, z) float32 mm.
  """

  x: np.ndarray
  y: np.ndarray
  z: np.ndarray

  def box(self, x=None, y=None, z=None) -> tuple[slice, slice, slice]:
    """The voxels that may lie in the given (low, high) ranges, mm."""
    i, j, k = (n // 2 for n in self.x.shape)
    lines = (self.x[:, j, k], self.y[i, :, k], self.z[0, 0])
    result = []
    for line, limits in zip(lines, (x, y, z), strict=True):
      low, high = limits or (-np.inf, np.inf)
      near = np.flatnonzero((line > low - MARGIN_MM) & (line < high + MARGIN_MM))
      result.append(slice(near[0], near[-1] + 1) if near.size else slice(0, 0))
    return tuple(result)

  def crop(self, box: tuple[slice, slice, slice]) -> 'Frame':
    """The same coordinates for a part of the voxels (views)."""
    return Frame(self.x[box], self.y[box], self.z[:, :, box[2]])

  @functools.cached_property
  def cage(self) -> tuple[np.ndarray, np.ndarray]:
    """Distance inside the rib cage, mm, and turn: 0 at the spine, 1 at the sternum."""
    half_x, half_y, mid = (profile(_CAGE_MM, self.z, i) for i in (1, 2, 3))
    x, y = self.x, self.y - mid
    # The back is hollow where the spine stands: lungs reach further beside it.
    y = y + 16 * np.exp(-((x / 42) ** 2)) * np.clip(y / half_y, 0, 1)
    turn = np.abs(np.arctan2(x / half_x, y / half_y)) / np.float32(np.pi)
    return section(x, y, half_x, half_y, power=2.1), turn

  @functools.cached_property
  def skin(self) -> np.ndarray:
    """Distance inside the body, mm."""
    half_x, half_y, mid = (profile(_SKIN_MM, self.z, i) for i in (1, 2, 3))
    return section(self.x, self.y - mid, half_x, half_y)


def section(x, y, half_x, half_y, *, power: float = 2.5) -> np.ndarray:
  """Distance inside a superellipse, mm."""
  u, v = np.abs(x / half_x), np.abs(y / half_y)
  u1, v1 = (np.power(w, np.float32(power - 1)) for w in (u, v))
  rho = (u * u1 + v * v1 + np.float32(1e-6)) ** np.float32(1 / power)
  slope = np.hypot(u1 / half_x, v1 / half_y) / rho ** np.float32(power - 1)
  return (1 - rho) / np.maximum(slope, np.float32(1e-3))


_EYE = np.eye(3)


def ellipsoid(frame: Frame, centre, radii, axes=_EYE) -> np.ndarray:
  """Distance inside an ellipsoid, mm; the rows of `axes` are its directions."""
  offset = (frame.x - centre[0], frame.y - centre[1], frame.z - centre[2])
  near = far = 0
  for axis, radius in zip(axes, radii, strict=True):
    along = sum(np.float32(a) * o for a, o in zip(axis, offset, strict=True) if a)
    along = along / np.float32(radius)
    near = near + along**2
    far = far + (along / np.float32(radius)) ** 2
  near = np.sqrt(near)
  return near * (1 - near) / np.sqrt(far + np.float32(1e-9))


def diaphragm(frame: Frame, right_mm: float, left_mm: float) -> np.ndarray:
  """Height above the two domes, mm; their tops are given."""
  left = (1 + np.tanh(frame.x / 25)) / 2
  beyond = np.abs(frame.x) - 60
  aside = (np.where(beyond > 0, beyond / 62, beyond / 110)) ** 2
  back = ((frame.y + 12) / 80) ** 2
  top = right_mm + (left_mm - right_mm) * left
  return (frame.z - (top - 26 * (aside + back))) * np.float32(0.8)


def heart(frame: Frame) -> np.ndarray:
  """Distance inside the pericardium, mm: ventricles towards the left, right atrium."""
  ventricles = ellipsoid(frame, (26, -25, -46), (63, 46, 44), HEART_AXES)
  atria = ellipsoid(frame, (-8, -8, -26), (40, 40, 44))
  return np.maximum(ventricles, atria)


def _turned(long) -> np.ndarray:
  long = np.asarray(long) / np.linalg.norm(long)
  second = np.cross(long, (0, 0, 1))
  second /= np.linalg.norm(second)
  return np.stack([long, second, np.cross(long, second)])


HEART_AXES = _turned((0.72, -0.5, -0.45))


def mediastinum(frame: Frame) -> np.ndarray:
  """Distance inside the wall between the lungs, mm: thin behind the sternum."""
  front = profile(_CAGE_MM, frame.z, 3) - profile(_CAGE_MM, frame.z, 2)
  depth = np.clip((frame.y - front) / (spine_y(frame.z) - front), 0, 1)
  width = profile(_MEDIASTINUM_MM, frame.z, 1)
  half = 4 + (width - 4) * np.sin(np.float32(np.pi / 1.75) * depth) ** np.float32(1.4)
  return half - np.abs(frame.x - 3)


def spine(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Distances inside the vertebral bodies, the arch behind them, and the canal, mm."""
  y = frame.y - spine_y(frame.z)
  waist = np.float32(1.5) * np.cos(frame.z * np.float32(2 * np.pi / 24))
  body = section(frame.x, y, 17 + waist, 14 + waist)
  disc = np.abs((frame.z / 24 + np.float32(0.5)) % 1 - np.float32(0.5)) * 24 - 2.5
  canal = 8 - np.hypot(frame.x, y - 22)
  ring = 4 - np.abs(np.hypot(frame.x * np.float32(0.85), y - 22) - 11)
  process = np.minimum(3 - np.abs(frame.x), 15 - np.abs(y - 42))
  wings = np.minimum(4.5 - np.abs(y - 24 + 0.0 * frame.x), 34 - np.abs(frame.x))
  level = 8 - np.abs((frame.z / 24) % 1 - np.float32(0.5)) * 24
  arch = np.maximum(ring, np.minimum(np.maximum(process, wings), level))
  return np.minimum(body, disc), np.minimum(arch, -canal), canal


def ribs(frame: Frame, skew_mm: float) -> tuple[np.ndarray, np.ndarray]:
  """Distance inside the ribs, mm, and inside their gristly front ends."""
  inside, turn = frame.cage
  height = frame.z + skew_mm + RIB_DROP_MM * turn ** np.float32(1.3)
  phase = height / np.float32(RIB_PITCH_MM)
  across = (phase - np.round(phase)) * np.float32(RIB_PITCH_MM * 0.86)
  outward = -inside - np.float32(5.5)
  size = np.hypot(outward / np.float32(4.2), across / np.float32(6.8))
  rib = (1 - size) * np.float32(4.5)
  rib = np.minimum(rib, (turn - np.float32(0.06)) * 200)
  gristle_from = np.float32(0.8)
  end = (turn - gristle_from) * 200
  return np.minimum(rib, -end), np.minimum(rib, end)


def sternum(frame: Frame) -> np.ndarray:
  """Distance inside the breastbone, mm."""
  front = profile(_CAGE_MM, frame.z, 3) - profile(_CAGE_MM, frame.z, 2)
  half = 15 + 8 * np.clip((frame.z - 55) / 25, 0, 1)
  plate = section(frame.x, frame.y - front + 7, half, np.float32(5.5))
  return np.minimum(plate, 78 - np.abs(frame.z - 18))


def scapulae(frame: Frame) -> np.ndarray:
  """Distance inside the two shoulder blades, mm: plates behind the upper ribs."""
  inside, turn = frame.cage
  bow = np.abs(-inside - (17 + 40 * np.clip(turn - 0.3, 0, 1)))
  plate = np.float32(2.6) - bow
  edges = np.minimum(turn - (0.13 + 0.0008 * (110 - frame.z)), 0.36 - turn) * 300
  return np.minimum(np.minimum(plate, edges), frame.z - 12)
