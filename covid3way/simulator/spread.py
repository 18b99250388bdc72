"""T_M: how many voxels become ground glass, and where. Amounts are W's, places ours."""

import jax
import jax.numpy as jnp

from covid3way.simulator.blocks import count

_FINE = 14  # Weights are added up as whole multiples of 2 ** -14.


def chances(weight: jax.Array, total: jax.Array) -> jax.Array:
  """Independent chances proportional to weights, whose sum is `total`.

  No chance is above 1: what a voxel cannot take goes to the others. When there is not
  room for all (`total` above the number of voxels with weight), every one of them is
  taken and the rest is lost. Weights below 2 ** -15 of the largest get no chance.

  Args:
    weight: float32 in [0, 1], (n, 64).
    total: expected number, a scalar.
  """

  def share_out(carry):
    scale, least, full, _ = carry
    free = jnp.where(weight * scale < 1, weight, 0)
    # Relative to the largest, or small weights alone would vanish in the sum.
    largest = free.max()
    room = largest > 0
    least = jnp.where(room, largest * 2.0 ** -(_FINE + 1), least)
    # Weights below that would not be counted.
    relative = jnp.where((free < least) | ~room, 0, free / largest)
    after = jnp.maximum(total - full, 0) / exact_sum(relative) / largest
    after = jnp.where(room, jnp.maximum(after, scale), scale)  # Never less.
    return after, least, count(weight * after >= 1), full

  # Again, for those with room left, as long as more of them become full.
  start = jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.int32(-1)
  more = lambda carry: carry[2] > carry[3]  # noqa: E731
  scale, least, _, _ = jax.lax.while_loop(more, share_out, start)
  return jnp.where(weight < least, 0, jnp.minimum(weight * scale, 1))


def exact_sum(values: jax.Array) -> jax.Array:
  """Sum of values in [0, 1], (n, ...), that no order of addition can change.

  Whole numbers are added, so batches and padding give the same bits. 2 ** 21 blocks
  of 64 (a volume of 512 x 512 x 512) do not overflow.
  """
  values = values.reshape(len(values), -1)
  whole = jnp.round(values * 2**_FINE).astype(jnp.uint32).sum(axis=1)
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
