"""Where the eight parameters of the progression model may lie.

Apart from what computes with them, as configs name them and have to load fast.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Bound:
  """Where a parameter may lie; `log` spaces it by ratios, else it is even."""

  low: float
  high: float
  log: bool = True


BOUNDS: Mapping[str, Bound] = {
  'growth': Bound(1e-5, 0.05),
  'ggo_gain': Bound(1e-5, 0.02),
  'ggo_scale': Bound(0.004, 0.3),
  'absorption': Bound(1e-5, 0.02),
  'conversion': Bound(1e-4, 0.95, log=False),
  'consolidation_gain': Bound(1e-5, 0.02),
  'consolidation_scale': Bound(0.01, 1.0),
  # Less noise than 0.7 bins, and the population law would move voxels in whole bins.
  'noise': Bound(7e-4, 0.012),
}
