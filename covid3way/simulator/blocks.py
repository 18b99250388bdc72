"""The volume as blocks of 4 x 4 x 4 voxels, of which only the active ones are kept.

A block is active when an infected voxel lies in it or touches it, so that all that can
change in a transition lies in active blocks; work follows the infection and its
frontier, not the volume.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from covid3way.simulator.state import Anatomy, State

EDGE = 4
_AXES = (1, 2, 3)
_ROW = 64
_OFFSETS = np.array(list(itertools.product((-1, 0, 1), repeat=3)))


@struct.dataclass
class Blocks:
  """Active blocks in slots; unused slots hold nothing infected nor susceptible.

  Attributes:
    signal: (n, 4, 4, 4) float32.
    infection: (n, 4, 4, 4) bool.
    weight: (n, 4, 4, 4) float32, how readily a voxel is infected, 0 to 1; 0 where it
      is not susceptible.
    number: (n,) int32, which block of the grid lies in a slot; beyond the grid when the
      slot is unused.
    slot: (grid blocks + 1,) int32, where a block lies; n when it is not active.
    used: slots in use.
    grid: blocks along x, y, z.
  """

  signal: jax.Array
  infection: jax.Array
  weight: jax.Array
  number: jax.Array
  slot: jax.Array
  used: jax.Array
  grid: tuple[int, int, int] = struct.field(pytree_node=False)


def grid_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
  """Blocks along each axis; the last ones may reach beyond the volume."""
  return tuple(-(-n // EDGE) for n in shape)


def needed_for(infection: jax.Array) -> jax.Array:
  """(x, y, z) bool -> (grid blocks,) bool: blocks that infection lies in or touches."""
  gx, gy, gz = grid_of(infection.shape)
  sides = _padded(infection).reshape(gx, EDGE, gy, EDGE, gz, EDGE)
  for axis in (5, 3, 1):
    sides = _ends(sides, axis)
  sides = jnp.pad(sides, [(1, 1) if axis % 2 == 0 else (0, 0) for axis in range(6)])
  needed = jnp.zeros((gx, gy, gz), bool)
  for x, y, z in _OFFSETS + 1:  # Seen from a block: its neighbours' opposite ends.
    needed |= sides[x : x + gx, 2 - x, y : y + gy, 2 - y, z : z + gz, 2 - z]
  return needed.ravel()


def pack(state: State, anatomy: Anatomy, capacity: int) -> tuple[Blocks, jax.Array]:
  """Blocks for a state, and whether `capacity` slots were enough for them.

  With a slot for every block of the grid, all are active from the start.
  """
  grid = grid_of(state.signal.shape)
  total = int(np.prod(grid))
  shape = (capacity, EDGE, EDGE, EDGE)
  empty = Blocks(
    signal=jnp.zeros(shape, jnp.float32),
    infection=jnp.zeros(shape, bool),
    weight=jnp.zeros(shape, jnp.float32),
    number=jnp.full(capacity, total, jnp.int32),
    slot=jnp.full(total + 1, capacity, jnp.int32),
    used=jnp.int32(0),
    grid=grid,
  )
  needed = jnp.ones(total, bool) if capacity >= total else needed_for(state.infection)
  return activate(empty, needed, state, anatomy, capacity)


def unpack(blocks: Blocks, state: State) -> State:
  """`state` with what the blocks hold written over it."""
  shape = state.signal.shape
  at = coordinates(blocks.number, blocks.grid) * EDGE
  index = at[:, :, None] + jnp.arange(EDGE)
  # Unused slots lie beyond the volume, and so does the overhang of the last blocks.
  used = blocks.number < np.prod(blocks.grid)
  x = jnp.where(used[:, None], index[:, 0], shape[0])[:, :, None, None]
  where = x, index[:, 1, None, :, None], index[:, 2, None, None, :]
  return State(
    signal=state.signal.at[where].set(blocks.signal, mode='drop'),
    infection=state.infection.at[where].set(blocks.infection, mode='drop'),
  )


def activate(
  blocks: Blocks, needed: jax.Array, state: State, anatomy: Anatomy, most: int
) -> tuple[Blocks, jax.Array]:
  """Gives slots to blocks that are needed and not active yet.

  Args:
    blocks: active so far.
    needed: (grid blocks,) bool.
    state: the volume, as it was when none of the new blocks was active.
    anatomy: of the volume.
    most: new blocks at once.

  Returns:
    The blocks, and whether all that are needed are active now; if not, none was added.
  """
  capacity, total = len(blocks.number), len(blocks.slot) - 1
  new = needed & (blocks.slot[:total] == capacity)
  count = new.sum(dtype=jnp.int32)
  fits = (count <= most) & (blocks.used + count <= capacity)

  def add(blocks):
    number = _first(new, most)
    rank = jnp.arange(most, dtype=jnp.int32)
    place = jnp.where(number < total, blocks.used + rank, capacity)
    signal, infection, weight = _gather(number, blocks.grid, state, anatomy)
    return blocks.replace(
      signal=blocks.signal.at[place].set(signal, mode='drop'),
      infection=blocks.infection.at[place].set(infection, mode='drop'),
      weight=blocks.weight.at[place].set(weight, mode='drop'),
      number=blocks.number.at[place].set(number, mode='drop'),
      slot=blocks.slot.at[number].set(place).at[total].set(capacity),
      used=blocks.used + count,
    )

  blocks = jax.lax.cond(fits & (count > 0), add, lambda blocks: blocks, blocks)
  return blocks, fits


def needed_by(blocks: Blocks) -> jax.Array:
  """`needed_for` of the infection in the blocks."""
  sides = blocks.infection
  for axis in _AXES:
    sides = _ends(sides, axis)
  total = len(blocks.slot) - 1
  at = _neighbour(blocks, _OFFSETS)
  return jnp.zeros(total + 1, bool).at[at.ravel()].max(sides.ravel())[:total]


def neighbourhood(blocks: Blocks, mask: jax.Array) -> jax.Array:
  """How many voxels of the 3 x 3 x 3 cube around each are in a mask, itself included.

  Args:
    blocks: whose slots the mask uses; all blocks that the mask touches are active.
    mask: (n, 4, 4, 4) bool.

  Returns:
    (n, 4, 4, 4) uint8. Outside the volume there is nothing.
  """
  count = mask.astype(jnp.uint8)
  for axis in _AXES:
    offset = np.eye(3, dtype=int)[axis - 1]
    slots = blocks.slot[_neighbour(blocks, np.stack([-offset, offset]))]
    last = jax.lax.index_in_dim(count, EDGE - 1, axis)
    first = jax.lax.index_in_dim(count, 0, axis)
    low, high = (
      jnp.take(face, at, axis=0, mode='fill', fill_value=0)
      for face, at in ((last, slots[:, 0]), (first, slots[:, 1]))
    )
    line = jnp.concatenate([low, count, high], axis=axis)
    count = sum(jax.lax.slice_in_dim(line, i, i + EDGE, axis=axis) for i in range(3))
  return count


def _first(mask: jax.Array, most: int) -> jax.Array:
  """Where a mask (m,) is true, at most `most` times: (most,) int32, filled up with m.

  Only rows of it with something in them are searched voxel by voxel.
  """
  m = len(mask)
  rows = jnp.pad(mask, (0, -m % _ROW)).reshape(-1, _ROW)
  (row,) = jnp.nonzero(rows.any(axis=1), size=most, fill_value=len(rows))
  found = jnp.take(rows, row, axis=0, mode='fill', fill_value=False).ravel()
  (place,) = jnp.nonzero(found, size=most, fill_value=most * _ROW)
  row = jnp.append(row, len(rows))[place // _ROW]
  return jnp.minimum(row * _ROW + place % _ROW, m).astype(jnp.int32)


def _ends(mask: jax.Array, axis: int) -> jax.Array:
  """Along an axis: its first voxel, any of them, its last."""
  first, last = (jax.lax.index_in_dim(mask, i, axis) for i in (0, EDGE - 1))
  return jnp.concatenate([first, mask.any(axis, keepdims=True), last], axis)


def coordinates(number: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
  """(n,) block numbers -> (n, 3) int32 places in the grid."""
  return jnp.stack(
    [number // (grid[1] * grid[2]), number // grid[2] % grid[1], number % grid[2]],
    axis=-1,
  )


def _neighbour(blocks: Blocks, offsets: np.ndarray) -> jax.Array:
  """(n, k) numbers of the blocks at k offsets; beyond the grid where there is none."""
  at = coordinates(blocks.number, blocks.grid)[:, None] + jnp.asarray(offsets)
  gx, gy, gz = blocks.grid
  inside = ((at >= 0) & (at < jnp.array(blocks.grid))).all(axis=-1)
  number = (at[..., 0] * gy + at[..., 1]) * gz + at[..., 2]
  return jnp.where(inside, number, gx * gy * gz).astype(jnp.int32)


def _gather(number, grid, state: State, anatomy: Anatomy):
  """Signal, infection and weight of blocks (m,), 0 beyond the volume."""
  at = coordinates(number, grid) * EDGE
  index = at[:, :, None] + jnp.arange(EDGE)
  where = (
    index[:, 0, :, None, None], index[:, 1, None, :, None], index[:, 2, None, None, :]
  )  # fmt: skip
  take = lambda volume: volume.at[where].get(mode='fill', fill_value=0)  # noqa: E731
  weight = take(anatomy.susceptible).astype(jnp.float32)
  if anatomy.prior is not None:
    weight *= take(anatomy.prior)
  return take(state.signal), take(state.infection), weight


def _padded(volume: jax.Array) -> jax.Array:
  """Filled up with 0 to whole blocks."""
  return jnp.pad(volume, [(0, -n % EDGE) for n in volume.shape])
