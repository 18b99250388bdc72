"""The model directory: three networks, and all that prediction has to know of them.

`model.json` holds the networks' form, their standard space and slice offsets, the
target, the aggregator, the settings and figures of the training, the windows of its
scans, versions, and the sha256 of each weight file; `<view>.msgpack` holds a network's
weights (flax serialisation).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization

from covid3way.base import ModelError
from covid3way.networks.unet import UNet
from covid3way.scans.files import whole, write_json
from covid3way.segmentation import aggregators
from covid3way.segmentation.aggregators import Aggregator
from covid3way.standard.space import StandardSpace
from covid3way.training import views

FORMAT = 'covid3way-model-2'
_REMEDY = 'give --config.model a folder that train, export or quickstart wrote'


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Networks without their weights.

  Attributes:
    target: what the networks find, `infection` or `lungs`.
    space_shape: voxels of the standard space they were trained in.
    offsets_mm: slices of a stack, relative to the central one.
    features: channels per level of each U-Net.
  """

  target: str
  space_shape: tuple[int, int, int]
  offsets_mm: tuple[float, ...]
  features: tuple[int, ...]

  @property
  def space(self) -> StandardSpace:
    """The standard space the networks work in."""
    return StandardSpace(self.space_shape)

  @property
  def network(self) -> UNet:
    """The U-Net of each view."""
    return UNet(features=self.features)

  def offsets_voxels(self, view: str) -> tuple[int, ...]:
    """Slice offsets along a view's normal axis."""
    return views.offsets_voxels(self.offsets_mm, self.space.spacing_mm, view)

  def template(self) -> Any:
    """Shapes and types of one network's variables."""
    side = self.network.stride
    stacks = jnp.zeros((1, side, side, len(self.offsets_mm)))
    return jax.eval_shape(
      lambda: self.network.init(jax.random.key(0), stacks, train=False)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A model in memory.

  Attributes:
    spec: of the networks.
    variables: `params` and `batch_stats` per view.
    aggregator: that joins the views' probabilities, as training chose it.
    sha256: of its `model.json`, which holds those of the weights.
  """

  spec: ModelSpec
  variables: Mapping[str, Any]
  aggregator: Aggregator
  sha256: str = ''


def write_model(folder: Path, model: Model, provenance: Mapping[str, Any]) -> None:
  """Writes a model directory, whole.

  Args:
    folder: to write.
    model: that is written.
    provenance: where it comes from, JSON values.

  Raises:
    StorageError: the disk refused a write.
  """
  weights = {v: serialization.to_bytes(tree) for v, tree in model.variables.items()}
  content = {
    'format': FORMAT,
    **dataclasses.asdict(model.spec),
    'aggregator': aggregators.to_json(model.aggregator),
    'sha256': {
      view: hashlib.sha256(each).hexdigest() for view, each in weights.items()
    },
    **provenance,
  }
  with whole(folder) as aside:
    aside.mkdir()
    for view, each in weights.items():
      _weights(aside, view).write_bytes(each)
    write_json(aside / 'model.json', content)


def read_model(folder: Path) -> Model:
  """Reads a model directory.

  Raises:
    ModelError: it is absent, foreign, incomplete or damaged.
  """
  try:
    text = (folder / 'model.json').read_bytes()
    content = json.loads(text)
    if content['format'] != FORMAT:
      raise ModelError(str(folder), f'format {content["format"]!r}', _REMEDY)
    spec = ModelSpec(
      content['target'],
      *(tuple(content[k]) for k in ('space_shape', 'offsets_mm', 'features')),
    )
    aggregator = aggregators.from_json(content['aggregator'])
    template = spec.template()
    variables = {
      view: _read_weights(folder, view, sha256, template)
      for view, sha256 in content['sha256'].items()
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    found = f'not a model directory, or a damaged one ({type(error).__name__})'
    raise ModelError(str(folder), found, _REMEDY) from error
  return Model(spec, variables, aggregator, hashlib.sha256(text).hexdigest())


def _weights(folder: Path, view: str) -> Path:
  return folder / f'{view}.msgpack'


def _read_weights(folder: Path, view: str, sha256: str, template: Any) -> Any:
  path = _weights(folder, view)
  data = path.read_bytes()
  if hashlib.sha256(data).hexdigest() != sha256:
    raise ModelError(
      str(path), 'damaged: its sha256 is not that of model.json', _REMEDY
    )
  variables = serialization.msgpack_restore(data)
  same = jax.tree.map(lambda a, b: a.shape == b.shape, variables, template)
  if not jax.tree.all(same):
    raise ModelError(str(path), 'weights of another network', _REMEDY)
  return jax.tree.map(jnp.asarray, variables)
