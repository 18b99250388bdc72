"""W: the eight parameters of the progression model, their bounds, their free form.

"There are eight independent parameters for T. We denote the parameters of the dynamic
model as W" (paper, Section III-C). A study adds one with a subclass of `Parameters` and
a line in its own copy of the table.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from covid3way import base
from covid3way.simulator.bounds import BOUNDS, Bound


@struct.dataclass
class Parameters:
  """W. Scalars, or arrays of equal shape for many patients under `vmap`.

  Signals are in window units, rates per transition; 100 transitions are a day.

  Attributes:
    growth: expected new ground-glass voxels per ground-glass voxel.
    ggo_gain: infiltration far below 0.
    ggo_scale: signal scale on which infiltration saturates towards 0 from below.
    absorption: constant absorption, both stages.
    conversion: chance that a ground-glass voxel that reaches 0 passes it.
    consolidation_gain: infiltration just above 0.
    consolidation_scale: signal scale on which consolidation stiffens.
    noise: standard deviation of the signal's increment.
  """

  growth: jax.typing.ArrayLike = 0.004
  ggo_gain: jax.typing.ArrayLike = 0.0012
  ggo_scale: jax.typing.ArrayLike = 0.036
  absorption: jax.typing.ArrayLike = 0.0006
  conversion: jax.typing.ArrayLike = 0.08
  consolidation_gain: jax.typing.ArrayLike = 0.0022
  consolidation_scale: jax.typing.ArrayLike = 0.12
  noise: jax.typing.ArrayLike = 0.003


def to_free(w: Parameters, bounds: Mapping[str, Bound] = BOUNDS) -> jax.Array:
  """W -> (n,) unconstrained numbers, in the order of its fields."""
  return jnp.stack([_free(getattr(w, f), bounds[f]) for f in _names(type(w))])


def from_free(
  free: jax.Array,
  kind: type[Parameters] = Parameters,
  bounds: Mapping[str, Bound] = BOUNDS,
) -> Parameters:
  """(n,) unconstrained numbers -> W strictly within its bounds; undoes `to_free`."""
  return kind(**{f: _value(x, bounds[f]) for f, x in zip(_names(kind), free)})  # noqa: B905


def check(
  w: Parameters, *, subject: str, bounds: Mapping[str, Bound] = BOUNDS
) -> Parameters:
  """W as float32, if every parameter is finite and within its bounds.

  Args:
    w: scalars.
    subject: who it belongs to, for the message.
    bounds: the table.

  Raises:
    ParameterError: names the parameter.
  """
  for name in _names(type(w)):
    value, bound = float(getattr(w, name)), bounds[name]
    # A fit may end at a bound, which float32 rounds to either side.
    slack = 1e-6 * max(abs(bound.low), abs(bound.high))
    allowed = bound.low - slack <= value <= bound.high + slack
    if not np.isfinite(value) or not allowed:
      raise base.ParameterError(
        subject,
        f'{name} = {value:g}',
        f'use a number from {bound.low:g} to {bound.high:g}',
      )
  return jax.tree.map(jnp.float32, w)


def as_dict(w: Parameters) -> dict[str, float]:
  """Scalars by name, as JSON values."""
  return {name: float(getattr(w, name)) for name in _names(type(w))}


def _names(kind: type[Parameters]) -> tuple[str, ...]:
  return tuple(field.name for field in dataclasses.fields(kind))


def _ends(bound: Bound) -> tuple[float, float]:
  ends = bound.low, bound.high
  return tuple(np.log(ends)) if bound.log else ends


def _free(value: jax.typing.ArrayLike, bound: Bound) -> jax.Array:
  low, high = _ends(bound)
  share = ((jnp.log(value) if bound.log else value) - low) / (high - low)
  return jnp.log(share / (1 - share))


def _value(free: jax.Array, bound: Bound) -> jax.Array:
  low, high = _ends(bound)
  inside = low + (high - low) * jax.nn.sigmoid(free)
  return jnp.exp(inside) if bound.log else inside
