"""A model directory of fresh weights: small, quick, and good for nothing but a path."""

from pathlib import Path

import jax
import jax.numpy as jnp

from covid3way.networks.registry import make_network
from covid3way.segmentation import aggregators
from covid3way.segmentation.model import Model, ModelSpec, write_model


def write(folder: Path, space_shape: tuple[int, int, int]) -> Path:
  """Writes the model of one 2D network for a standard space of this shape."""
  spec = ModelSpec('infection', space_shape, (0.0,), (2, 4), 'unet_2d')
  (part,) = spec.about.parts
  network = make_network(spec.method, spec.features, 1.0)
  stacks = jnp.zeros((1, *spec.sample_shape(part)))
  variables = network.init(jax.random.key(0), stacks, train=False)
  trees = {part: {'batch_stats': {}} | dict(variables)}
  model = Model(spec, trees, aggregators.plain((part,)))
  write_model(folder, model, {'settings': {'seed': 3}})
  return folder
