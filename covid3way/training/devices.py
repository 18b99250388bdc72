"""All that knows of devices: pmap, its axis, sums over it, sharding of batches.

The training state is carried unreplicated: it goes in whole (`None` in `in_axes`) and
comes out whole (`None` in `out_axes`), which is right because every device returns
the same: gradients are averaged, and so are batch statistics.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

AXIS = 'devices'


def parallel(
  step: Callable[[Any, Any], Any], devices: Sequence[jax.Device]
) -> Callable[[Any, Any], Any]:
  """Maps `step(state, batch) -> state` over devices.

  Args:
    step: gets the whole state and one device's share of the batch; what it returns
      must be equal on all devices, so it uses `mean` and `total`.
    devices: to run on.

  Returns:
    A function of the state and a batch as `shard` gives it.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=None,
    devices=devices,
  )


def shard(batch: Any, n: int) -> Any:
  """Arrays (b, ...) -> (n, b / n, ...).

  Raises:
    ValueError: b is not a multiple of n.
  """

  def split(x):
    if len(x) % n:
      raise ValueError(f'a batch of {len(x)} cannot be shared by {n} devices')
    return x.reshape(n, len(x) // n, *x.shape[1:])

  return jax.tree.map(split, batch)


def mean(tree: Any) -> Any:
  """Average over devices."""
  return jax.lax.pmean(tree, AXIS)


def total(tree: Any) -> Any:
  """Sum over devices."""
  return jax.lax.psum(tree, AXIS)
