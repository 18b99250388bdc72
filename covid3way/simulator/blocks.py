"""The volume as blocks of 4 x 4 x 4 voxels, of which only the active ones are kept.

A block is active when an infected voxel lies in it or touches it, so that all that can
change in a transition lies in active blocks; work follows the infection and its
frontier, not the volume.

Masks are compared with their neighbours as words: 16 bits are the voxels of a block in
one plane normal to x, and what is done to a word is done to all of them at once.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from covid3way.simulator.state import Anatomy, State

EDGE = 4
VOXELS = EDGE**3
_ROW = 64
_OFFSETS = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
_FACES = np.concatenate([-np.eye(3, dtype=int), np.eye(3, dtype=int)])
# Bits of a word: z runs fastest. The first voxels along an axis, all, the last.
_Y_SIDES = np.array([0x000F, 0xFFFF, 0xF000], np.uint16)
_Z_SIDES = np.array([0x1111, 0xFFFF, 0x8888], np.uint16)
_SIDES = (_Y_SIDES[:, None] & _Z_SIDES).reshape(9, 1)


@struct.dataclass
class Blocks:
  """Active blocks in slots; unused slots hold nothing infected nor susceptible.

  Attributes:
    signal: (n, 64) float32, z running fastest.
    infection: (n, 64) bool.
    weight: (n, 64) float32, how readily a voxel is infected, 0 to 1; 0 where it is not
      susceptible.
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
  # Along z last: rows of voxels are combined fast, voxels of a row are not.
  rows = _padded(infection).reshape(gx, EDGE, gy, EDGE, gz * EDGE)
  near = jnp.zeros((gx, gy, gz * EDGE), bool)
  for x, along_x in zip((-1, 0, 1), _sides(rows, 1), strict=True):
    for y, along_y in zip((-1, 0, 1), _sides(along_x, 2), strict=True):
      near |= _moved(along_y, (x, y, 0))
  needed = jnp.zeros((gx, gy, gz), bool)
  for z, along_z in zip((-1, 0, 1), _sides(near.reshape(gx, gy, gz, EDGE), 3)):  # noqa: B905
    needed |= _moved(along_z, (0, 0, z))
  return needed.ravel()


def pack(
  state: State, anatomy: Anatomy, needed: jax.Array, capacity: int
) -> tuple[Blocks, jax.Array]:
  """Blocks for a state, and whether `capacity` slots were enough for them.

  Args:
    state: the volume.
    anatomy: of the volume.
    needed: (grid blocks,) bool, see `needed_for`.
    capacity: slots; with one for every block of the grid, all are active.
  """
  grid = grid_of(state.signal.shape)
  total = int(np.prod(grid))
  none = Blocks(
    signal=jnp.zeros((0, VOXELS), jnp.float32),
    infection=jnp.zeros((0, VOXELS), bool),
    weight=jnp.zeros((0, VOXELS), jnp.float32),
    number=jnp.zeros(0, jnp.int32),
    slot=jnp.zeros(total + 1, jnp.int32),
    used=jnp.int32(0),
    grid=grid,
  )
  blocks = enlarge(none, state, anatomy, capacity)
  if capacity >= total:
    return blocks, jnp.array(True)
  blocks, _ = activate(blocks, _first(needed, capacity), state, anatomy, capacity)
  return blocks, needed.sum() <= capacity


def enlarge(blocks: Blocks, state: State, anatomy: Anatomy, capacity: int) -> Blocks:
  """The same blocks among more slots.

  Args:
    blocks: active so far.
    state: see `activate`.
    anatomy: of the volume.
    capacity: slots; with one for every block of the grid, all become active.
  """
  before, total = len(blocks.number), len(blocks.slot) - 1
  more = lambda a: jnp.pad(a, [(0, capacity - before), *[(0, 0)] * (a.ndim - 1)])  # noqa: E731
  blocks = blocks.replace(
    signal=more(blocks.signal),
    infection=more(blocks.infection),
    weight=more(blocks.weight),
    number=more(blocks.number).at[before:].set(total),
    slot=jnp.where(blocks.slot == before, capacity, blocks.slot),
  )
  if capacity < total:
    return blocks
  return activate(blocks, jnp.arange(total), state, anatomy, capacity)[0]


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
    signal=state.signal.at[where].set(cubes(blocks.signal), mode='drop'),
    infection=state.infection.at[where].set(cubes(blocks.infection), mode='drop'),
  )


def cubes(values: jax.Array) -> jax.Array:
  """(n, 64) of blocks -> (n, 4, 4, 4)."""
  return values.reshape(-1, EDGE, EDGE, EDGE)


