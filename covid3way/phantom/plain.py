"""The plainest chest there is, in a standard space of any size: for measuring speed."""

import numpy as np

from covid3way.base import Grid
from covid3way.standard.space import StandardSpace

_LESION_MM = (4.0, 25.0)  # Radii.


def plain_chest(n: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Two ellipsoid lungs of 4.6 l with round lesions.

  Args:
    n: voxels per side of the standard space.
    share: of the lung that is infected.

  Returns:
    signal: (n, n, n) float32, window units.
    lungs: (n, n, n) bool.
    infection: (n, n, n) bool.
  """
  space, rng = StandardSpace((n, n, n)), np.random.default_rng(0)
  mm = np.array(space.spacing_mm)
  x, y, z = ((np.arange(n) - n / 2) * s for s in mm)
  across = (y[:, None] / 80) ** 2 + (z / 125) ** 2
  lungs = np.stack([across < 1 - ((abs(each) - 70) / 55) ** 2 for each in x])
  inside, wanted = np.flatnonzero(lungs), share * np.count_nonzero(lungs)
  infection, count = np.zeros_like(lungs), 0
  while count < wanted:
    centre = np.array(np.unravel_index(rng.choice(inside), lungs.shape))
    # The last lesions are as small as what is missing.
    most = ((wanted - count) * mm.prod() / 4) ** (1 / 3) + mm.max()
    radius = min(rng.uniform(*_LESION_MM), most)
    reach = np.ceil(radius / mm).astype(int)
    low, high = np.maximum(centre - reach, 0), centre + reach + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offset = zip(np.ogrid[box], centre, mm, strict=True)
    ball = sum(((o - c) * s) ** 2 for o, c, s in offset) < radius**2
    new = ball & lungs[box] & ~infection[box]
    infection[box] |= new
    count += np.count_nonzero(new)
  signal = np.full(lungs.shape, -0.2, np.float32)
  signal[infection] = rng.normal(-0.03, 0.04, count).clip(-0.14, 0.2)
  return signal, lungs, infection


def plain_scan(n: int) -> tuple[np.ndarray, Grid]:
  """The same lungs in a body of soft tissue, as a scan on its own grid.

  Args:
    n: voxels of an axial slice's sides, 334 mm long; there are 300 of 512 mm / n each
      where n is 512, and fewer, thicker ones where it is less.

  Returns:
    (n, n, slices) int16, HU with noise of 20 HU, and the grid.
  """
  space, rng = StandardSpace((n, n, n)), np.random.default_rng(0)
  slices = round(n * 300 / 512)
  first = (n - slices) // 2
  signal, lungs, _ = (a[:, :, first:][:, :, :slices] for a in plain_chest(n, 0.03))
  x, y = (np.linspace(-1, 1, n) for _ in range(2))
  body = ((x / 0.95) ** 2)[:, None] + (y / 0.75) ** 2 < 1
  hu = np.where(body, 40.0, -1000.0).astype(np.float32)[:, :, None].repeat(slices, 2)
  hu[lungs] = 1200 * signal[lungs] - 600
  hu += rng.normal(0, 20, hu.shape).astype(np.float32)
  return np.rint(hu).astype(np.int16), Grid(hu.shape, np.diag([*space.spacing_mm, 1.0]))
