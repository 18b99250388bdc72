"""The fit of W: min over W of L(W), Eq. (3), between two observed histograms.

Two phases of L-BFGS. Eq. (3) alone is a poor guide from afar: while the peaks do not
overlap it hardly depends on where they are, and it falls to the integral of F^2 when
the infection dies out altogether. So the first phase compares how many voxels there are
and where the cumulative histograms run, and only the second follows Eq. (3).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from covid3way import base
from covid3way.simulator import parameters, population
from covid3way.simulator.histogram import BIN
from covid3way.simulator.law import LAW, Law
from covid3way.simulator.parameters import Parameters

# Infected voxels that a histogram to be fitted needs: with 200 the volume is known to
# 7 %, and of a consolidation of a tenth of them there are 20.
LEAST_VOXELS = 200
# An invented start holds a tenth of a mask, and nothing is read off its shape.
_LEAST_AT_START = LEAST_VOXELS // 20
# Below this relative loss a fit is good enough to be improved evenly, not by ratios.
_GOOD = 1e-5
_SIGNAL_SCALE = 0.02  # A shift of the histogram by this much counts like e-fold volume.
_SPREAD = 0.5  # Of random starts, in unconstrained units.
_HALVINGS = 16
_RULE = optax.chain(optax.scale_by_lbfgs(), optax.clip_by_global_norm(1.0))


@dataclasses.dataclass(frozen=True)
class FitSettings:
  """How W is searched for.

  Attributes:
    iterations: at most, in each of the two phases.
    restarts: random starts after the law's defaults, as long as nothing found beats
      both trivial predictors; the best result is kept.
    patience: a phase ends when this many iterations together have improved the
      objective, about the logarithm of the loss, by less than `tolerance`.
    tolerance: see `patience`.
    seed: of the random starts.
  """

  iterations: int = 100
  restarts: int = 1
  patience: int = 10
  tolerance: float = 1e-2
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Fit:
  """W and how good it is.

  Attributes:
    w: scalars.
    loss: Eq. (3) of the fitted law.
    relative_loss: over the integral of the observed F^2.
    copy_last_loss: Eq. (3) of the first histogram as it is.
    scaled_loss: Eq. (3) of the first histogram scaled to the second's volume.
    predicted: (850,) counts.
    history: relative loss per iteration, of the start that won.
  """

  w: Parameters
  loss: float
  relative_loss: float
  copy_last_loss: float
  scaled_loss: float
  predicted: np.ndarray
  history: np.ndarray

  @property
  def better(self) -> bool:
    """Whether the law beats both trivial predictors."""
    return self.loss < min(self.copy_last_loss, self.scaled_loss)


def fit(
  observed_from: np.ndarray,
  observed_to: np.ndarray,
  transitions: int,
  *,
  law: Law = LAW,
  settings: FitSettings = FitSettings(),
  subject: str = 'histograms',
  report: Callable[[int, float], None] | None = None,
) -> Fit:
  """The W under which one histogram becomes the other.

  Args:
    observed_from: (850,) infected voxels per bin of `histogram.bin_edges()`.
    observed_to: the same, `transitions` later.
    transitions: > 0.
    law: the model.
    settings: of the search.
    subject: patient and pair, for messages.
    report: called with (iteration, relative loss), counted over all starts.

  Raises:
    SerialError: nothing can be fitted to these histograms.
  """
  before = _checked(observed_from, _LEAST_AT_START, subject)
  after = _checked(observed_to, LEAST_VOXELS, subject)
  if transitions < 1:
    raise base.SerialError(
      subject, f'{transitions} transitions between the scans', 'give scans in order'
    )
  trivial = before, before * (after.sum() / before.sum())
  trivial_losses = [float(population.loss(p, after)) for p in trivial]
  enough = min(float(population.relative_loss(p, after)) for p in trivial)
  longest = population.longest_for(transitions)
  pair = jnp.asarray(before), jnp.asarray(after)
  objective = functools.partial(
    _objective, *pair, transitions, law=law, longest=longest
  )
  found, iteration = [], 0
  for start in _starts(law, settings):
    path = []
    for free, value in _search(objective, start, settings):
      path.append((free, value))
      if report is not None:
        report(iteration, value)
      iteration += 1
    found.append(path)
    if path[-1][1] < enough:
      break
  path = min(found, key=lambda path: path[-1][1])
  free, history = path[-1][0], [value for _, value in path]
  w = parameters.from_free(free, law.parameters, law.bounds)
  predicted = population.evolve(w, before, transitions, law)
  return Fit(
    w,
    float(population.loss(predicted, after)),
    float(population.relative_loss(predicted, after)),
    *trivial_losses,
    np.asarray(predicted),
    np.array(history),
  )


def _checked(counts: np.ndarray, least: int, subject: str) -> np.ndarray:
  counts = np.asarray(counts, np.float32)
  if not np.isfinite(counts).all() or (counts < 0).any():
    raise base.SerialError(
      subject, 'a histogram with counts not finite or negative', 'check the signals'
    )
  if counts.sum() < least:
    raise base.SerialError(
      subject,
      f'{counts.sum():.0f} infected voxels',
      f'at least {least} are needed: leave the scan out, or use a finer space',
    )
  return counts


def _starts(law: Law, settings: FitSettings) -> Iterator[jax.Array]:
  """The law's defaults, then random W around them; unconstrained."""
  default = parameters.to_free(law.parameters(), law.bounds)
  yield default
  keys = jax.random.split(jax.random.key(settings.seed), max(settings.restarts, 1))
  for key in keys[: settings.restarts]:
    yield default + _SPREAD * jax.random.normal(key, default.shape)