def activate(
  blocks: Blocks, needed: jax.Array, state: State, anatomy: Anatomy, most: int
) -> tuple[Blocks, jax.Array]:
  """Gives slots to blocks that are needed and not active yet.

  Args:
    blocks: active so far.
    needed: (k,) int32 numbers of blocks, in any order, some more than once; beyond the
      grid where there is none.
    state: the volume, as it was when none of the new blocks was active.
    anatomy: of the volume.
    most: numbers looked at in one round; there are as many rounds as it takes.

  Returns:
    The blocks, and whether all that are needed are active now.
  """
  capacity, total = len(blocks.number), len(blocks.slot) - 1

  def missing(blocks):
    return (blocks.slot[needed] == capacity) & (needed < total)

  def going(carry):
    _, absent, fits = carry
    return fits & _any(absent)

  def add(carry):
    blocks, absent, _ = carry
    chosen = _first(absent, most)
    number = jnp.sort(needed.at[chosen].get(mode='fill', fill_value=total))
    new = (number < total) & (number != jnp.roll(number, 1).at[0].set(total))
    fits = blocks.used + new.sum(dtype=jnp.int32) <= capacity
    new &= fits
    number = jnp.where(new, number, total)
    place = jnp.where(new, blocks.used + jnp.cumsum(new) - 1, capacity)
    signal, infection, weight = _gather(number, blocks.grid, state, anatomy)
    blocks = blocks.replace(
      signal=blocks.signal.at[place].set(signal, mode='drop'),
      infection=blocks.infection.at[place].set(infection, mode='drop'),
      weight=blocks.weight.at[place].set(weight, mode='drop'),
      number=blocks.number.at[place].set(number, mode='drop'),
      slot=blocks.slot.at[number].set(place).at[total].set(capacity),
      used=blocks.used + new.sum(dtype=jnp.int32),
    )
    return blocks, missing(blocks), fits

  carry = blocks, missing(blocks), jnp.array(True)
  blocks, _, fits = jax.lax.while_loop(going, add, carry)
  return blocks, fits


def needed_by(blocks: Blocks) -> jax.Array:
  """Blocks that infection in the blocks lies in or touches.

  Returns:
    (27 n,) int32 numbers; some more than once, many beyond the grid, which are none.
  """
  words = _words(blocks.infection)
  any_along_x = words[0] | words[1] | words[2] | words[3]
  touching = jnp.stack([words[0], any_along_x, words[3]])[:, None] & _SIDES
  total = len(blocks.slot) - 1
  at = jnp.where(touching.reshape(27, -1) != 0, _neighbour(blocks, _OFFSETS), total)
  return at.ravel()


def neighbourhood(blocks: Blocks, mask: jax.Array) -> jax.Array:
  """How many voxels of the 3 x 3 x 3 cube around each are in a mask, itself included.

  Args:
    blocks: whose slots the mask uses; all blocks that the mask touches are active.
    mask: (n, 64) bool.

  Returns:
    (n, 64) uint8. Outside the volume there is nothing.
  """
  count = _words(mask)[None]
  slots = apart(lambda blocks: blocks.slot[_neighbour(blocks, _FACES)], blocks)
  for axis, digits in ((2, 2), (1, 4), (0, 5)):
    step = lambda count, slots, a=axis, d=digits: _summed(count, slots, a)[:d]  # noqa: E731
    count = apart(step, count, slots[axis::3])
  bits = jnp.arange(EDGE**2, dtype=jnp.uint16)
  digit = lambda words: (words.T[:, :, None] >> bits) & 1  # noqa: E731
  total = sum(digit(words) << i for i, words in enumerate(count))
  return total.astype(jnp.uint8).reshape(-1, VOXELS)


def count(mask: jax.Array) -> jax.Array:
  """How many of a mask, any shape, are true: int32, in a quarter of a sum's time."""
  flat = jnp.pad(mask.ravel(), (0, -mask.size % EDGE))
  return jax.lax.population_count(_rows(flat)).sum(dtype=jnp.int32)


def apart(function: Callable, *args: Any) -> Any:
  """`function(*args)`, compiled on its own, as branches are.

  Merged with its surroundings it might be computed once per use of its result; and a
  product and a sum might be rounded once in one program and twice in another.
  """
  shapes = jax.eval_shape(function, *args)
  nothing = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
  first = jax.tree.leaves(args)[0]
  # Always true, which the compiler cannot know.
  return jax.lax.cond(first.ravel()[0] != jnp.inf, function, nothing, *args)


def _words(mask: jax.Array) -> jax.Array:
  """(n, 64) bool -> (4, n) uint16: a bit per voxel, a word per plane normal to x."""
  # The product moves the last bits of four bytes side by side, to the top.
  rows = (_rows(mask) * np.uint32(0x01020408) >> 24).astype(jnp.uint16)
  rows = rows.reshape(-1, EDGE, EDGE)
  words = (rows[..., y] << EDGE * y for y in range(EDGE))
  return functools.reduce(jnp.bitwise_or, words).T


