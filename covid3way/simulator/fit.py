"""The fit of W: min over W of L(W), Eq. (3), between two observed histograms.

Two phases of Levenberg-Marquardt. Eq. (3) alone is a poor guide from afar: while the
peaks do not overlap it hardly depends on where they are, and it falls to the integral
of F^2 when the infection dies out altogether. So the first phase compares how many
voxels there are and where the cumulative histograms run, and only the second follows
Eq. (3).
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
# Damping to begin with; what a step that fails multiplies it by, and one that descends.
_DAMPING, _MORE, _LESS = 1e-3, 4.0, 0.1
_LONGEST = 1.5  # A step beyond which slopes are not believed, in unconstrained units.
_TRIALS = 16


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
  patience: int = 3
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
  pair = jnp.asarray(before), jnp.asarray(after), transitions
  functions = [functools.partial(f, *pair, law=law) for f in (_residuals, _slopes)]
  found, iteration = [], 0
  for start in _starts(law, settings):
    path = []
    for free, value in _search(*functions, start, settings):
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


def _starts(law: Law, settings: FitSettings) -> Iterator[np.ndarray]:
  """The law's defaults, then random W around them; unconstrained."""
  default = np.asarray(parameters.to_free(law.parameters(), law.bounds))
  yield default
  keys = jax.random.split(jax.random.key(settings.seed), max(settings.restarts, 1))
  for key in keys[: settings.restarts]:
    yield default + _SPREAD * np.asarray(jax.random.normal(key, default.shape))


@functools.partial(jax.jit, static_argnames='law')
def _residuals(before, after, transitions, free, fine, *, law):
  """(851,) of which a phase makes the sum of squares small; the relative loss."""
  w = parameters.from_free(free, law.parameters, law.bounds)
  predicted = population.evolve(w, before, transitions, law)
  total, observed = jnp.maximum(jnp.sum(predicted), 1e-6), jnp.sum(after)
  apart = jnp.cumsum(predicted) / total - jnp.cumsum(after) / observed
  apart *= np.sqrt(BIN / _SIGNAL_SCALE)
  coarse = jnp.append(apart, jnp.log(total / observed))
  exact = jnp.append(predicted - after, 0) / jnp.linalg.norm(after)
  return jnp.where(fine, exact, coarse), population.relative_loss(predicted, after)


_slopes = jax.jit(
  jax.jacfwd(_residuals, argnums=3, has_aux=True), static_argnames='law'
)


def _search(
  residuals: Callable, slopes: Callable, free: np.ndarray, settings: FitSettings
) -> Iterator[tuple[np.ndarray, float]]:
  """Yields W, unconstrained, and its relative loss, after every iteration."""
  for fine in (False, True):
    values = []
    functions = [functools.partial(f, fine=fine) for f in (residuals, slopes)]
    descent = _descend(*functions, free)
    for free, squares, relative in itertools.islice(descent, settings.iterations):
      yield free, relative
      values.append(np.log(squares + _GOOD) if fine else squares)
      first, *recent = values[-1 - settings.patience :]
      if len(recent) == settings.patience and first - recent[-1] < settings.tolerance:
        break


def _gauss_newton() -> optax.GradientTransformationExtraArgs:
  """The gradient of half a sum of squares -> Levenberg and Marquardt's step.

  Its update is also given `slopes`, of the residuals (n, p), and `damping`, over the
  square of their greatest singular value.
  """

  def update(gradient, state, params=None, *, slopes, damping):
    del params
    _, s, v = np.linalg.svd(slopes, full_matrices=False)
    return -(v @ gradient / (s**2 + damping * s[0] ** 2)) @ v, state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _descend(
  residuals: Callable, slopes: Callable, free: np.ndarray
) -> Iterator[tuple[np.ndarray, float, float]]:
  """Levenberg-Marquardt: yields W, the sum of squares, the relative loss.

  It ends where no step descends.
  """
  damping, (found, relative) = _DAMPING, jax.device_get(residuals(free))
  rule = _gauss_newton()
  state = rule.init(free)
  while True:
    yield free, float(found @ found), float(relative)
    at = jax.device_get(slopes(free)[0])
    for _ in range(_TRIALS):
      step, state = rule.update(found @ at, state, slopes=at, damping=damping)
      if np.linalg.norm(step) < _LONGEST:
        trial = optax.apply_updates(free, step)
        there, relative = jax.device_get(residuals(trial))
        if there @ there < found @ found:
          break
      damping *= _MORE
    else:
      return
    free, found, damping = trial, there, damping * _LESS
