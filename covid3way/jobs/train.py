"""Trains one U-Net per view on stored scans and writes the model directory."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, InputError
from covid3way.jobs.batch import claim, required
from covid3way.scans import store
from covid3way.scans.files import storing, whole
from covid3way.scans.store import StoredScan
from covid3way.training import checkpoints, loop, pipeline, preemption, views
from covid3way.training.checkpoints import ModelSpec
from covid3way.training.split import split


def run(config: ConfigDict, workdir: Path) -> None:
  """Reads the store `config.input`; writes `model/` under the workdir.

  Raises:
    PreemptedError: SIGTERM came; the same command goes on from there.
  """
  settings = config.training
  scans = _open(Path(required(config, 'input')), settings)
  spec = ModelSpec(
    settings.target,
    scans[0].shape,
    tuple(settings.offsets_mm),
    tuple(settings.features),
  )
  _check(spec, settings)
  claim(workdir, 'train', {'input': config.input, **settings.to_dict()})
  training, validation = split(
    scans,
    validation_share=settings.validation_share,
    simulated=settings.simulated,
    seed=settings.seed,
  )
  n = sum('simulated' in scan.attributes for scan in training)
  progress.say(
    f'{len(training)} scans to train on, {n} of them simulated, '
    f'{len(validation)} to validate'
  )
  variables, figures = {}, {}
  with preemption.watching() as stop:
    for view in settings.views:
      variables[view], figures[view] = _train_view(
        view, spec, training, validation, settings, workdir / 'training' / view, stop
      )
  checkpoints.write_model(workdir / 'model', spec, variables, figures)
  progress.say(f'model written to {workdir / "model"}')


def _open(folder: Path, settings: ConfigDict) -> list[StoredScan]:
  """The scans of a store that have a reference for the target."""
  groups = list(store.list_groups(folder))
  cache_bytes = int(settings.cache_gib * 2**30 / len(groups))
  scans = [store.open_group(group, cache_bytes=cache_bytes) for group in groups]
  for scan in scans:
    if scan.shape != scans[0].shape:
      raise InputError(
        scan.scan_id,
        f'{scan.shape} voxels where {scans[0].scan_id} has {scans[0].shape}',
        'preprocess all scans with one config.space.shape',
      )
  usable = [s for s in scans if settings.target in s.volumes]
  if not usable:
    raise InputError(
      str(folder),
      f'no scan has a reference for {settings.target!r}',
      f'give {settings.target}_mask in the manifest and preprocess again',
    )
  return usable


def _check(spec: ModelSpec, settings: ConfigDict) -> None:
  """Refuses settings that cannot be trained."""
  allowed = {'infection': ('lungs', 'all'), 'lungs': ('all',)}
  if settings.region not in allowed.get(spec.target, ()):
    raise ConfigError(
      'config.training',
      f'target {spec.target!r} with region {settings.region!r}',
      "use target 'infection' with 'lungs' or 'all', or target 'lungs' with 'all'",
    )
  stride, n = spec.network.stride, jax.device_count()
  if any(size % stride for size in spec.space_shape):
    raise ConfigError(
      'config.space.shape',
      f'{spec.space_shape} with {len(spec.features)} levels',
      f'use multiples of {stride} or fewer config.training.features',
    )
  if settings.batch_size % n:
    raise ConfigError(
      'config.training.batch_size',
      f'{settings.batch_size} on {n} devices',
      f'use a multiple of {n}',
    )


def _train_view(
  view: str,
  spec: ModelSpec,
  training: Sequence[StoredScan],
  validation: Sequence[StoredScan],
  settings: ConfigDict,
  folder: Path,
  stop: Callable[[], bool],
) -> tuple[Any, list[dict[str, float]]]:
  """Trains one network; returns its variables and the figures of each epoch.

  Raises:
    PreemptedError: it was time to stop; what was reached is kept.
  """
  how = {
    'view': view,
    'target': spec.target,
    'region': settings.region,
    'offsets': spec.offsets_voxels(view),
    'window': views.central_window(
      settings.extent_mm,
      spec.space_shape,
      spec.space.spacing_mm,
      stride=spec.network.stride,
    ),
  }
  steps = settings.epochs * settings.steps_per_epoch
  optimiser = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, steps))
  held_out = _validation(pipeline.Slices(validation, **how), settings)
  slices = pipeline.Slices(training, **how)
  if not len(slices.foreground) + len(slices.background):
    raise InputError('store', 'no slice crosses a lung', 'check the lung masks')
  key, example = (
    jax.random.key(settings.seed),
    slices.read(np.array([[0, 0]]))['stacks'],
  )
  state = loop.init_state(spec.network, optimiser, key, example)
  state, figures = checkpoints.restore(folder, state)
  _write_log(folder, figures)  # It may have been killed before.
  for state, epoch in loop.train(  # noqa: B020, it goes on from `state`
    state,
    functools.partial(
      pipeline.batch_at,
      slices=slices,
      batch_size=settings.batch_size,
      foreground_share=settings.foreground_share,
      seed=settings.seed,
    ),
    network=spec.network,
    optimiser=optimiser,
    class_weights=tuple(settings.class_weights),
    epochs=settings.epochs,
    steps_per_epoch=settings.steps_per_epoch,
    validation=held_out,
    on_devices=jax.devices(),
    what=f'view {view}',
    stop=stop,
  ):
    if epoch:
      figures.append(dataclasses.asdict(epoch))
      progress.say(
        f'view {view}, epoch {epoch.epoch}/{settings.epochs}: loss {epoch.loss:.4f}, '
        f'Dice {epoch.dice:.3f}, validation Dice {epoch.validation_dice:.3f}'
      )
    with storing(folder):
      checkpoints.keep(folder, state, figures)
    _write_log(folder, figures)
  if stop():
    done, total = int(state.step), settings.epochs * settings.steps_per_epoch
    raise preemption.PreemptedError(
      f'stopped by SIGTERM: view {view}, step {done} of {total} is kept; the same '
      'command goes on from there'
    )
  return state.variables, figures


def _write_log(folder: Path, figures: Sequence[dict[str, float]]) -> None:
  if not figures:
    return
  with whole(folder / 'metrics.jsonl') as aside:
    aside.write_text(''.join(json.dumps(row) + '\n' for row in figures))


def _validation(slices: pipeline.Slices, settings: ConfigDict) -> list[loop.Batch]:
  """The same slices after every epoch: evenly spread over all that cross the lungs."""
  every = np.concatenate([slices.foreground, slices.background])
  n = min(settings.validation_slices, len(every)) // settings.batch_size
  if not n:
    return []
  spread = np.linspace(0, len(every) - 1, n * settings.batch_size).astype(int)
  return [slices.read(chosen) for chosen in np.split(every[spread], n)]
