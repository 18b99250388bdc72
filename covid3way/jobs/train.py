"""Trains one U-Net per view on stored scans and writes the model directory."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, InputError
from covid3way.jobs import export, watching
from covid3way.jobs.batch import WHOLE_JOB, Shard, claim, named, required
from covid3way.jobs.cohort import Cohort, open_cohort
from covid3way.training import (
  checkpoints,
  devices,
  loop,
  optimisers,
  pipeline,
  preemption,
  views,
)
from covid3way.training.distort import Distortion
from covid3way.training.slices import Slices

# How fast data comes, not what they are: may change from run to run.
_PACE = ('cache_gib', 'reading_threads', 'batches_ahead')
_PRECISIONS = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Reads the store `config.input`; writes `training/` and `model/` under the workdir.

  A shard trains every n-th view; the whole job then writes the model.

  Raises:
    PreemptedError: SIGTERM came; the same command goes on from there.
  """
  settings = config.training
  export.check(config.aggregation)
  cohort = open_cohort(Path(required(config, 'input')), settings)
  known = {k: v for k, v in settings.to_dict().items() if k not in _PACE}
  mine = settings.views[shard.index :: shard.of]
  recipes = {view: recipe_of(cohort, view) for view in mine}
  claim(workdir, 'train', {'input': config.input, **known})
  n = sum('simulated' in scan.attributes for scan in cohort.training)
  progress.say(
    f'{len(cohort.training)} scans to train on, {n} of them simulated, '
    f'{len(cohort.validation)} to validate'
  )
  with preemption.watching() as stop:
    for view, recipe in recipes.items():
      _train_view(view, recipe, cohort, workdir / 'training' / view, stop)
  if shard.is_whole and devices.is_first():
    export.run(config, workdir)


def recipe_of(cohort: Cohort, view: str) -> loop.Recipe:
  """The settings of a training as functions.

  Raises:
    ConfigError: one of them stands for nothing that can be used.
  """
  settings, spec = cohort.settings, cohort.spec
  if settings.precision not in _PRECISIONS:
    found, remedy = repr(settings.precision), f'use one of {", ".join(_PRECISIONS)}'
    raise ConfigError('config.training.precision', found, remedy)
  schedule, optimiser, loss = (
    named(settings[field], f'config.training.{field}')
    for field in ('schedule', 'optimiser', 'loss')
  )
  schedule = schedule(
    settings.learning_rate,
    settings.epochs * settings.steps_per_epoch,
    settings.warmup_steps,
  )
  h, w = (a for a in range(3) if a != views.NORMAL_AXIS[view])
  return loop.Recipe(
    network=spec.network.clone(dtype=_PRECISIONS[settings.precision]),
    optimiser=optimisers.make(
      optimiser,
      schedule,
      clip_norm=settings.clip_norm,
      weight_decay=settings.weight_decay,
    ),
    schedule=schedule,
    loss=loss,
    class_weights=tuple(settings.class_weights),
    distortion=_made(Distortion, settings.distortion),
    pixel_mm=(spec.space.spacing_mm[h], spec.space.spacing_mm[w]),
    average=settings.ema_decay,
    parts=settings.parts,
  )


def sampling_of(settings: ConfigDict) -> pipeline.Sampling:
  """How the batches of a training are drawn."""
  return _made(pipeline.Sampling, settings)


def _made(kind: type, section: ConfigDict) -> Any:
  """A dataclass whose fields are fields of a config section."""
  return kind(**{field.name: section[field.name] for field in dataclasses.fields(kind)})


def _train_view(
  view: str,
  recipe: loop.Recipe,
  cohort: Cohort,
  folder: Path,
  stop: Callable[[], bool],
) -> None:
  """Trains one network, or goes on with it, and keeps its checkpoints in a folder.

  Raises:
    PreemptedError: it was time to stop; what was reached is kept.
  """
  settings = cohort.settings
  held_out = _validation(cohort.slices(cohort.validation, view), settings)
  slices = cohort.slices(cohort.training, view)
  if not len(slices.all()):
    raise InputError('store', 'no slice crosses a lung', 'check the lung masks')
  sampler = pipeline.Sampler(slices, sampling_of(settings))
  rows, key = devices.my_rows(settings.batch_size), jax.random.key(settings.seed)
  example = slices.read(slices.all()[:1])['stacks']
  with checkpoints.keeping(folder) as keeper:
    state, figures = keeper.last(loop.init_state(recipe, key, example))
    state = devices.from_first(state)
    figures = json.loads(devices.text_from_first(json.dumps(figures)))
    watching.refresh(folder, view, figures)  # It may have been killed before.
    course = loop.train(
      state,
      recipe,
      lambda numbers: pipeline.read_ahead(
        sampler,
        numbers,
        rows,
        threads=settings.reading_threads,
        batches=settings.batches_ahead,
      ),
      epochs=settings.epochs,
      steps_per_epoch=settings.steps_per_epoch,
      validation=held_out,
      on_devices=jax.devices(),
      what=f'view {view}',
      stop=stop,
    )
    if _is_over(figures, settings):
      return
    for state, epoch, pace in course:
      if epoch:
        figures.append(dataclasses.asdict(epoch) | dataclasses.asdict(pace))
        progress.say(_line(view, epoch, pace, settings.epochs))
      keeper.keep(state, figures)
      watching.refresh(folder, view, figures)
      if _is_over(figures, settings):
        return
    keeper.wait()
    done, total = int(state.step), settings.epochs * settings.steps_per_epoch
    raise preemption.PreemptedError(
      f'stopped by SIGTERM: view {view}, step {done} of {total} is kept; the same '
      'command goes on from there'
    )


def _is_over(figures: Sequence[dict[str, Any]], settings: ConfigDict) -> bool:
  """Whether all epochs are done, or Dice has not improved for `patience` epochs."""
  dice = [row['validation_dice'] for row in figures]
  if len(dice) >= settings.epochs:
    return True
  if not settings.patience or not np.isfinite(dice).all() or not dice:
    return False
  return len(dice) - 1 - int(np.argmax(dice)) >= settings.patience


def _line(view: str, epoch: loop.Epoch, pace: loop.Pace, epochs: int) -> str:
  return (
    f'view {view}, epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}, '
    f'Dice {epoch.dice:.3f}, validation Dice {epoch.validation_dice:.3f}, '
    f'{pace.images_per_s:.3g} images/s, {pace.waiting_share:.0%} waiting for data'
  )


def _validation(slices: Slices, settings: ConfigDict) -> list[loop.Batch]:
  """The same slices after every epoch: evenly spread over all there are to draw."""
  every = slices.all()
  n = min(settings.validation_slices, len(every)) // settings.batch_size
  if not n:
    return []
  spread = np.linspace(0, len(every) - 1, n * settings.batch_size).astype(int)
  rows = devices.my_rows(settings.batch_size)
  return [slices.read(chosen[list(rows)]) for chosen in np.split(every[spread], n)]
