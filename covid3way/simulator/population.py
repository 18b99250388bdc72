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
  *,
  longest: int | None = None,
) -> jax.Array:
  """F_hat = K(W)^n F: the expected histogram after n transitions.

  Differentiable in `w` and `counts`.

  Args:
    w: parameters, scalars.
    counts: (850,) voxels per bin of `bin_edges()`.
    transitions: n >= 0.
    law: the model.
    longest: a number that n never exceeds, needed only when n is traced. Memory for
      a gradient follows it.

  Returns:
    (850,) expected counts.
  """
  if longest is None:
    longest = longest_for(transitions)
  return _evolve(w, counts, transitions, law, longest)


def longest_for(transitions: int) -> int:
  """A `longest` shared by many n, or every n would be compiled anew."""
  return max(512, 1 << (int(transitions) - 1).bit_length())


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


@functools.partial(jax.jit, static_argnames=('law', 'longest'))
def _evolve(w, counts, transitions, law, longest):
  state = jnp.pad(jnp.asarray(counts, float), (0, _TILES * TILE - _BINS))
  state = state.reshape(_TILES, TILE)
  tiles, growth = transition_tiles(w, law), jnp.asarray(w.growth, float)
  return _repeat(tiles, growth, state, transitions, longest).ravel()[:_BINS]


# The gradient is written out because the automatic one adds an outer product to the
# whole of K in every transition; this one forms those of many transitions at once.
_AT_ONCE = 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _repeat(tiles, growth, state, transitions, longest):
  """`transitions` times K applied to (tile, bin) counts."""
  del longest
  step = lambda _, state: _apply(tiles, growth, state)  # noqa: E731
  return jax.lax.fori_loop(0, transitions, step, state)


def _repeat_forward(tiles, growth, state, transitions, longest):
  def step(t, carry):
    state, states = carry
    return _apply(tiles, growth, state), states.at[t].set(state)

  states = jnp.zeros((longest, *state.shape), state.dtype)
  state, states = jax.lax.fori_loop(0, transitions, step, (state, states))
  return state, (tiles, growth, states, transitions)


def _repeat_backward(longest, residuals, adjoint):
  at_once = min(_AT_ONCE, longest)
  tiles, growth, states, transitions = residuals

  def stretch(carry):
    stop, adjoint, for_tiles, for_growth = carry
    start = jnp.maximum(stop - at_once, 0)

    def step(i, carry):
      adjoint, adjoints = carry
      adjoints = adjoints.at[stop - 1 - i - start].set(adjoint)
      return _apply_transposed(tiles, growth, adjoint), adjoints

    adjoints = jnp.zeros((at_once, *adjoint.shape), adjoint.dtype)
    adjoint, adjoints = jax.lax.fori_loop(0, stop - start, step, (adjoint, adjoints))
    before = jax.lax.dynamic_slice_in_dim(states, start, at_once)
    flat = jnp.pad(adjoints.reshape(at_once, -1), ((0, 0), (TILE, TILE)))
    products = [
      before[:, k].T @ flat[:, k * TILE : (k + 3) * TILE] for k in range(_TILES)
    ]
    mothers = jnp.sum(before * _GIVES_BIRTH, axis=(1, 2))
    births = jnp.sum(mothers * jnp.sum(adjoints * _NEWBORN, axis=(1, 2)))
    return start, adjoint, for_tiles + jnp.stack(products), for_growth + births

  carry = transitions, adjoint, jnp.zeros_like(tiles), jnp.zeros_like(growth)
  _, adjoint, for_tiles, for_growth = jax.lax.while_loop(
    lambda carry: carry[0] > 0, stretch, carry
  )
  return for_tiles, for_growth, adjoint, None


_repeat.defvjp(_repeat_forward, _repeat_backward)


def _apply(tiles, growth, state):
  arrived = jnp.einsum('kj,kji->ki', state, tiles)
  lower, same, upper = jnp.split(arrived, 3, axis=1)
  moved = same + _shifted(lower, -1) + _shifted(upper, 1)
  return moved + growth * jnp.sum(state * _GIVES_BIRTH) * _NEWBORN


def _apply_transposed(tiles, growth, adjoint):
  moved = jnp.einsum('kji,ki->kj', tiles, _windows(adjoint))
  return moved + growth * jnp.sum(adjoint * _NEWBORN) * _GIVES_BIRTH


def _windows(state):
  """(tile, bin) -> (tile, bin of three tiles): every tile between its neighbours."""
  return jnp.concatenate([_shifted(state, 1), state, _shifted(state, -1)], axis=1)


def _shifted(state, by):
  """Tiles moved up by 1 or down by -1; none comes in."""
  none = jnp.zeros_like(state[:1])
  parts = [none, state[:-1]] if by > 0 else [state[1:], none]
  return jnp.concatenate(parts)
