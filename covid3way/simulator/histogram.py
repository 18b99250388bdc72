"""Histograms of infected signals: what a law is fitted to, Eq. (3).

`normal_mass` is used twice: with a voxel's signal as the mean it is the differentiable
("soft") histogram of that voxel; with where a voxel is about to go, and the noise of
the law, it is the probability that it arrives in each bin.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Narrow enough for the law: coarser bins smear what moves by less than a bin.
BIN = 0.001
LOW, HIGH = -0.25, 0.6


def bin_edges(low: float = LOW, high: float = HIGH) -> np.ndarray:
  """(n + 1,) float64 edges, window units; -0.15 and 0 are edges exactly."""
  per_unit = round(1 / BIN)
  return np.arange(round(low * per_unit), round(high * per_unit) + 1) / per_unit


def counts(values: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
  """How many values lie in each bin.

  A value on an edge, as all of an invented start at -0.15 are, counts half in either
  bin: its mean is kept, whichever way it was rounded.

  Args:
    values: signals, any shape; those outside the range count in the end bins.
    edges: (n + 1,) increasing; None: `bin_edges()`.

  Returns:
    (n,) float64.
  """
  edges = bin_edges() if edges is None else np.asarray(edges)
  rounding = 1e-6 * (edges[1] - edges[0]) / BIN
  inside = edges[0] + rounding, edges[-1] - rounding
  values = np.clip(np.asarray(values, np.float64).ravel(), *inside)
  sides = [np.histogram(values + by, edges)[0] for by in (-rounding, rounding)]
  return sum(sides) / 2


def normal_mass(mean: jax.Array, deviation: jax.Array, edges: jax.Array) -> jax.Array:
  """Shares of normal distributions in each bin; the end bins take all beyond them.

  Args:
    mean: (..., 1).
    deviation: standard deviation, broadcasts with `mean`.
    edges: (..., n + 1).

  Returns:
    (..., n) shares that sum to 1, smooth in `mean` and `deviation`.
  """
  z = (edges[..., 1:-1] - mean) / (math.sqrt(2) * deviation)
  below = (1 + jax.lax.erf(z)) / 2
  ends = [(0, 0)] * (below.ndim - 1)
  below = jnp.pad(below, [*ends, (1, 0)])
  return jnp.diff(jnp.pad(below, [*ends, (0, 1)], constant_values=1))


def soft_histogram(
  values: jax.Array,
  edges: np.ndarray | None = None,
  *,
  bandwidth: float = BIN,
  weights: jax.Array | None = None,
) -> jax.Array:
  """How many values lie in each bin, differentiable in the values and weights.

  Every value is spread as a normal distribution, so that the mean is kept and the
  variance grows by `bandwidth` squared.

  Args:
    values: signals, any shape; those outside the range count in the end bins.
    edges: (n + 1,) even edges; None: `bin_edges()`.
    bandwidth: standard deviation of the spread, > 0.
    weights: what each value counts for, same shape; None: 1.

  Returns:
    (n,) counts.
  """
  edges = bin_edges() if edges is None else np.asarray(edges)
  n, width = len(edges) - 1, edges[1] - edges[0]
  reach = math.ceil(5 * bandwidth / width)
  values = jnp.ravel(jnp.clip(values, edges[0] - width, edges[-1] + width))
  weights = jnp.ones_like(values) if weights is None else jnp.ravel(weights)
  # Bins are counted from the value's own, not from the first: exact in float32.
  own = jnp.floor((values - edges[0]) / width)
  offset = np.arange(-reach, reach + 2)
  inside = (values - edges[0])[:, None] - own[:, None] * width
  mass = normal_mass(inside, bandwidth, jnp.asarray(offset * width, values.dtype))
  index = jnp.clip(own.astype(jnp.int32)[:, None] + offset[:-1], 0, n - 1)
  return jnp.zeros(n, mass.dtype).at[index].add(weights[:, None] * mass)
