"""A patient's disease over time: the simulator, with a W of the patient's own."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from covid3way import base
from covid3way.phantom import lesions
from covid3way.phantom.anatomy import Anatomy
from covid3way.simulator import law, state, trajectory
from covid3way.simulator.parameters import Parameters

# Chosen by eye beside a real scan: ground glass that is grained over a few mm, and
# cores that hang together.
MORPHOLOGY = state.Settings(
  clustering=1.0, consolidation_clustering=1.5, seeding=0.002, noise_mm=4.0
)
# Patients whose disease is old enough for consolidation when they are first seen.
_MIDDLE = Parameters(growth=0.003, conversion=0.3)
# Every patient's W: the middle times or divided by up to this.
_SPREAD = {
  'growth': 1.3,
  'ggo_gain': 1.15,
  'ggo_scale': 1.2,
  'absorption': 1.1,
  'conversion': 1.6,
  'consolidation_gain': 1.25,
  'consolidation_scale': 1.25,
  'noise': 1.15,
}
_LOOK = 20  # Transitions between two looks at how far the disease has come.
_LONGEST = 3000  # Transitions from onset to the first scan.
_TILE = 64  # Voxels; volumes are filled up to multiples, so that few shapes compile.


def draw_parameters(rng: np.random.Generator) -> Parameters:
  """A patient's W."""
  return Parameters(
    **{
      name: getattr(_MIDDLE, name) * spread ** rng.uniform(-1, 1)
      for name, spread in _SPREAD.items()
    }
  )


def evolve(
  rng: np.random.Generator,
  healthy: Anatomy,
  *,
  w: Parameters,
  share: float,
  days: Sequence[float],
  style: lesions.LesionStyle,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Lesions of one patient at several time points.

  Args:
    rng: its own stream.
    healthy: the chest.
    w: the patient's parameters.
    share: infected voxels / lung voxels when the first scan is taken, met within the
      growth of `_LOOK` transitions.
    days: of the scans; the first is day 0 and comes when `share` is reached.
    style: where lesions begin.

  Yields:
    Per day, infection (x, y, z) bool and signal (x, y, z) float32, window units.

  Raises:
    ConfigError: `share` is out of range, or the disease dies out before.
  """
  box, fill = _box(healthy.lungs)
  lungs, susceptible = healthy.lungs[box], healthy.susceptible()[box]
  onset = lesions.draw_onset(
    rng, lungs, susceptible, share=share, spacing_mm=healthy.spacing_mm, style=style
  )
  tissue = state.Anatomy(
    jnp.pad(susceptible, fill), (healthy.spacing_mm,) * 3, jnp.pad(onset.prior, fill)
  )
  now = state.State(jnp.pad(onset.signal, fill), jnp.pad(onset.infection, fill))
  key = jax.random.key(int(rng.integers(2**31)))
  w = jax.tree.map(jnp.float32, w)
  enough, done = share * np.count_nonzero(lungs), 0

  def run(until):
    nonlocal now, done
    now = trajectory.run(
      key, now, w, tissue, MORPHOLOGY, steps=until - done, start=done
    )
    done = until

  while np.count_nonzero(now.infection) < enough:
    if done >= _LONGEST or not now.infection.any():
      raise base.ConfigError(
        'share',
        f'{share} is not reached in {done} transitions',
        'use less, or another W',
      )
    run(done + _LOOK)
  first = done
  for day in days:
    run(first + round((day - days[0]) * law.TRANSITIONS_PER_DAY))
    infection = np.zeros(healthy.lungs.shape, bool)
    signal = np.zeros(healthy.lungs.shape, np.float32)
    inner = tuple(slice(n) for n in lungs.shape)
    infection[box], signal[box] = now.infection[inner], now.signal[inner]
    yield infection, signal


def _box(lungs: np.ndarray):
  """The lungs' bounding box, and what fills it up to whole tiles."""
  (box,) = scipy.ndimage.find_objects((lungs > 0).astype(np.uint8))
  return box, [(0, -(s.stop - s.start) % _TILE) for s in box]
