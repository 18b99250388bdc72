"""The population law: F(t + 1) = K(W) F(t), F the histogram of infected signals.

Births depend only on the number of ground-glass voxels, and T_S treats voxels
independently, so the expected histogram needs no image. It is the fast way to the loss
L(W) of Eq. (3), and differentiable in W. K is built from the functions that move voxels
(`law`); nothing of the model is written twice.

Three things make it exact where a plain histogram would not be. The transition density
is integrated over the bins. A bin's mass sits at its centre, which adds BIN^2 / 12 of
variance in every transition, so the noise is reduced by as much (Sheppard's
correction). And the thresholds 0 and -0.15 are edges of bins. What remains: a start
that lies all at -0.15 is spread over two bins, at the cost of 1 to 2 % of its volume.

Signals outside [-0.25, 0.6] count in the end bins, as they do in an observed histogram.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from covid3way.simulator import histogram
from covid3way.simulator import law as rules
from covid3way.simulator.histogram import BIN, bin_edges, normal_mass
from covid3way.simulator.law import LAW, Law
from covid3way.simulator.parameters import Parameters

# K is kept as tiles of 64 source bins, each with its own and its two neighbours'
# target bins: 20 % of K, and no voxel moves more than 0.064 in one transition. That is
# five standard deviations of the greatest noise, and far more of any that is fitted;
# what would move further, a study's drift included, stops at the end of the tiles.
TILE = 64
_EDGES = bin_edges()
_BINS = len(_EDGES) - 1
_TILES = -(-_BINS // TILE)
_SOURCE = (np.arange(_TILES * TILE) + 0.5) * BIN + _EDGES[0]
_SOURCE = _SOURCE.reshape(_TILES, TILE)
_WINDOW = np.arange(-TILE, 2 * TILE + 1) + np.arange(_TILES)[:, None] * TILE
_TARGET = (_WINDOW[:, :-1] + 0.5) * BIN + _EDGES[0]
# Nothing arrives beyond the end bins. (Infinite edges would have NaN for gradients.)
_FAR = 1e3
_TARGET_EDGES = np.select(
  [_WINDOW <= 0, _WINDOW >= _BINS], [-_FAR, _FAR], _WINDOW * BIN + _EDGES[0]
)
_IS_HELD = np.abs(_TARGET - rules.HELD) < BIN / 2
_GIVES_BIRTH = _SOURCE < rules.STAGE
_NEWBORN = np.pad(histogram.counts([rules.NEWBORN]), (0, _TILES * TILE - _BINS))
_NEWBORN = _NEWBORN.reshape(_TILES, TILE).astype(np.float32)


def evolve(
  w: Parameters,
  counts: jax.Array,
  transitions: int | jax.Array,
  law: Law = LAW,
) -> jax.Array:
  """F_hat = K(W)^n F: the expected histogram after n transitions.

  Differentiable in `w`; in `counts` forward (`jax.jvp`, `jax.jacfwd`).

  Args:
    w: parameters, scalars.
    counts: (850,) voxels per bin of `bin_edges()`.
    transitions: n >= 0.
    law: the model.

  Returns:
    (850,) expected counts.
  """
  return _evolve(w, counts, transitions, law)


def loss(predicted: jax.Array, observed: jax.Array) -> jax.Array:
  """Eq. (3): integral of (F_hat - F)^2 over the signal, F in voxels per signal unit."""
  return jnp.sum((predicted - observed) ** 2, axis=-1) / BIN


def relative_loss(predicted: jax.Array, observed: jax.Array) -> jax.Array:
  """Eq. (3) over the integral of F^2; an empty F counts as one voxel."""
  return loss(predicted, observed) / jnp.maximum(loss(0.0, observed), 1 / BIN)


def transition_tiles(w: Parameters, law: Law = LAW) -> jax.Array:
  """K(W) without its births, (tile, source bin, target bin of three tiles).

  A row holds where the voxels of one bin are after one transition; what is missing to
  1 has recovered.
  """
  dtype = jnp.result_type(float)
  before = jnp.asarray(_SOURCE, dtype)[:, :, None]
  after = jnp.asarray(_TARGET, dtype)[:, None]
  mean = rules.propose(before, jnp.zeros_like(before), w, law)
  deviation = jnp.sqrt(w.noise**2 - BIN**2 / 12)
  mass = normal_mass(mean, deviation, jnp.asarray(_TARGET_EDGES, dtype)[:, None])
  reaches = rules.reaches(before, after)
  held = jnp.sum(jnp.where(reaches, mass, 0), axis=2, keepdims=True)
  mass = jnp.where(reaches, w.conversion * mass, mass)
  mass += (1 - w.conversion) * held * _IS_HELD[:, None]
  return jnp.where(rules.survives(after), mass, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnames='law')
def _evolve(w, counts, transitions, law):
  k = transition_tiles(w, law), w.growth
  step = lambda _, state: _apply(k, state)  # noqa: E731
  return _counts(jax.lax.fori_loop(0, transitions, step, _tiled(counts)))


# Written out because the automatic derivative reads those of all of K by every
# parameter in every transition; this one reads them once a day.
@functools.partial(_evolve.defjvp, symbolic_zeros=True)
def _evolve_jvp(law, primals, tangents):
  w, counts, transitions = primals
  evolved, slopes = _evolve_and_slopes(w, counts, transitions, law)
  by_w = zip(slopes, jax.tree.leaves(tangents[0]), strict=True)
  parts = [s * d for s, d in by_w if not isinstance(d, SymbolicZero)]
  if not isinstance(tangents[1], SymbolicZero):
    parts.append(_evolve(w, tangents[1], transitions, law))
  return evolved, sum(parts)


@functools.partial(jax.jit, static_argnames='law')
def _evolve_and_slopes(w, counts, transitions, law):
  """(850,) counts after `transitions`, and their slopes in p parameters, (p, 850)."""
  leaves, kind = jax.tree.flatten(w)

  def operator(*leaves):
    w = jax.tree.unflatten(kind, leaves)
    return transition_tiles(w, law), w.growth

  k, state = operator(*leaves), _tiled(counts)
  slopes_of_k = jax.jacfwd(operator, argnums=tuple(range(len(leaves))))(*leaves)
  slopes_of_k = tuple(map(jnp.stack, slopes_of_k))
  of_each = jax.vmap(_apply, (None, 0))

  def day(carry):
    start, state, slopes = carry
    stop = jnp.minimum(start + rules.TRANSITIONS_PER_DAY, transitions)

    def keep(t, carry):
      state, states = carry
      return _apply(k, state), states.at[t - start].set(state)

    states = jnp.zeros((rules.TRANSITIONS_PER_DAY, *state.shape), state.dtype)
    state, states = jax.lax.fori_loop(start, stop, keep, (state, states))
    added = jax.vmap(of_each, (0, None), 1)(slopes_of_k, states)
    step = lambda t, slopes: of_each(k, slopes) + added[t - start]  # noqa: E731
    return stop, state, jax.lax.fori_loop(start, stop, step, slopes)

  carry = 0, state, jnp.zeros((len(leaves), *state.shape), state.dtype)
  going = lambda carry: carry[0] < transitions  # noqa: E731
  _, state, slopes = jax.lax.while_loop(going, day, carry)
  return _counts(state), jax.vmap(_counts)(slopes)


def _tiled(counts):
  """(850,) -> (tile, bin)."""
  counts = jnp.asarray(counts, float)
  return jnp.pad(counts, (0, _TILES * TILE - _BINS)).reshape(_TILES, TILE)


def _counts(state):
  """(tile, bin) -> (850,)."""
  return state.ravel()[:_BINS]


def _apply(k, state):
  """K, its tiles and the growth, times (tile, bin) counts; linear in either."""
  tiles, growth = k
  arrived = jnp.einsum('kj,kji->ki', state, tiles)
  lower, same, upper = jnp.split(arrived, 3, axis=1)
  moved = same + _shifted(lower, -1) + _shifted(upper, 1)
  return moved + growth * jnp.sum(state * _GIVES_BIRTH) * _NEWBORN


def _shifted(state, by):
  """Tiles moved up by 1 or down by -1; none comes in."""
  none = jnp.zeros_like(state[:1])
  parts = [none, state[:-1]] if by > 0 else [state[1:], none]
  return jnp.concatenate(parts)
