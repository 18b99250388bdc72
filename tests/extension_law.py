"""A study's own law: dense consolidation clears faster, at a ninth parameter's rate.

  python -m covid3way.main --config=configs/fit.py \\
    --config.simulator.law=tests.extension_law.LAW ...
"""

import jax
import jax.numpy as jnp
from flax import struct

from covid3way.simulator import law
from covid3way.simulator.parameters import BOUNDS, Bound, Parameters

DENSE = 0.08


@struct.dataclass
class ClearingParameters(Parameters):
  """W with a ninth parameter, absorption per transition beside the constant one."""

  clearing: jax.typing.ArrayLike = 0.0004


def drift(signal: jax.Array, w: ClearingParameters) -> jax.Array:
  """The given law, with a second absorption regime above `DENSE`."""
  return law.drift(signal, w) - jnp.where(signal > DENSE, w.clearing, 0)


LAW = law.Law(
  parameters=ClearingParameters,
  bounds={**BOUNDS, 'clearing': Bound(1e-5, 0.01)},
  drift=drift,
)
