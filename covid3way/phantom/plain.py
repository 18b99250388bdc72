"""The plainest chest there is, in a standard space of any size: for measuring speed."""

import numpy as np

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
