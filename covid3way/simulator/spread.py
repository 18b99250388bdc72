"""T_M: how many voxels become ground glass, and where. Amounts are W's, places ours."""

import jax
import jax.numpy as jnp
import numpy as np

_TINY = np.finfo(np.float32).tiny
_FINE = 14  # Weights are added up as whole multiples of 2 ** -14.


def chances(weight: jax.Array, total: jax.Array) -> jax.Array:
  """Independent chances proportional to weights, whose sum is `total`.

  No chance is above 1: what a voxel cannot take goes to the others. When there is not
  room for all (`total` above the number of voxels with weight), every one of them is
  taken and the rest is lost. Weights below 2 ** -15 of the largest get no chance.

  Args:
    weight: (n, 4, 4, 4) float32 in [0, 1].
    total: expected number, a scalar.
  """

  def share_out(carry):
    chance, _ = carry
    free = jnp.where(chance < 1, weight, 0)
    # Relative to the largest, or small weights alone would vanish in the sum.
    free = free / jnp.maximum(free.max(), _TINY)
    free = jnp.where(free < 2.0 ** -(_FINE + 1), 0, free)  # It would not be counted.
    left = jnp.maximum(total - jnp.sum(chance >= 1), 0)
    scale = left / jnp.maximum(exact_sum(free), 1)  # The largest is 1, or none is.
    after = jnp.where(chance < 1, jnp.minimum(free * scale, 1), chance)
    return after, jnp.any((after >= 1) & (chance < 1))

  # Again, for those with room left, as long as more of them become full.
  start = jnp.zeros_like(weight), jnp.array(True)
  return jax.lax.while_loop(lambda carry: carry[1], share_out, start)[0]


def exact_sum(values: jax.Array) -> jax.Array:
  """Sum of values in [0, 1], (n, 4, 4, 4), that no order of addition can change.

  Whole numbers are added, so batches and padding give the same bits. 2 ** 21 blocks
  (a volume of 512 x 512 x 512) do not overflow.
  """
  whole = jnp.round(values * 2**_FINE).astype(jnp.uint32).sum(axis=(1, 2, 3))
  low, high = (whole & 0x7FF).sum(), (whole >> 11).sum()
  return (high.astype(jnp.float32) * 2**11 + low) / 2**_FINE


def crowding(ggo_neighbours: jax.Array, clustering: float) -> jax.Array:
  """Weight of a birth: (ground-glass share of the 26 neighbours) ** clustering.

  "normal voxels nearby GGO are more likely to become GGO voxels during the transitions
  of Y" (paper, Section III-C). Without such a neighbour it is 0.

  Args:
    ggo_neighbours: counts from 0 to 26, any shape.
    clustering: 0 makes all neighbours of ground glass alike.
  """
  share = ggo_neighbours.astype(jnp.float32) / 26
  return jnp.where(share > 0, share**clustering, 0)


def attraction(consolidated_neighbours: jax.Array, clustering: float) -> jax.Array:
  """Weight of a conversion: ((1 + consolidated neighbours) / 27) ** clustering."""
  return ((1 + consolidated_neighbours.astype(jnp.float32)) / 27) ** clustering
