"""Random distortion of a slice stack or volume and its label: another possible scan.

On the device, as part of the training step: a distortion depends on the stack's own
key, so a batch is the same however many devices share it.
"""

import dataclasses
import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates


@dataclasses.dataclass(frozen=True)
class Distortion:
  """How far a stack or volume may be distorted; 0 leaves a kind of distortion out.

  Attributes:
    flips: whether to mirror along each side and a stack's depth, half of the time.
    rotation_degrees: largest rotation, either way: in the plane of a stack, of a volume
      in one of its three planes, each as often.
    zoom: largest change of size, as the logarithm of a factor.
    elastic_mm: standard deviation of a smooth displacement.
    elastic_nodes: along each side, at which that displacement is drawn.
    gain: standard deviation of a factor of the signal around 1.
    shift: standard deviation of an offset of the signal, window units.
    noise: standard deviation of white noise, window units.
  """

  flips: bool
  rotation_degrees: float
  zoom: float
  elastic_mm: float
  elastic_nodes: int
  gain: float
  shift: float
  noise: float


def distort(
  key: jax.Array,
  stack: jax.Array,
  label: jax.Array,
  weight: jax.Array,
  how: Distortion,
  pixel_mm: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Distorts a stack or volume, and its label and weight with it.

  Args:
    key: of the draws.
    stack: (h, w, d) slice stack or (x, y, z, 1) volume, float32, window units.
    label: (h, w) or (x, y, z) bool.
    weight: of the same shape, bool; False where the plane or volume was left, too.
    how: far.
    pixel_mm: (2,) or (3,) size of a pixel or voxel along each side.
  """
  flip_key, warp_key, signal_key = jax.random.split(key, 3)
  if how.flips:
    stack, label, weight = _flip(flip_key, stack, label, weight)
  if how.rotation_degrees or how.zoom or how.elastic_mm:
    at = _coordinates(warp_key, label.shape, how, pixel_mm)
    stack = jax.vmap(
      lambda plane: map_coordinates(plane, at, order=1, mode='nearest'), -1, -1
    )(stack)
    label, weight = (
      map_coordinates(mask.astype(jnp.uint8), at, order=0, mode='constant') > 0
      for mask in (label, weight)
    )
  return _signal(signal_key, stack, how), label, weight


def _flip(key, stack, label, weight):
  """The offsets are symmetric, so a stack read backwards is a mirrored patient."""
  *drawn, depth = jax.random.bernoulli(key, shape=(stack.ndim,))
  stack = jnp.where(depth, stack[..., ::-1], stack)

  def sides(x):
    for axis, flipped in enumerate(drawn):
      x = jnp.where(flipped, jnp.flip(x, axis), x)
    return x

  return sides(stack), sides(label), sides(weight)


def _coordinates(key, shape, how: Distortion, pixel_mm) -> tuple[jax.Array, ...]:
  """Where each value comes from: per side an array of the shape, pixels or voxels."""
  turn_key, zoom_key, elastic_key = jax.random.split(key, 3)
  n = len(shape)
  factor = jnp.exp(jax.random.uniform(zoom_key, minval=-how.zoom, maxval=how.zoom))
  matrix = _rotation(turn_key, n, how) / factor
  centres = [(side - 1) / 2 for side in shape]
  sides = (
    (jnp.arange(side) - c) * mm
    for side, c, mm in zip(shape, centres, pixel_mm, strict=True)
  )
  old = jnp.meshgrid(*sides, indexing='ij')
  new = [functools.reduce(operator.add, map(operator.mul, row, old)) for row in matrix]
  if how.elastic_mm:
    nodes = (n, *(how.elastic_nodes,) * n)
    field = how.elastic_mm * jax.random.normal(elastic_key, nodes)
    field = jax.image.resize(field, (n, *shape), 'cubic')
    new = [m + f for m, f in zip(new, field, strict=True)]
  return tuple(m / p + c for m, p, c in zip(new, pixel_mm, centres, strict=True))


def _rotation(key, n: int, how: Distortion) -> jax.Array:
  """(n, n) matrix of a turn in the plane of two sides."""
  limit = jnp.deg2rad(how.rotation_degrees)
  angle = jax.random.uniform(key, minval=-limit, maxval=limit)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  values = jnp.stack([cos, cos, -sin, sin])
  planes = [
    jnp.eye(n).at[np.array([i, j, i, j]), np.array([i, j, j, i])].set(values)
    for i, j in itertools.combinations(range(n), 2)
  ]
  chosen = jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(planes))
  return jnp.stack(planes)[chosen]


def _signal(key, stack: jax.Array, how: Distortion) -> jax.Array:
  gain_key, shift_key, noise_key = jax.random.split(key, 3)
  if how.gain:
    stack = stack * (1 + how.gain * jax.random.normal(gain_key))
  if how.shift:
    stack = stack + how.shift * jax.random.normal(shift_key)
  if how.noise:
    stack = stack + how.noise * jax.random.normal(noise_key, stack.shape)
  return stack