@functools.partial(jax.jit, static_argnames=('law', 'longest'))
@functools.partial(jax.value_and_grad, argnums=3, has_aux=True)
def _objective(before, after, transitions, free, fine, *, law, longest):
  """What a phase descends on; the relative loss beside it."""
  w = parameters.from_free(free, law.parameters, law.bounds)
  predicted = population.evolve(w, before, transitions, law, longest=longest)
  relative = population.relative_loss(predicted, after)
  total, observed = jnp.maximum(jnp.sum(predicted), 1e-6), jnp.sum(after)
  apart = jnp.cumsum(predicted) / total - jnp.cumsum(after) / observed
  area = jnp.sum(apart**2) * BIN / _SIGNAL_SCALE
  coarse = area + jnp.log(total / observed) ** 2
  return jnp.where(fine, jnp.log(relative + _GOOD), coarse), relative


def _search(
  objective: Callable, free: jax.Array, settings: FitSettings
) -> Iterator[tuple[jax.Array, float]]:
  """Yields W, unconstrained, and its relative loss, after every iteration."""
  for fine in (False, True):
    values = []
    descent = _descend(functools.partial(objective, fine=fine), free)
    for free, value, relative in itertools.islice(descent, settings.iterations):
      yield free, relative
      values.append(value)
      recent = values[-1 - settings.patience :]
      if len(recent) > settings.patience and recent[0] - value < settings.tolerance:
        break


@jax.jit
def _propose(gradient, memory, free):
  """Where to descend, how steeply, and the memory of L-BFGS."""
  direction, memory = _RULE.update(gradient, memory, free)
  return direction, jnp.vdot(gradient, direction), memory


def _descend(
  objective: Callable, free: jax.Array
) -> Iterator[tuple[jax.Array, float, float]]:
  """L-BFGS whose steps are halved until they descend; ends where none does."""
  (value, relative), gradient = objective(free)
  yield free, float(value), float(relative)
  memory, fresh = _RULE.init(free), True
  while True:
    direction, slope, memory = _propose(gradient, memory, free)
    slope = float(slope)
    for rate in 0.5 ** np.arange(_HALVINGS):
      trial = free - rate * direction
      (trial_value, relative), trial_gradient = objective(trial)
      if trial_value <= value - 1e-4 * rate * slope:
        break
    else:
      if fresh:
        return
      # Remembered curvature may mislead; the gradient alone does not.
      memory, fresh = _RULE.init(free), True
      continue
    free, value, gradient, fresh = trial, trial_value, trial_gradient, False
    yield free, float(value), float(relative)
