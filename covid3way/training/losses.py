"""Cross-entropy plus Dice."""

import jax
import jax.numpy as jnp
import optax

from covid3way.training import devices


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean over pixels and devices. Logits (b, h, w, c), labels (b, h, w) int."""
  per_pixel = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return devices.mean(per_pixel.mean())


def soft_dice(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """
  Dice of class 1 over the whole batch of all devices, in [0, 1].

  One overlap for the batch, not one per slice: most slices hold little infection,
  and a slice without any has no Dice. An all-empty batch has Dice 1.
  """
  p = jax.nn.softmax(logits)[..., 1]
  overlap, size = devices.total(((p * labels).sum(), p.sum() + labels.sum()))
  return (2 * overlap + 1) / (size + 1)


def loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy + (1 - Dice), and that Dice."""
  dice = soft_dice(logits, labels)
  return cross_entropy(logits, labels) + 1 - dice, jnp.asarray(dice)
