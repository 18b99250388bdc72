"""Trains the networks of a method on stored scans and writes the model directory."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, InputError
from covid3way.jobs import export, memory, watching
from covid3way.jobs.batch import claim, named
from covid3way.jobs.cohort import Cohort, check_numbers, open_cohort
from covid3way.jobs.feed import made, reader, validation
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.training import checkpoints, devices, loop, optimisers, preemption
from covid3way.training.distort import Distortion
from covid3way.training.step import Recipe, TrainState, fresh_variables, init_state

# How fast data comes, not what they are: may change from run to run.
_READING = ('cache_gib', 'reading_threads', 'batches_ahead')
_PRECISIONS = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Reads the store `config.input`; writes `training/` and `model/` under the workdir.

  A shard trains every n-th view; the whole job then writes the model.

  Raises:
    PreemptedError: SIGTERM came; the same command goes on from there.
  """
  memory.keep()
  settings = config.training
  export.check(config.aggregation)
  check_numbers(settings)
  check_shares(settings)
  cohort = open_cohort(Path(required(config, 'input')), settings)
  if cohort.spec.about.staged and not shard.is_whole:
    found = f'{settings.method} is one network, trained in stages'
    raise ConfigError('--shard', found, 'leave it out')
  known = {k: v for k, v in settings.to_dict().items() if k not in _READING}
  recipes = {part: recipe_of(cohort, part) for part in settings.views}
  claim(workdir, 'train', {'input': config.input, **known, **cohort.ids()})
  _compare_hosts(cohort)
  n = sum('simulated' in scan.attributes for scan in cohort.training)
  progress.say(
    f'{len(cohort.training)} scans to train on, {n} of them simulated, '
    f'{len(cohort.validation)} to validate'
  )
  with preemption.watching() as stop:
    for part in settings.views[shard.index :: shard.of]:
      with progress.beating(f'view {part}') as now:
        _train_part(part, recipes[part], cohort, workdir / 'training', now, stop)
  if shard.is_whole and devices.is_first():
    export.run(config, workdir)


def check_shares(settings: ConfigDict) -> None:
  """Refuses a batch that cannot be shared.

  Raises:
    ConfigError: by the devices, their parts, the open slabs or the processes.
  """
  own, every = jax.local_device_count(), jax.device_count()
  if every != own * jax.process_count():
    found, remedy = f'{own} of {every} devices here', 'use as many in each process'
    raise ConfigError('--num_processes', found, remedy)
  for field, n, among in (
    ('batch_size', every * settings.parts, 'devices times parts'),
    ('batch_size', settings.open_slabs, 'config.training.open_slabs'),
    ('open_slabs', jax.process_count(), 'processes'),
  ):
    if settings[field] % n:
      raise ConfigError(
        f'config.training.{field}',
        f'{settings[field]} with {n} {among}',
        f'use a multiple of {n}',
      )


def _compare_hosts(cohort: Cohort) -> None:
  """Refuses processes that see different scans: they would make different batches.

  Raises:
    InputError: they do.
  """
  own = json.dumps(cohort.ids())
  if devices.text_from_first(own) != own:
    raise InputError(
      str(cohort.folder),
      'the processes see different scans there',
      'wait until all of it is visible on every host, then run the same command again',
    )


def recipe_of(cohort: Cohort, part: str) -> Recipe:
  """The settings of a training as functions.

  Args:
    cohort: with its settings.
    part: of the method.

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
  try:
    schedule = schedule(
      learning_rate=settings.learning_rate,
      steps=settings.epochs * settings.steps_per_epoch,
      warmup_steps=settings.warmup_steps,
    )
  except TypeError as error:
    found = f'{settings.schedule!r}: {error}'
    remedy = 'give a function of learning_rate, steps and warmup_steps'
    raise ConfigError('config.training.schedule', found, remedy) from error
  return Recipe(
    network=spec.network_of(part).clone(dtype=_PRECISIONS[settings.precision]),
    optimiser=optimisers.make(
      optimiser,
      schedule,
      clip_norm=settings.clip_norm,
      weight_decay=settings.weight_decay,
    ),
    schedule=schedule,
    loss=loss,
    class_weights=tuple(settings.class_weights),
    distortion=made(Distortion, settings.distortion),
    average=settings.ema_decay,
    parts=settings.parts,
  )


def _train_part(
  part: str,
  recipe: Recipe,
  cohort: Cohort,
  parts: Path,
  now: progress.Doing,
  stop: Callable[[], bool],
) -> None:
  """Trains one network, or goes on with it, and keeps its checkpoints in a folder.

  Raises:
    PreemptedError: it was time to stop; what was reached is kept.
  """
  settings, folder = cohort.settings, parts / part
  with checkpoints.keeping(folder) as keeper, watching.showing(folder, part) as show:
    state, figures = keeper.last(_begin(part, recipe, cohort, parts))
    state = devices.from_first(state)
    figures = json.loads(devices.text_from_first(json.dumps(figures)))
    show(figures)  # It may have been killed before.
    if _is_over(figures, settings):
      return
    now.is_('reading what validates')
    course = loop.train(
      state,
      recipe,
      reader(cohort, part, folder / 'simulated', now),
      epochs=settings.epochs,
      steps_per_epoch=settings.steps_per_epoch,
      validation=validation(cohort, part),
      on_devices=jax.devices(),
      now=now,
      stop=stop,
    )
    for state, epoch, pace in course:
      if epoch:
        figures.append(_row(epoch, pace))
        progress.say(_line(part, epoch, pace, settings.epochs))
      now.is_('keeping a checkpoint')
      keeper.keep(state, figures)
      show(figures)
      if _is_over(figures, settings):
        return
    keeper.wait()
    done, total = int(state.step), settings.epochs * settings.steps_per_epoch
    raise preemption.PreemptedError(
      f'stopped by SIGTERM: view {part}, step {done} of {total} is kept; the same '
      'command goes on from there'
    )


def _begin(part: str, recipe: Recipe, cohort: Cohort, parts: Path) -> TrainState:
  """Fresh weights, or those that the stage before ended with."""
  spec, stages = cohort.spec, list(cohort.spec.about.parts)
  if spec.about.staged and part != stages[0] and devices.is_first():
    variables, _ = checkpoints.best(parts / stages[stages.index(part) - 1])
  else:
    key = jax.random.key(cohort.settings.seed)
    # The last stage knows the weights of all.
    shape = spec.sample_shape(stages[-1] if spec.about.staged else part)
    variables = fresh_variables(spec.network, key, shape)
  return init_state(recipe, variables)


def _row(epoch: loop.Epoch, pace: loop.Pace) -> dict[str, Any]:
  """Figures as JSON has them: what is not a number is null."""
  values = dataclasses.asdict(epoch) | dataclasses.asdict(pace)
  return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _is_over(figures: Sequence[dict[str, Any]], settings: ConfigDict) -> bool:
  """Whether all epochs are done, or Dice has not improved for `patience` epochs."""
  if len(figures) >= settings.epochs:
    return True
  dice = [row['validation_dice'] or 0.0 for row in figures]
  waited = len(dice) - 1 - int(np.argmax(dice)) if dice else 0
  return 0 < settings.patience <= waited


def _line(view: str, epoch: loop.Epoch, pace: loop.Pace, epochs: int) -> str:
  return (
    f'view {view}, epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}, '
    f'Dice {epoch.dice:.3f}, validation Dice {epoch.validation_dice:.3f}, '
    f'{pace.images_per_s:.3g} images/s, {pace.waiting_share:.0%} waiting for data'
  )
