"""T(W) = (T_S, T_M) on a volume, and the one time loop."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covid3way.base import GeometryError
from covid3way.simulator import blocks as tiles
from covid3way.simulator import law as laws
from covid3way.simulator import noise, parameters, spread
from covid3way.simulator.blocks import EDGE, Blocks, apart, cubes
from covid3way.simulator.parameters import Parameters
from covid3way.simulator.state import Anatomy, Settings, State

# Places tried for satellites in one transition: so many, or one per so many voxels.
_DRAWS, _VOXELS_PER_DRAW = 1024, 2**13
_SMALL = 1024  # Slots that cost less than compiling for fewer.
_SLACK = 64  # One block per so many slots is made active at once.


def run(
  key: jax.Array,
  state: State,
  w: Parameters,
  anatomy: Anatomy,
  settings: Settings,
  *,
  steps: int,
  start: int = 0,
) -> State:
  """Y after `steps` transitions.

  Args:
    key: the same key gives the same bits.
    state: Y before.
    w: parameters, scalars.
    anatomy: of the volume.
    settings: law and morphology.
    steps: transitions; 100 are a day.
    start: number of the first one: going on from a kept state with the same key gives
      what one run over all of them gives.
  """
  return observe(key, state, w, anatomy, settings, steps=steps, start=start)[0]


def observe(
  key: jax.Array,
  state: State,
  w: Parameters,
  anatomy: Anatomy,
  settings: Settings,
  *,
  steps: int,
  start: int = 0,
  what: Callable[[jax.Array, jax.Array], Any] | None = None,
) -> tuple[State, Any]:
  """`run` that also watches every transition.

  Args:
    key: see `run`, like all that follow but the last.
    state: Y before.
    w: parameters.
    anatomy: of the volume.
    settings: law and morphology.
    steps: transitions.
    start: number of the first one.
    what: (signal, infection) of the active blocks, (n, 4, 4, 4) each, after a
      transition -> a pytree of arrays: counts, histograms.

  Returns:
    Y, and the observations, (steps, ...) each.

  Raises:
    ParameterError: W is not finite or outside its bounds.
    GeometryError: state and anatomy are not on one grid.
  """
  w = parameters.check(w, subject='W', bounds=settings.law.bounds)
  shapes = {a.shape for a in jax.tree.leaves((state, anatomy))}
  if len(shapes) > 1:
    found = f'volumes of {" and ".join(map(str, sorted(shapes)))} voxels'
    raise GeometryError('state and anatomy', found, 'give all on one grid')
  needed = _needed(state.infection)
  capacity = _capacity(int(needed.sum()), state.signal.shape)
  held, share = _packed(state, anatomy, settings, needed, capacity)
  walk = functools.partial(_walk, what=what, length=steps if what else 0)
  seen, reached = [], start
  while True:
    begun = reached
    held, reached, part = walk(
      key, held, state, w, anatomy, settings, share, begun, start + steps
    )
    reached = int(reached)
    seen.append(jax.tree.map(lambda a, n=reached - begun: np.asarray(a[:n]), part))
    if reached == start + steps:
      break
    capacity = _capacity(capacity + 1, state.signal.shape)
    held = _enlarged(held, state, anatomy, capacity)
  state = _unpacked(held, state)
  return state, jax.tree.map(lambda *parts: np.concatenate(parts), *seen)


@functools.partial(jax.jit, static_argnames=('settings', 'capacity', 'what', 'length'))
def advance(
  key: jax.Array,
  state: State,
  w: Parameters,
  anatomy: Anatomy,
  settings: Settings,
  start: jax.typing.ArrayLike,
  stop: jax.typing.ArrayLike,
  *,
  capacity: int,
  what: Callable | None = None,
  length: int = 0,
) -> tuple[State, jax.Array, Any]:
  """Transitions `start` to `stop`, as many as `capacity` suffices for.

  `observe` without the loop that makes room: a pure function that may be compiled into
  another and run under `vmap`, one patient per row.

  Args:
    key: see `run`, like the next four.
    state: Y before.
    w: parameters; not checked.
    anatomy: of the volume.
    settings: law and morphology.
    start: number of the first transition.
    stop: number of the first one that is not run.
    capacity: blocks of 4 x 4 x 4 voxels that the infection may lie in or touch; as many
      as the volume has are always enough.
    what: see `observe`.
    length: of the observations' buffer, `stop` - `start`; 0 without `what`.

  Returns:
    Y, the transition reached (less than `stop` when one needs more blocks than there
    are), and the observations, (length, ...) each.
  """
  needed = tiles.needed_for(state.infection)
  held, fits = tiles.pack(state, anatomy, needed, capacity)
  stop = jnp.where(fits, stop, start)
  held, reached, seen = _walk(
    key, held, state, w, anatomy, settings, _share(anatomy, settings), start, stop,
    what=what, length=length,
  )  # fmt: skip
  return tiles.unpack(held, state), reached, seen


@functools.partial(jax.jit, static_argnames=('settings', 'what', 'length'))
def _walk(
  key, held, state, w, anatomy, settings, share, start, stop, *, what, length
) -> tuple[Blocks, jax.Array, Any]:
  """`advance` of blocks that are packed; `state` is the volume as it was then."""
  capacity, total = len(held.number), len(held.slot) - 1
  most = max(capacity // _SLACK, 8)
  watch = lambda held: what(cubes(held.signal), cubes(held.infection))  # noqa: E731
  watched = jax.eval_shape(watch, held) if what else None
  seen = jax.tree.map(lambda a: jnp.zeros((length, *a.shape), a.dtype), watched)

  def going(carry):
    _, t, fits, _ = carry
    return fits & (t < stop)

  def body(carry):
    held, t, _, seen = carry
    here = jax.random.fold_in(key, t)
    seeds, elsewhere = _satellites(here, held, w, anatomy, settings, share)
    step = lambda held: transition(  # noqa: E731
      here, held, w, anatomy.spacing_mm, settings, seeds, elsewhere
    )
    fits = t < stop
    if capacity < total:  # Else all blocks are active.
      needed = jnp.concatenate([apart(tiles.needed_by, held), _blocks_of(seeds, held)])
      held, fits = tiles.activate(held, needed, state, anatomy, most)
    held = jax.lax.cond(fits, step, lambda held: held, held)
    if what:
      now = watch(held)
      seen = jax.tree.map(lambda s, o: s.at[t - start].set(o, mode='drop'), seen, now)
    return held, t + fits, fits, seen

  carry = held, jnp.int32(start), jnp.array(True), seen
  held, reached, _, seen = jax.lax.while_loop(going, body, carry)
  return held, reached, seen


def transition(
  key: jax.Array,
  held: Blocks,
  w: Parameters,
  spacing_mm: tuple[float, float, float],
  settings: Settings,
  seeds: jax.Array,
  elsewhere: jax.typing.ArrayLike,
) -> Blocks:
  """T(W) on active blocks: births, then the voxels that were infected before.

  "the signal intensities for normal voxels are invariant during the transition" (paper,
  Section III-C): what is neither infected nor born keeps its bits.

  Args:
    key: of this transition.
    held: active blocks; those that an infected voxel touches are among them.
    w: parameters.
    spacing_mm: of the voxels.
    settings: law and morphology.
    seeds: (m, 3) voxels where satellites are born; none if beyond the volume.
    elsewhere: how many satellites were expected; the other births are beside lesions.
  """
  law, before = settings.law, held.signal
  pitch = noise.pitch_for(settings.noise_mm, spacing_mm)
  # u serves two: a voxel is either infected (may convert) or not (may be born).
  z, u = apart(lambda held: noise.draw(key, held, pitch), held)
  ggo = held.infection & (before < laws.STAGE)

  born = _at(seeds, held) & (held.weight > 0) & ~held.infection
  expected = jnp.maximum(w.growth * tiles.count(ggo) - elsewhere, 0)
  born |= u < _births(held, ggo, expected, settings.clustering)

  proposed = apart(lambda s, z, w: laws.propose(s, z, w, law), before, z, w)
  passes = u < _conversion(held, proposed, w, settings)
  after = laws.settle(before, proposed, passes)
  signal = jnp.where(held.infection, after, jnp.where(born, laws.NEWBORN, before))
  infection = jnp.where(held.infection, laws.survives(after), born)
  return held.replace(signal=signal.astype(jnp.float32), infection=infection)


def _births(held: Blocks, ggo: jax.Array, expected: jax.Array, clustering: float):
  """Chance of every voxel to be born beside ground glass, (n, 64)."""
  neighbours = tiles.neighbourhood(held, ggo)
  weight = held.weight * spread.crowding(neighbours, clustering)
  weight = jnp.where(held.infection, 0, weight)
  return spread.chances(weight, expected)


def _conversion(held: Blocks, proposed: jax.Array, w: Parameters, settings: Settings):
  """Chance to pass 0, with mean `conversion` over the voxels that reach it."""
  if not settings.consolidation_clustering:
    return w.conversion
  reaching = held.infection & laws.reaches(held.signal, proposed)
  consolidated = held.infection & (held.signal >= laws.STAGE)
  neighbours = tiles.neighbourhood(held, consolidated)
  power = settings.consolidation_clustering
  weight = jnp.where(reaching, spread.attraction(neighbours, power), 0)
  return spread.chances(weight, w.conversion * tiles.count(reaching))


def _share(anatomy: Anatomy, settings: Settings) -> jax.Array:
  """Mean over the volume of how readily a voxel is infected, for `_satellites`."""
  if not settings.seeding:
    return jnp.float32(0)  # There are none, and the sum takes long.
  if anatomy.prior is None:
    total = tiles.count(anatomy.susceptible).astype(jnp.float32)
  else:
    weight = anatomy.susceptible * anatomy.prior
    total = spread.exact_sum(weight.reshape(-1, weight.shape[-1]))
  return total / anatomy.susceptible.size


def _satellites(
  key, held, w, anatomy, settings, share
) -> tuple[jax.Array, jax.typing.ArrayLike]:
  """Voxels anywhere in the susceptible lung, `seeding` of all births expected.

  What falls onto a lesion is none, and there are at most as many as places tried times
  `share`: 1,300 for lungs of 4.6 l at 512 x 512 x 512 voxels. Births that this costs
  take place beside the lesions.

  Returns:
    (m, 3), rows beyond the volume are no satellites; and how many were expected.
  """
  if not settings.seeding:
    return jnp.zeros((0, 3), jnp.int32), 0
  size = anatomy.susceptible.size
  draws = max(_DRAWS, size // _VOXELS_PER_DRAW)
  beyond = EDGE * jnp.array(held.grid)
  ggo = tiles.count(held.infection & (held.signal < laws.STAGE))
  chance = w.growth * ggo * settings.seeding / (draws * jnp.maximum(share, 1e-9))
  chance = jnp.minimum(chance, 1)
  shape = jnp.array(anatomy.susceptible.shape)
  u = jnp.stack(noise.uniforms(key, jnp.arange(2 * draws), noise.SATELLITES))
  u = u.reshape(4, draws)
  at = (u[:3].T * shape).astype(jnp.int32)
  where = tuple(at.T)
  weight = anatomy.susceptible[where].astype(jnp.float32)
  if anatomy.prior is not None:
    weight *= anatomy.prior[where]
  chosen = u[3] < chance * weight
  taken = spread.exact_sum(jnp.where(held.infection, held.weight, 0)) / size
  expected = chance * draws * jnp.maximum(share - taken, 0)
  return jnp.where(chosen[:, None], at, beyond), expected


def _blocks_of(seeds: jax.Array, held: Blocks) -> jax.Array:
  """(m,) int32 numbers of the blocks of (m, 3) voxels; beyond the grid if these are."""
  _, gy, gz = held.grid
  x, y, z = seeds.T // EDGE
  return jnp.minimum((x * gy + y) * gz + z, len(held.slot) - 1)


def _at(seeds: jax.Array, held: Blocks) -> jax.Array:
  """(n, 64) bool: the voxels of (m, 3)."""
  x, y, z = seeds.T % EDGE
  mask = jnp.zeros_like(held.infection)
  where = held.slot[_blocks_of(seeds, held)], (x * EDGE + y) * EDGE + z
  return mask.at[where].set(True, mode='drop')


@functools.partial(jax.jit, static_argnames=('settings', 'capacity'))
def _packed(state, anatomy, settings, needed, capacity) -> tuple[Blocks, jax.Array]:
  """Blocks, and the share of `_satellites`, which a course needs once."""
  return tiles.pack(state, anatomy, needed, capacity)[0], _share(anatomy, settings)


_needed = jax.jit(tiles.needed_for)
_enlarged = jax.jit(tiles.enlarge, static_argnames='capacity')
_unpacked = jax.jit(tiles.unpack)


def _capacity(needed: int, shape: tuple[int, int, int]) -> int:
  """Slots for so many blocks: room to grow, few sizes to compile for."""
  size = max(1.5 * needed / _SMALL, 1)
  step = 2 if size <= 2 else 1.25
  size = _SMALL * step ** np.ceil(np.log(size) / np.log(step))
  return int(min(size, np.prod(tiles.grid_of(shape))))
