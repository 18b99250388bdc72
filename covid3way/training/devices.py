"""All that knows of devices and hosts: pmap, its axis, sums over it, shares of a batch.

The training state is carried unreplicated: it goes in whole (`None` in `in_axes`) and
comes out whole (`None` in `out_axes`), which is right because every device returns
the same: gradients are averaged, and so are batch statistics. That holds on several
hosts, too: each keeps the whole state, and none has to send it to another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from covid3way.base import ConfigError

AXIS = 'devices'


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of several that train together.

  Without arguments Slurm's environment tells which (`jax.distributed`).

  Raises:
    ConfigError: there is nobody to join.
  """
  # SIGTERM is ours to answer, see `preemption`.
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      # The others wait while the first writes the model.
      shutdown_timeout_seconds=24 * 3600,
    )
  except (ValueError, RuntimeError) as error:
    raise ConfigError(
      '--distributed',
      f'the processes do not find each other: {str(error).splitlines()[0]}',
      'start them with srun, or give --coordinator_address, --num_processes and '
      '--process_id',
    ) from error


def leave() -> None:
  """Ends what `join` began, so that no other process takes this one for dead."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def is_first() -> bool:
  """Whether this process is the one that writes files and lines."""
  return jax.process_index() == 0


def from_first(tree: Any) -> Any:
  """The first process's arrays, for all processes."""
  if jax.process_count() == 1:
    return tree
  return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def text_from_first(text: str) -> str:
  """The first process's text, for all processes."""
  data = np.frombuffer(text.encode(), np.uint8)
  data = np.resize(data, int(from_first(np.int64(len(data)))))
  return from_first(data).tobytes().decode()


def my_rows(batch_size: int) -> range:
  """Which rows of a batch the devices of this process need."""
  share = batch_size // jax.process_count()
  return range(jax.process_index() * share, (jax.process_index() + 1) * share)


def parallel(
  step: Callable[[Any, Any], Any], devices: Sequence[jax.Device]
) -> Callable[[Any, Any], Any]:
  """Maps `step(state, batch)` over devices.

  Args:
    step: gets the whole state and one device's share of the batch; what it returns
      must be equal on all devices, so it uses `mean` and `total`.
    devices: to run on, of all processes.

  Returns:
    A function of the state and of this process's rows of a batch, arrays (r, ...) with
    r a multiple of its devices; else a ValueError.
  """
  mapped = jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=None,
    devices=devices,
  )
  mine = sum(device.process_index == jax.process_index() for device in devices)
  return lambda state, batch: mapped(state, _share(batch, mine))


def placed(state: Any, devices: Sequence[jax.Device]) -> Any:
  """A state where `parallel` leaves it: it compiles once, not for the first step anew.

  Args:
    state: of arrays.
    devices: of all processes, that it is to be on; those of this one count.
  """
  mine = [d for d in devices if d.process_index == jax.process_index()]
  return jax.device_put(state, NamedSharding(Mesh(mine, (AXIS,)), PartitionSpec()))


def _share(batch: Any, n: int) -> Any:
  """Arrays (r, ...) -> (n, r / n, ...)."""

  def split(x):
    if len(x) % n:
      raise ValueError(f'{len(x)} rows cannot be shared by {n} devices')
    return x.reshape(n, len(x) // n, *x.shape[1:])

  return jax.tree.map(split, batch)


def mean(tree: Any) -> Any:
  """Average over devices."""
  return jax.lax.pmean(tree, AXIS)


def total(tree: Any) -> Any:
  """Sum over devices."""
  return jax.lax.psum(tree, AXIS)
