"""Checkpoints of a training, and the model directory that prediction reads.

A model directory holds `model.json` (networks, standard space, slice offsets, target,
versions, training figures) and one orbax checkpoint of weights per view.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from covid3way.base import ModelError
from covid3way.networks.unet import UNet
from covid3way.scans.files import whole, write_json
from covid3way.standard.space import StandardSpace
from covid3way.training import views

FORMAT = 'covid3way-model-1'


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """All of a model but its weights.

  Attributes:
    target: what the networks find, `infection` or `lungs`.
    space_shape: voxels of the standard space it was trained in.
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
    sha256: of its `model.json`, which names the training it came from.
  """

  spec: ModelSpec
  variables: Mapping[str, Any]
  sha256: str


def versions() -> dict[str, str]:
  """Versions of what computes, for provenance."""
  return {name: metadata.version(name) for name in ('jax', 'flax', 'numpy', 'scipy')}


def keep(folder: Path, state: Any, figures: Sequence[Mapping[str, Any]]) -> None:
  """Keeps a training, whole, and then no earlier state of it.

  Args:
    folder: of the training.
    state: with its `step`.
    figures: of every epoch so far, JSON values.
  """
  path = folder / f'step-{int(state.step)}'
  with whole(path) as aside:
    _save(aside / 'state', state)
    (aside / 'figures.json').write_text(json.dumps(list(figures)))
  for earlier in set(_kept(folder).values()) - {path}:
    shutil.rmtree(earlier)


def restore(folder: Path, state: Any) -> tuple[Any, list[dict[str, Any]]]:
  """What was kept last, state and figures; the given state when there is nothing."""
  kept = _kept(folder)
  if not kept:
    return state, []
  path = kept[max(kept)]
  figures = json.loads((path / 'figures.json').read_text())
  return _restore(path / 'state', state), figures


def _save(path: Path, tree: Any) -> None:
  # Not asynchronous: an error has to surface here, where it can be told.
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    checkpointer.save(path.absolute(), args=ocp.args.StandardSave(tree))


def _restore(path: Path, template: Any) -> Any:
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    return checkpointer.restore(
      path.absolute(), args=ocp.args.StandardRestore(template)
    )


def _kept(folder: Path) -> dict[int, Path]:
  return {int(p.name.removeprefix('step-')): p for p in folder.glob('step-*')}


def write_model(
  folder: Path, spec: ModelSpec, variables: Mapping[str, Any], figures: Any
) -> None:
  """Writes a model directory, whole.

  Args:
    folder: to write.
    spec: of the model.
    variables: `params` and `batch_stats` per view.
    figures: what training gave per view, JSON values.
  """
  with whole(folder) as aside:
    for view, tree in variables.items():
      _save(aside / view, tree)
    content = {
      'format': FORMAT,
      **dataclasses.asdict(spec),
      'views': list(variables),
      'training': figures,
      'versions': versions(),
    }
    write_json(aside / 'model.json', content)


def read_model(folder: Path) -> Model:
  """Reads a model directory.

  Raises:
    ModelError: it is absent, foreign, incomplete or damaged.
  """
  remedy = 'give --config.model a folder that the train or quickstart job wrote'
  try:
    text = (folder / 'model.json').read_text()
    content = json.loads(text)
    if content['format'] != FORMAT:
      raise ModelError(str(folder), f'format {content["format"]}', remedy)
    spec = ModelSpec(
      content['target'],
      *(tuple(content[k]) for k in ('space_shape', 'offsets_mm', 'features')),
    )
    template = spec.template()
    variables = {view: _restore(folder / view, template) for view in content['views']}
  except (OSError, ValueError, KeyError, TypeError) as error:
    found = f'not a model directory, or a damaged one ({type(error).__name__})'
    raise ModelError(str(folder), found, remedy) from error
  return Model(spec, variables, hashlib.sha256(text.encode()).hexdigest())
