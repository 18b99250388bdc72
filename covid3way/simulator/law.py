"""T_S: what one voxel's signal does in one transition. The only definition there is.

The voxel simulation and the population law are both built from the functions here, and
a study that wants another model hands them a `Law` of its own (README, "Extending the
simulator"). The quoted rules are those of the paper, Section III-C.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from covid3way.simulator.parameters import BOUNDS, Bound, Parameters

# "within 24 hours of time, each infection region evolves for 100 times"
TRANSITIONS_PER_DAY = 100
# "when the signal intensity is smaller than -0.15, the voxel will become a normal
# voxel": until then it is infected.
RECOVERY = -0.15
# "we should use different evolution functions to describe voxels with signals greater
# and less than 0": below it a voxel is ground glass, from it on consolidation.
STAGE = 0.0
# A new ground-glass voxel: above the threshold of recovery, so that it can live.
NEWBORN = RECOVERY + 0.005
# "when the intensity of a GGO voxel reaches 0, its signal will not further increase":
# where it waits, half a bin of the population law below 0.
HELD = -0.0005


def drift(signal: jax.Array, w: Parameters) -> jax.Array:
  """Expected increment of an infected voxel's signal in one transition, any shape.

  Ground glass takes up less the nearer it comes to 0. "When the CT signal increases,
  the voxel gradually consolidates, which means its signal becomes more difficult to
  further increase." And "our body absorbs the inflammatory infiltration at a constant
  speed."
  """
  # One exponential for both stages, of what is never above 0: none overflows.
  below, above = jnp.minimum(signal, STAGE), jnp.maximum(signal, STAGE)
  fading = jnp.exp(below / w.ggo_scale - above / w.consolidation_scale)
  ggo, consolidation = w.ggo_gain * (1 - fading), w.consolidation_gain * fading
  return jnp.where(signal < STAGE, ggo, consolidation) - w.absorption


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
  """What a study may replace.

  Attributes:
    parameters: class of W; its defaults are where a fit starts.
    bounds: of every parameter.
    drift: (signal, w) -> expected increment per transition, elementwise.
  """

  parameters: type[Parameters] = Parameters
  bounds: Mapping[str, Bound] = dataclasses.field(default_factory=lambda: BOUNDS)
  drift: Callable[[jax.Array, Parameters], jax.Array] = drift


LAW = Law()


def propose(signal: jax.Array, z: jax.Array, w: Parameters, law: Law) -> jax.Array:
  """Signal after infiltration, absorption and noise `z` (unit normal), any shape."""
  return signal + law.drift(signal, w) + w.noise * z


def reaches(before: jax.Array, proposed: jax.Array) -> jax.Array:
  """Where a ground-glass voxel has reached 0: it passes with a chance, or waits."""
  return (before < STAGE) & (proposed >= STAGE)


def settle(before: jax.Array, proposed: jax.Array, passes: jax.Array) -> jax.Array:
  """Signal after the threshold 0.

  "It has a probability to convert into the next stage and pass across value 0." A
  consolidation voxel that falls below 0 is ground glass again.

  Args:
    before: signal before the transition, any shape.
    proposed: what `propose` gave.
    passes: bool, whether a voxel that reaches 0 passes it.
  """
  return jnp.where(reaches(before, proposed) & ~passes, HELD, proposed)


def survives(signal: jax.Array) -> jax.Array:
  """Where an infected voxel stays infected; elsewhere it has recovered."""
  return signal >= RECOVERY


def step(
  signal: jax.Array, z: jax.Array, u: jax.Array, w: Parameters, law: Law = LAW
) -> tuple[jax.Array, jax.Array]:
  """T_S of infected voxels.

  Args:
    signal: window units, any shape.
    z: unit normal, same shape.
    u: uniform in [0, 1), same shape.
    w: parameters.
    law: the model.

  Returns:
    The new signal, and whether the voxel is still infected.
  """
  after = settle(signal, propose(signal, z, w, law), u < w.conversion)
  return after, survives(after)
