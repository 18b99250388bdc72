"""Cross-validation: methods x folds x augmentation ratios x ablations, and its results.

Under the workdir, beside what preprocess, fit and augment write there:

  splits_final.json          the folds, as nnU-Net has them
  runs/<run>/fold<k>/        split.json, training/, model/, predictions/, scans.csv, ...
  results.csv, costs.csv, aggregators.csv    of all runs, for the report job

A run is one method with one ratio of simulated scans and at most one ablation.
"""

import functools
import importlib
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError
from covid3way.evaluation import folds as folding
from covid3way.evaluation import results
from covid3way.evaluation.results import PADDED
from covid3way.evaluation.scores import OURS
from covid3way.jobs import export, runs, testing
from covid3way.jobs.batch import (
  WHOLE_JOB,
  Shard,
  SomeFailedError,
  claim,
  for_each,
  required,
)
from covid3way.jobs.cohort import check_numbers
from covid3way.jobs.runs import ABLATIONS, Run, Task
from covid3way.networks.registry import METHODS
from covid3way.scans import nnunet, source, store
from covid3way.scans.files import write_json_once
from covid3way.scans.manifest import ManifestRow
from covid3way.scans.store import StoredScan
from covid3way.training import preemption
from covid3way.training.split import check_origin, named_split


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Reads the manifest `config.input`; runs what is not done, gathers what is.

  A shard does every n-th training and its tests; it wants preprocess, fit and augment
  to be done in this workdir, which the whole job does itself. The whole job gathers.

  Raises:
    ConfigError: an unknown method or ablation, or a ratio that cannot be.
    LeakError: a patient, a series or the same voxels on two sides of a fold.
  """
  rows = source.resolve(Path(required(config, 'input')))
  known = {row.scan_id: row for row in rows if not row.is_simulated}
  tasks = plan(config)
  export.check(config.aggregation)
  for task in tasks:
    check_numbers(runs.settings_of(task.training, config))
  folds = _folds(config, workdir, known)  # A mistake is told before hours of work.
  claim(workdir, 'crossval', _noted(config))
  if shard.is_whole:
    _prepare(config, workdir, tasks)
  todo = [(task, k) for k in range(len(folds)) for task in tasks]
  try:
    # A leak, in whatever fold, stops all of them before any begins.
    splits = _Splits(config, workdir, known)
    work = {
      f'{task.training.name}, fold {k}': splits.given(task, k, folds[k])
      for task, k in todo
    }
    _do(work, config, workdir, shard)
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
  first = section.ratios[0]
  tasks = {
    run.name: Task(run, (run,))
    for method in section.methods
    for run in [Run(method, ratio) for ratio in section.ratios]
  }
  if OURS in section.methods:
    extra = [a for a in section.ablations if ABLATIONS[a] != 'view']
    for ablation in extra:
      run = Run(OURS, 0.0) if ablation == 'unaugmented' else Run(OURS, first, ablation)
      tasks[run.name] = Task(run, (run,))
    views = tuple(a for a in section.ablations if ABLATIONS[a] == 'view')
    whole = Run(OURS, first)
    tested = (whole, *(Run(OURS, first, view) for view in views))
    tasks[whole.name] = Task(whole, tested)
  return list(tasks.values())


def _noted(config: ConfigDict) -> dict[str, Any]:
  """Settings on which results depend; more methods, ratios or ablations may follow."""
  section = config.crossval.to_dict()
  for field in ('methods', 'ratios', 'ablations', 'processes'):
    section.pop(field)
  common = ('training', 'aggregation', 'prediction')
  noted = {name: config[name].to_dict() for name in common}
  return {**noted, 'input': config.input, **section}


def _prepare(config: ConfigDict, workdir: Path, tasks: Sequence[Task]) -> None:
  """Casts, fits and simulates what is not there yet; scans that fail are left out."""
  simulate = any(task.training.ratio for task in tasks)
  jobs = ('preprocess', 'fit', 'augment') if simulate else ('preprocess',)
  spaces = {workdir: ()}
  if any(task.training.ablation == PADDED for task in tasks):
    spaces[workdir / PADDED] = tuple(config.crossval.padded_mm)
  for folder, padded_mm in spaces.items():
    own = config.copy_and_resolve_references()
    own.space.padded_mm = padded_mm
    for name in jobs:
      progress.say(f'{name} in {folder} ...')
      (folder / f'failures-{name}.json').unlink(missing_ok=True)  # It may be mended.
      try:
        importlib.import_module(f'covid3way.jobs.{name}').run(own, folder)
      except SomeFailedError as error:
        progress.say(f'{name}: {error}; going on without them')
        # The next job would take the report for its own.
        (folder / 'failures.json').rename(folder / f'failures-{name}.json')


def _folds(
  config: ConfigDict, workdir: Path, rows: Mapping[str, ManifestRow]
) -> list[folding.Fold]:
  """Those of `splits_final.json`, which is made, or copied, when it is not there."""
  section, path = config.crossval, workdir / 'splits_final.json'
  patients = {scan_id: row.patient_id for scan_id, row in rows.items()}
  if not path.exists():
    if section.splits:
      folds = nnunet.read_splits(Path(section.splits), patients)
    else:
      usable = [row for row in rows.values() if row.infection_mask]
      folds = folding.make_folds(
        usable, by=section.by, n=section.folds, seed=section.seed
      )
    nnunet.write_splits(path, folds, patients)
  return nnunet.read_splits(path, patients)


class _Splits:
  """Writes the split of each training, and makes sure that it does not leak."""

  def __init__(
    self, config: ConfigDict, workdir: Path, rows: Mapping[str, ManifestRow]
  ):
    self._config, self._workdir, self._rows = config, workdir, rows
    self._patients = {scan_id: row.patient_id for scan_id, row in rows.items()}
    self._scans = functools.cache(_stored_scans)

  def given(self, task: Task, k: int, fold: folding.Fold) -> tuple[Any, ...]:
    """What `runs.do` is given for a fold.

    Raises:
      LeakError: a patient, a series or the same voxels on two sides.
    """
    is_padded = task.training.ablation == PADDED
    folder = (self._workdir / PADDED if is_padded else self._workdir) / 'store'
    scans = self._scans(folder)
    path = self._workdir / 'runs' / task.training.name / f'fold{k}' / 'split.json'
    if not path.exists():
      sides = self._sides(fold, k, task.training.ratio, scans)
      write_json_once(path, sides)
    tested = {scan: self._rows[scan] for scan in fold['val']}
    held_out = {'test': [scan for scan in tested if scan in scans]}
    named_split(list(scans.values()), json.loads(path.read_text()) | held_out)
    return task, k, self._config.to_dict(), str(folder), str(self._workdir), tested

  def _sides(
    self, fold: folding.Fold, k: int, ratio: float, scans: Mapping[str, StoredScan]
  ) -> dict[str, list[str]]:
    """Scan ids that train, real and simulated, validate and are tested."""
    seed = self._config.crossval.seed
    training, validation = folding.hold_out(
      [scan for scan in fold['train'] if scan in scans],
      self._patients,
      share=self._config.training.validation_share,
      seed=seed + k,
    )
    made = {scan: [] for scan in training}
    for scan_id, scan in scans.items():
      target = scan.attributes.get('simulated', {}).get('to_scan')
      if target in made:
        made[target].append(scan_id)
    return {
      'training': training + folding.choose_simulated(made, ratio, seed=seed),
      'validation': validation,
      'test': [scan for scan in fold['val'] if scan in scans],
    }


def _stored_scans(folder: Path) -> dict[str, StoredScan]:
  """The scans of a store, real and simulated, by name.

  Raises:
    LeakError: one of them is not what its attributes say.
  """
  groups = store.list_groups(folder)
  scans = {scan.scan_id: scan for scan in map(store.open_group, groups)}
  check_origin(list(scans.values()))
  return scans


def _do(
  work: Mapping[str, tuple[Any, ...]], config: ConfigDict, workdir: Path, shard: Shard
) -> None:
  """Does the tasks of a shard, each in a process of its own: its memory is measured.

  Raises:
    SomeFailedError: some failed.
    PreemptedError: SIGTERM came; what was reached is kept.
  """
  mine = list(work)[shard.index :: shard.of]
  context = multiprocessing.get_context('spawn')
  stopped = context.Event()
  pool = ProcessPoolExecutor(
    config.crossval.processes,
    mp_context=context,
    initializer=runs.begin,
    initargs=(logging.get_verbosity(), stopped),
    max_tasks_per_child=1,
  )
  with pool, preemption.forwarding(stopped):
    futures = {
      name: pool.submit(runs.do, *work[name])
      for name in mine
      if runs.missing(*work[name][:2], workdir)
    }

    def finish(future: Future | None) -> None:
      if future is None:  # It was done before.
        return
      try:
        future.result()
      except (preemption.PreemptedError, BrokenProcessPool, CancelledError) as error:
        if not stopped.is_set():
          raise
        told = 'stopped by SIGTERM; the same command goes on from there'
        raise preemption.PreemptedError(told) from error

    try:
      for_each(
        {name: futures.get(name) for name in work},
        finish,
        what='crossval',
        workdir=workdir,
        shard=shard,
        kind='runs',
      )
    except BaseException:
      stopped.set()
      pool.shutdown(wait=False, cancel_futures=True)
      preemption.end_children()
      raise


def _gather(
  tasks: Sequence[Task],
  folds: Sequence[folding.Fold],
  rows: Mapping[str, ManifestRow],
  workdir: Path,
) -> None:
  """One table of each kind; what was not run has rows that say so."""
  tables = {'scans': [], 'costs': [], 'aggregators': []}
  columns = {
    'scans': results.RESULTS,
    'costs': results.COSTS,
    'aggregators': results.AGGREGATORS,
  }
  missing = 0
  for task in tasks:
    for run in task.tested:
      for k, fold in enumerate(folds):
        folder = workdir / 'runs' / run.name / f'fold{k}'
        if (folder / 'scans.csv').exists():
          for kind, table in tables.items():
            table += results.read_rows(folder / f'{kind}.csv', columns[kind])
          continue
        missing += 1
        about = run.columns(k)
        for scan_id in fold['val']:
          given = about | testing.about_scan(rows[scan_id])
          tables['scans'] += testing.without_figures(given, 'not run')
  names = {'scans': 'results', 'costs': 'costs', 'aggregators': 'aggregators'}
  for kind, table in tables.items():
    results.write_rows(workdir / f'{names[kind]}.csv', columns[kind], table)
  told = f'; {missing} runs are missing' if missing else ''
  progress.say(f'results of {len(tasks)} trainings x {len(folds)} folds{told}')
