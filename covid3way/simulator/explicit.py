"""L(W) the explicit way: voxels are simulated, then counted.

It is slow and noisy, and its births have no gradient; it is there to check the
population law, with which it shares the rules of a voxel and nothing else.
"""

import functools
import math

import jax
import jax.numpy as jnp

from covid3way.simulator import law as rules
from covid3way.simulator.histogram import soft_histogram
from covid3way.simulator.law import LAW, Law
from covid3way.simulator.parameters import Parameters
from covid3way.simulator.population import loss


def simulate_voxels(
  key: jax.Array,
  signal: jax.Array,
  w: Parameters,
  transitions: int,
  law: Law = LAW,
  *,
  capacity: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Infected voxels without places, as if there were room for every birth.

  Args:
    key: of the noise.
    signal: (n,) of the infected voxels.
    w: scalars.
    transitions: how many.
    law: the model.
    capacity: infected voxels there may ever have been; None: as many as there would
      be if none recovered or consolidated.

  Returns:
    (capacity,) signals, and which of these voxels are infected.

  Raises:
    ValueError: there were more births than `capacity` has room for.
  """
  n = len(signal)
  if capacity is None:
    capacity = math.ceil(1.01 * n * (1 + float(w.growth)) ** transitions) + 100
  padded = jnp.zeros(capacity).at[:n].set(signal)
  signal, infected, used = _simulate(key, padded, n, w, transitions, law)
  if used > capacity:
    raise ValueError(f'{used} voxels were infected; capacity is {capacity}')
  return signal, infected


def explicit_loss(
  key: jax.Array,
  signal: jax.Array,
  observed: jax.Array,
  w: Parameters,
  transitions: int,
  law: Law = LAW,
) -> jax.Array:
  """Eq. (3) between simulated voxels and a histogram.

  Args:
    key: of the noise.
    signal: (n,) of the infected voxels at the start.
    observed: (850,) infected voxels per bin at the end.
    w: scalars.
    transitions: from start to end.
    law: the model.
  """
  signal, infected = simulate_voxels(key, signal, w, transitions, law)
  return loss(soft_histogram(signal, weights=infected.astype(float)), observed)


@functools.partial(jax.jit, static_argnames='law')
def _simulate(key, signal, used, w, transitions, law):
  place = jnp.arange(len(signal))

  def step(t, carry):
    signal, infected, used = carry
    for_noise, for_passing, for_births = jax.random.split(jax.random.fold_in(key, t), 3)
    mothers = jnp.sum(infected & (signal < rules.STAGE))
    z = jax.random.normal(for_noise, signal.shape)
    u = jax.random.uniform(for_passing, signal.shape)
    moved, survives = rules.step(signal, z, u, w, law)
    signal, infected = jnp.where(infected, moved, signal), infected & survives
    # The fraction of a birth is a chance, or small populations would never grow.
    births = jnp.floor(w.growth * mothers + jax.random.uniform(for_births))
    until = used + births.astype(jnp.int32)
    born = (place >= used) & (place < until)
    return jnp.where(born, rules.NEWBORN, signal), infected | born, until

  start = signal, place < used, jnp.int32(used)
  return jax.lax.fori_loop(0, transitions, step, start)
