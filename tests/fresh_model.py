"""A model directory of fresh weights: small, quick, and good for nothing but a path."""

from pathlib import Path

import jax

from covid3way.networks.registry import make_network
from covid3way.segmentation import aggregators
from covid3way.segmentation.model import Model, ModelSpec, write_model
from covid3way.training.step import fresh_variables


def write(folder: Path, space_shape: tuple[int, int, int]) -> Path:
  """Writes the model of one 2D network for a standard space of this shape."""
  spec = ModelSpec('infection', space_shape, (0.0,), (2, 4), 'unet_2d')
  (part,) = spec.about.parts
  network = make_network(spec.method, spec.features, 1.0)
  variables = fresh_variables(network, jax.random.key(0), spec.sample_shape(part))
  model = Model(spec, {part: variables}, aggregators.plain((part,)))
  write_model(folder, model, {'settings': {'seed': 3}})
  return folder
