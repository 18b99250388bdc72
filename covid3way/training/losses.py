"""Losses, over the pixels that count; `config.training.loss` names one of them.

Logits are (b, h, w, c), labels (b, h, w) int, weights (b, h, w) bool: where the loss is
counted. For infection that is the lungs: the mask ends there, so a network need not
learn what lies outside.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from covid3way.training import devices


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  class_weights: Sequence[float],
) -> jax.Array:
  """Mean over the pixels that count, of all devices; 0 when there are none.

  Each pixel's term is multiplied by the weight of its class.
  """
  per_pixel = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  per_pixel *= jnp.asarray(class_weights)[labels]
  summed, pixels = devices.total(((per_pixel * weights).sum(), weights.sum()))
  return summed / jnp.maximum(pixels, 1)


def soft_dice(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
  """Dice of class 1 over the whole batch of all devices, in [0, 1].

  One overlap for the batch, not one per slice: most slices hold little infection,
  and a slice without any has no Dice. An all-empty batch has Dice 1.
  """
  p, labels = jax.nn.softmax(logits)[..., 1] * weights, labels * weights
  overlap, size = devices.total(((p * labels).sum(), p.sum() + labels.sum()))
  return (2 * overlap + 1) / (size + 1)


def cross_entropy_and_dice(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  class_weights: Sequence[float],
) -> jax.Array:
  """Cross-entropy + (1 - Dice)."""
  entropy = cross_entropy(logits, labels, weights, class_weights=class_weights)
  return entropy + 1 - soft_dice(logits, labels, weights)


def dice_loss(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  class_weights: Sequence[float],
) -> jax.Array:
  """1 - Dice with squared probabilities in the denominator (Milletari 2016)."""
  del class_weights
  p, labels = jax.nn.softmax(logits)[..., 1] * weights, labels * weights
  overlap, size = devices.total(((p * labels).sum(), (p * p + labels).sum()))
  return 1 - (2 * overlap + 1) / (size + 1)


def generalised_dice_loss(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  class_weights: Sequence[float],
) -> jax.Array:
  """1 - generalised Dice: classes weigh as one over their size squared (MPUnet)."""
  del class_weights
  p = jax.nn.softmax(logits) * weights[..., None]
  wanted = jax.nn.one_hot(labels, logits.shape[-1]) * weights[..., None]
  axes = tuple(range(labels.ndim))
  overlap, size, wanted_size = devices.total(
    ((p * wanted).sum(axes), (p + wanted).sum(axes), wanted.sum(axes))
  )
  balance = 1 / jnp.square(jnp.maximum(wanted_size, 1))
  return 1 - (2 * (balance * overlap).sum() + 1e-9) / ((balance * size).sum() + 1e-9)
