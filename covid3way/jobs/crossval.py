"""Cross-validation: methods x folds x augmentation ratios x ablations, and its results.

Under the workdir, beside what preprocess, fit and augment write there:

  splits_final.json          the folds, as nnU-Net has them
  runs/<run>/fold<k>/        split.json, training/, model/, predictions/, scans.csv, ...
  results.csv, costs.csv, aggregators.csv    of all runs, for the report job

A run is one method with one ratio of simulated scans and at most one ablation.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError
from covid3way.evaluation import results
from covid3way.evaluation.folds import Fold
from covid3way.evaluation.results import PADDED
from covid3way.evaluation.scores import OURS
from covid3way.jobs import export, runs, splits, testing
from covid3way.jobs.batch import SomeFailedError, claim, for_each
from covid3way.jobs.cohort import check_numbers
from covid3way.jobs.runs import ABLATIONS, VIEWS, Run, Task
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.jobs.workers import Workers
from covid3way.networks.registry import METHODS
from covid3way.scans import source
from covid3way.scans.manifest import ManifestRow


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Reads the manifest `config.input`; runs what is not done, gathers what is.

  A shard does every n-th training and its tests, after a whole job with
  `config.crossval.prepare_only` has made what they need. The whole job gathers.

  Raises:
    ConfigError: an unknown method or ablation, or a ratio that cannot be.
    LeakError: a patient, a series or the same voxels on two sides of a fold.
    SomeFailedError: some trainings failed; their rows say so.
    PreemptedError: SIGTERM came; what was reached is kept.
  """
  workdir = workdir.resolve()  # Trainings note it; it may be spelled otherwise later.
  rows = source.resolve(Path(required(config, 'input')))
  known = {row.scan_id: row for row in rows if not row.is_simulated}
  tasks = plan(config)
  export.check(config.aggregation)
  for task in tasks:
    check_numbers(runs.settings_of(task.training, config))
  folds = splits.folds(config.crossval, workdir, known)  # Mistakes are told early.
  claim(workdir, 'crossval', _noted(config))
  todo = [(task, k) for k in range(len(folds)) for task in tasks]
  with Workers(config.crossval.processes) as workers:
    if shard.is_whole:
      # Elsewhere, as it takes memory that the trainings should not be told to take.
      workers.result(workers.begin(_prepare, config.to_dict(), workdir, tasks))
    if config.crossval.prepare_only:
      return
    try:
      written = splits.Splits(config, workdir, known)
      for task, k in todo:  # A leak in whatever fold stops all before any begins.
        written.write(task.training, k, folds[k])
      _do(todo, folds, known, config, workdir, shard, workers)
    finally:
      if shard.is_whole:
        _gather(tasks, folds, known, workdir)


def plan(config: ConfigDict) -> list[Task]:
  """What is trained, and which runs are tested with it.

  Raises:
    ConfigError: an unknown method or ablation, or a ratio that cannot be.
  """
  section = config.crossval
  for field, given, allowed in (
    ('methods', section.methods, METHODS),
    ('ablations', section.ablations, ABLATIONS),
  ):
    unknown = [name for name in given if name not in allowed]
    if unknown:
      remedy = f'use some of {", ".join(allowed)}'
      raise ConfigError(f'config.crossval.{field}', f'{unknown}', remedy)
  if not section.methods or not section.ratios or min(section.ratios) < 0:
    found = f'methods {section.methods}, ratios {section.ratios}'
    raise ConfigError('config.crossval', found, 'give one or more, ratios 0 or more')
  most, simulated = math.ceil(max(section.ratios)), config.augmentation.ratio
  if most and (simulated < most or simulated % 1):
    found = f'{simulated:g}, but config.crossval.ratios up to {max(section.ratios):g}'
    remedy = f'use a whole number of {most} or more, of which the runs take their part'
    raise ConfigError('config.augmentation.ratio', found, remedy)
  first = section.ratios[0]
  tasks = {
    run.name: Task(run, (run,))
    for method in section.methods
    for run in [Run(method, ratio) for ratio in section.ratios]
  }
  if OURS in section.methods:
    extra = [a for a in section.ablations if a not in VIEWS]
    for ablation in extra:
      run = Run(OURS, 0.0) if ablation == 'unaugmented' else Run(OURS, first, ablation)
      tasks[run.name] = Task(run, (run,))
    views = [a for a in section.ablations if a in VIEWS]
    whole = Run(OURS, first)
    tested = (whole, *(Run(OURS, first, view) for view in views))
    tasks[whole.name] = Task(whole, tested)
  return list(tasks.values())


