"""The model directory: the networks, and all that prediction has to know of them.

`model.json` holds the method, its networks' form, their standard space and what they
look at, the target, the aggregator, the settings and figures of the training, the
windows of its scans, versions, the sha256 of each weight file and its own checksum;
`<part>.msgpack` holds a network's weights (flax serialisation).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import serialization

from covid3way.base import DamagedFileError, InputError, ModelError
from covid3way.networks.registry import METHODS, Method, make_network
from covid3way.scans.files import read_json, sealed, whole, write_json
from covid3way.segmentation import aggregators
from covid3way.segmentation.aggregators import Aggregator
from covid3way.standard.space import StandardSpace
from covid3way.training import views
from covid3way.training.planes import PlaneGrid

FORMAT = 'covid3way-model-3'
_NO_MODEL = (InputError, OSError, ValueError, KeyError, TypeError, AttributeError)
_REMEDY = 'give --config.model a folder that train, export or quickstart wrote'


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Networks without their weights.

  Attributes:
    target: what the networks find, `infection` or `lungs`.
    space_shape: voxels of the standard space they were trained in.
    offsets_mm: slices of a stack, relative to the central one.
    features: channels of each network, see its class.
    method: a key of `registry.METHODS`.
    width: factor of all channels.
    patch_voxels: of sub-volumes, where the method looks at such.
    planes: directions of oblique planes, where it looks at those.
    domain: of the signal; '' is Hounsfield units.
  """

  target: str
  space_shape: tuple[int, int, int]
  offsets_mm: tuple[float, ...]
  features: tuple[int, ...]
  method: str = 'three_way'
  width: float = 1.0
  patch_voxels: tuple[int, int, int] = (128, 128, 128)
  planes: int = 6
  domain: str = ''

  @property
  def space(self) -> StandardSpace:
    """The standard space the networks work in."""
    return StandardSpace(self.space_shape)

  @property
  def about(self) -> Method:
    """The method's row of the registry."""
    return METHODS[self.method]

  @property
  def network(self) -> nn.Module:
    """The network of each part, or of the last stage of all."""
    return make_network(self.method, self.features, self.width)

  def network_of(self, part: str) -> nn.Module:
    """The network as a part trains it."""
    return self.network.clone(stage=part) if self.about.staged else self.network

  @property
  def strides(self) -> tuple[int, int, int]:
    """What the networks' input must be a multiple of along x, y and z, voxels."""
    stride = self.network.stride
    return (stride,) * 3 if isinstance(stride, int) else tuple(stride)

  @property
  def patch(self) -> tuple[int, int, int]:
    """Sides of a sub-volume: within the space, and what the network can take."""
    sides = zip(self.patch_voxels, self.space_shape, self.strides, strict=True)
    return tuple(max(min(p, n) // stride, 1) * stride for p, n, stride in sides)

  @property
  def plane_grid(self) -> PlaneGrid:
    """Of oblique planes."""
    known = self.space_shape, self.space.spacing_mm
    return PlaneGrid(*known, views=self.planes, stride=self.strides[0])

  def offsets_voxels(self, part: str) -> tuple[int, ...]:
    """Slice offsets along the normal axis of a part's view."""
    if self.about.neighbours is not None:
      return self.about.neighbours
    view = self.about.parts[part].view
    return views.offsets_voxels(self.offsets_mm, self.space.spacing_mm, view)

  def sample_shape(self, part: str) -> tuple[int, ...]:
    """Of what a part's network is shown, as small as it can be, channels last."""
    sampling = self.about.parts[part].sampling
    if sampling == 'volumes':
      return (*self.strides, 1)
    depth = len(self.offsets_voxels(part)) if sampling == 'slices' else 1
    return (*self.strides[:2], depth)

  def template(self, part: str) -> Any:
    """Shapes and types of one network's variables."""
    variables = dict(_shapes(self.network, self.sample_shape(part)))
    if self.about.parts[part].sampling == 'planes':
      weights, bias = jnp.zeros(self.planes), jnp.zeros(())
      variables |= {'fusion': {'weights': weights, 'bias': bias}}
    return variables


@functools.lru_cache(maxsize=8)  # Views of one form share it.
def _shapes(network: nn.Module, sample: tuple[int, ...]) -> Any:
  return {'batch_stats': {}} | jax.eval_shape(
    lambda: network.init(jax.random.key(0), jnp.zeros((1, *sample)), train=False)
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A model in memory.

  Attributes:
    spec: of the networks.
    variables: per part that predicts, `params` and `batch_stats`; of oblique planes
      also `fusion`, see `oblique`.
    aggregator: that joins the parts' probabilities, as training chose it.
    sha256: of its `model.json`, which holds those of the weights.
    saw: who trained and validated: names of `patients`, hashes of `series` and of
      `voxels`.
    window_sources: who said the windows of the scans it was trained on.
  """

  spec: ModelSpec
  variables: Mapping[str, Any]
  aggregator: Aggregator
  sha256: str = ''
  saw: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  window_sources: frozenset[str] = frozenset()

  @property
  def parameters(self) -> int:
    """Of all networks together."""
    trees = [known['params'] for known in self.variables.values()]
    return sum(leaf.size for leaf in jax.tree.leaves(trees))


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
    'saw': dict(model.saw),
    'sha256': {
      view: hashlib.sha256(each).hexdigest() for view, each in weights.items()
    },
    **provenance,
  }
  with whole(folder) as aside:
    aside.mkdir()
    for view, each in weights.items():
      _weights(aside, view).write_bytes(each)
    write_json(aside / 'model.json', sealed(content))


def read_model(folder: Path) -> Model:
  """Reads a model directory.

  Raises:
    ModelError: it is absent, foreign, incomplete or damaged.
  """
  try:
    content = read_json(folder / 'model.json', remedy=_REMEDY)
    sha256 = hashlib.sha256((folder / 'model.json').read_bytes()).hexdigest()
    if content['format'] != FORMAT:
      raise ModelError(str(folder), f'format {content["format"]!r}', _REMEDY)
    fields = {f.name: content[f.name] for f in dataclasses.fields(ModelSpec)}
    spec = ModelSpec(
      **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    )
    aggregator, saw = aggregators.from_json(content['aggregator']), content['saw']
    sources = frozenset(window['source'] for window in content.get('windows', ()))
    variables = {
      view: _read_weights(folder, view, known, spec.template(view))
      for view, known in content['sha256'].items()
    }
  except DamagedFileError as error:
    raise ModelError(error.subject, error.found, error.remedy) from error
  except _NO_MODEL as error:
    found = f'not a model directory, or a damaged one ({type(error).__name__})'
    raise ModelError(str(folder), found, _REMEDY) from error
  return Model(spec, variables, aggregator, sha256, saw, sources)


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
  return jax.device_put(variables)  # `jnp.asarray` compiles something for each shape.
