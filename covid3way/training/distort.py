"""Random distortion of one slice stack and its label: what a scan might have been, too.

On the device, as part of the training step: a distortion depends on the stack's own
key, so a batch is the same however many devices share it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


@dataclasses.dataclass(frozen=True)
class Distortion:
  """How far a stack may be distorted; 0 leaves a kind of distortion out.

  Attributes:
    flips: whether to mirror along either side and through the depth, half of the time.
    rotation_degrees: largest rotation in the plane, either way.
    zoom: largest change of size, as the logarithm of a factor.
    elastic_mm: standard deviation of a smooth displacement.
    elastic_nodes: along either side, at which that displacement is drawn.
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
  """Distorts a stack, and its label and weight with it.

  Args:
    key: of the draws.
    stack: (h, w, d) float32, window units.
    label: (h, w) bool.
    weight: (h, w) bool; False where the plane was left, too.
    how: far.
    pixel_mm: (2,) size of a pixel along h and w.
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
  h, w, d = jax.random.bernoulli(key, shape=(3,))
  stack = jnp.where(d, stack[..., ::-1], stack)

  def both(x):
    x = jnp.where(h, x[::-1], x)
    return jnp.where(w, x[:, ::-1], x)

  return both(stack), both(label), both(weight)


def _coordinates(key, shape, how: Distortion, pixel_mm) -> tuple[jax.Array, jax.Array]:
  """Where each pixel's value comes from: (h, w) along h, and along w, pixels."""
  turn_key, zoom_key, elastic_key = jax.random.split(key, 3)
  limit = jnp.deg2rad(how.rotation_degrees)
  angle = jax.random.uniform(turn_key, minval=-limit, maxval=limit)
  factor = jnp.exp(jax.random.uniform(zoom_key, minval=-how.zoom, maxval=how.zoom))
  centres = [(n - 1) / 2 for n in shape]
  y, x = (
    (jnp.arange(n) - c) * mm for n, c, mm in zip(shape, centres, pixel_mm, strict=True)
  )
  y, x = jnp.meshgrid(y, x, indexing='ij')
  cos, sin = jnp.cos(angle) / factor, jnp.sin(angle) / factor
  mm = [cos * y - sin * x, sin * y + cos * x]
  if how.elastic_mm:
    nodes = (2, how.elastic_nodes, how.elastic_nodes)
    field = how.elastic_mm * jax.random.normal(elastic_key, nodes)
    field = jax.image.resize(field, (2, *shape), 'cubic')
    mm = [m + f for m, f in zip(mm, field, strict=True)]
  return tuple(m / p + c for m, p, c in zip(mm, pixel_mm, centres, strict=True))


def _signal(key, stack: jax.Array, how: Distortion) -> jax.Array:
  gain_key, shift_key, noise_key = jax.random.split(key, 3)
  if how.gain:
    stack = stack * (1 + how.gain * jax.random.normal(gain_key))
  if how.shift:
    stack = stack + how.shift * jax.random.normal(shift_key)
  if how.noise:
    stack = stack + how.noise * jax.random.normal(noise_key, stack.shape)
  return stack