def _noted(config: ConfigDict) -> dict[str, Any]:
  """Settings on which results depend; more methods, ratios or ablations may follow."""
  section = config.crossval.to_dict()
  for field in ('methods', 'ratios', 'ablations', 'processes', 'prepare_only'):
    section.pop(field)
  common = ('training', 'aggregation', 'prediction')
  noted = {name: config[name].to_dict() for name in common}
  return {**noted, 'input': config.input, **section}


def _prepare(settings: dict[str, Any], workdir: Path, tasks: Sequence[Task]) -> None:
  """Casts, fits and simulates what is not there yet; scans that fail are left out."""
  simulate = any(task.training.ratio for task in tasks)
  jobs = ('preprocess', 'fit', 'augment') if simulate else ('preprocess',)
  spaces = {workdir: ()}
  if any(task.training.ablation == PADDED for task in tasks):
    spaces[workdir / PADDED] = tuple(settings['crossval']['padded_mm'])
  for folder, padded_mm in spaces.items():
    own = ConfigDict(settings)
    own.space = {**settings['space'], 'padded_mm': padded_mm}
    for name in jobs:
      progress.say(f'{name} in {folder} ...')
      (folder / f'failures-{name}.json').unlink(missing_ok=True)  # It may be mended.
      try:
        importlib.import_module(f'covid3way.jobs.{name}').run(own, folder)
      except SomeFailedError as error:
        progress.say(f'{name}: {error}; going on without them')
        # The next job would take the report for its own.
        (folder / 'failures.json').rename(folder / f'failures-{name}.json')


def _do(
  todo: Sequence[tuple[Task, int]],
  folds: Sequence[Fold],
  rows: Mapping[str, ManifestRow],
  config: ConfigDict,
  workdir: Path,
  shard: Shard,
  workers: Workers,
) -> None:
  """Does a shard's trainings and tests; those that are done do not begin again."""
  names = [f'{task.training.name}, fold {k}' for task, k in todo]
  futures = dict.fromkeys(names)
  for i in range(shard.index, len(todo), shard.of):
    task, k = todo[i]
    if runs.missing(task, k, workdir):
      tested = {scan: rows[scan] for scan in folds[k]['val']}
      given = task, k, config.to_dict(), workdir, tested
      futures[names[i]] = workers.begin(runs.do, *given)
  for_each(
    futures,
    lambda future: future and workers.result(future),
    what='crossval',
    workdir=workdir,
    shard=shard,
    kind='runs',
  )


_TABLES = {  # Of a fold's run -> of all, and its columns.
  'scans.csv': ('results.csv', results.RESULTS),
  'costs.csv': ('costs.csv', results.COSTS),
  'aggregators.csv': ('aggregators.csv', results.AGGREGATORS),
}


def _gather(
  tasks: Sequence[Task],
  folds: Sequence[Fold],
  rows: Mapping[str, ManifestRow],
  workdir: Path,
) -> None:
  """One table of each kind, of this plan and of earlier ones in the same workdir.

  What was planned and not run has rows that say so.
  """
  tested = [run for task in tasks for run in task.tested]
  planned = {
    runs.run_folder(workdir, run, k): (run, k)
    for run in tested
    for k in range(len(folds))
  }
  done = [path.parent for path in sorted(workdir.glob('runs/*/fold*/scans.csv'))]
  for own, (name, columns) in _TABLES.items():
    table = [r for d in done for r in results.read_rows(d / own, columns)]
    if name == 'results.csv':
      for run, k in (planned[f] for f in planned if f not in done):
        for scan_id in folds[k]['val']:
          about = run.columns(k) | testing.about_scan(rows[scan_id])
          table += testing.without_figures(about, 'not run')
    results.write_rows(workdir / name, columns, table)
  missing = len(set(planned) - set(done))
  told = f'; {missing} planned ones are missing' if missing else ''
  progress.say(f'results of {len(done)} runs{told}: {workdir}')