def _rows(mask: jax.Array) -> jax.Array:
  """Bools -> (m,) uint32 of four of them: a byte each, the first the lowest."""
  rows = mask.astype(jnp.uint8).reshape(-1, EDGE)
  return jax.lax.bitcast_convert_type(rows, jnp.uint32)


def _summed(count: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
  """Counts of every voxel and of the two beside it along an axis, added up.

  Args:
    count: (d, 4, n) words, a binary digit of all counts each, the lowest first.
    slots: (2, n) of the blocks before and behind.
    axis: 0 to 2.
  """
  beside = lambda words, slot: words.at[..., slot].get(mode='fill', fill_value=0)  # noqa: E731
  if axis == 0:
    before = jnp.concatenate([beside(count[:, -1:], slots[0]), count[:, :-1]], axis=1)
    behind = jnp.concatenate([count[:, 1:], beside(count[:, :1], slots[1])], axis=1)
  else:
    step, (first, _, last) = ((EDGE, _Y_SIDES), (1, _Z_SIDES))[axis - 1]
    before, behind = (beside(count, slot) for slot in slots)
    before = ((count << step) & ~first) | ((before >> (EDGE - 1) * step) & first)
    behind = ((count >> step) & ~last) | ((behind << (EDGE - 1) * step) & last)
  return jnp.stack(_add(_add(before, count), behind))


def _add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
  """Sum of two binary numbers per bit of their words, the lowest digits first."""
  none = jnp.zeros_like(a[0])
  digits, carry = [], none
  for x, y in itertools.zip_longest(a, b, fillvalue=none):
    digits.append(x ^ y ^ carry)
    carry = (x & y) | (carry & (x ^ y))
  return [*digits, carry]


def _any(mask: jax.Array) -> jax.Array:
  """Whether a mask (m,) is true anywhere; words of rows, as no reduction is fast."""
  rows = jnp.pad(mask, (0, -len(mask) % _ROW)).reshape(_ROW, -1)
  return functools.reduce(jnp.bitwise_or, list(rows)).any()


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


def _sides(mask: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Along an axis, which is dropped: its first voxel, any of them, its last."""
  each = [jax.lax.index_in_dim(mask, i, axis, False) for i in range(EDGE)]
  # Not `any`: a reduction is not vectorised.
  return each[0], functools.reduce(jnp.bitwise_or, each), each[-1]


def _moved(mask: jax.Array, by: tuple[int, int, int]) -> jax.Array:
  """A mask shifted by up to one along each axis; nothing comes in."""
  padded = jnp.pad(mask, 1)
  return padded[tuple(slice(1 - b, 1 - b + n) for b, n in zip(by, mask.shape))]  # noqa: B905


def coordinates(number: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
  """(n,) block numbers -> (n, 3) int32 places in the grid."""
  number = number.astype(jnp.uint32)  # Divided faster.
  at = number // (grid[1] * grid[2]), number // grid[2] % grid[1], number % grid[2]
  return jnp.stack(at, axis=-1).astype(jnp.int32)


def _neighbour(blocks: Blocks, offsets: np.ndarray) -> jax.Array:
  """(k, n) numbers of the blocks at k offsets; beyond the grid where there is none."""
  gx, gy, gz = blocks.grid
  at = coordinates(blocks.number, blocks.grid).T
  x, y, z = (at[i] + offsets[:, i, None] for i in range(3))
  inside = (x >= 0) & (x < gx) & (y >= 0) & (y < gy) & (z >= 0) & (z < gz)
  return jnp.where(inside, (x * gy + y) * gz + z, gx * gy * gz).astype(jnp.int32)


def _gather(number, grid, state: State, anatomy: Anatomy):
  """Signal, infection and weight of blocks, (m, 64) each, 0 beyond the volume."""
  at = coordinates(number, grid) * EDGE
  index = at[:, :, None] + jnp.arange(EDGE)
  where = (
    index[:, 0, :, None, None], index[:, 1, None, :, None], index[:, 2, None, None, :]
  )  # fmt: skip
  take = lambda volume: (  # noqa: E731
    volume.at[where].get(mode='fill', fill_value=0).reshape(-1, VOXELS)
  )
  weight = take(anatomy.susceptible).astype(jnp.float32)
  if anatomy.prior is not None:
    weight *= take(anatomy.prior)
  return take(state.signal), take(state.infection), weight


def _padded(volume: jax.Array) -> jax.Array:
  """Filled up with 0 to whole blocks."""
  return jnp.pad(volume, [(0, -n % EDGE) for n in volume.shape])
