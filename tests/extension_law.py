"""A study's own law: dense consolidation clears faster, at a ninth parameter's rate.

The given law absorbs "at a constant speed", whatever the stage. This one adds a second
regime: above `DENSE`, absorption is faster by `clearing`, so that patients differ in
how dense their consolidation becomes and not only in how much of it there is. It needs
three things, and no change of the package: W with one field more, a bound for it, and
the drift with one term more. The voxel simulation, the population law and the fit are
built from them. `tests/test_extension.py` runs what a study would run:

  python -m covid3way.main --config=configs/fit.py --workdir=runs/study \
    --config.input=manifest.csv --config.simulator.law=extension_law.LAW

Python finds a module in the folder where the program is started, or in PYTHONPATH.
"""

import jax
import jax.numpy as jnp
from flax import struct

from covid3way.simulator import law
from covid3way.simulator.parameters import BOUNDS, Bound, Parameters

DENSE = 0.08  # Window units: well above the threshold 0 of the stages.


@struct.dataclass
class ClearingParameters(Parameters):
  """W with a ninth parameter; its default is where a fit starts.

  Attributes:
    clearing: absorption per transition of dense voxels, beside the constant one.
  """

  clearing: jax.typing.ArrayLike = 0.0004


def drift(signal: jax.Array, w: ClearingParameters) -> jax.Array:
  """Expected increment per transition: the given law's, less what is cleared."""
  return law.drift(signal, w) - jnp.where(signal > DENSE, w.clearing, 0)


LAW = law.Law(
  parameters=ClearingParameters,
  bounds={**BOUNDS, 'clearing': Bound(1e-5, 0.01)},
  drift=drift,
)
