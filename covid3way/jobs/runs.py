"""One training of a cross-validation, and the runs that are tested with it."""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError
from covid3way.evaluation import results
from covid3way.evaluation.results import Row
from covid3way.jobs import export, testing, train
from covid3way.jobs.batch import peak_bytes
from covid3way.jobs.cohort import Cohort, open_cohort
from covid3way.scans import nnunet, store
from covid3way.scans.manifest import ManifestRow
from covid3way.segmentation import aggregators, choosing
from covid3way.segmentation.aggregators import Aggregator
from covid3way.segmentation.model import Model, read_model
from covid3way.training import checkpoints

# Ablations of the three-way method. A view is tested with the networks of the whole
# method, of which it is one; other offsets are other slices in a stack.
VIEWS = ('xy', 'yz', 'xz')
_OFFSETS_MM = {
  'offsets_0': (0.0,),
  'offsets_2': (-2.0, 0.0, 2.0),
  'offsets_5_10': (-10.0, -5.0, 0.0, 5.0, 10.0),
}
ABLATIONS = (results.PADDED, 'unaugmented', *VIEWS, *_OFFSETS_MM)


@dataclasses.dataclass(frozen=True)
class Run:
  """A row of the tables.

  Attributes:
    method: of `registry.METHODS`.
    ratio: simulated scans per real one.
    ablation: of `ABLATIONS`, or ''.
  """

  method: str
  ratio: float
  ablation: str = ''

  @property
  def name(self) -> str:
    """Of its folder: three_way-200-xy."""
    parts = (self.method, f'{100 * self.ratio:g}', self.ablation)
    return '-'.join(part for part in parts if part)

  def columns(self, fold: int) -> Row:
    """What the result tables say of it."""
    return {
      'run': self.name,
      'method': self.method,
      'ratio_percent': 100 * self.ratio,
      'ablation': self.ablation,
      'fold': fold,
    }


@dataclasses.dataclass(frozen=True)
class Task:
  """One training, and all runs that are tested with its networks, itself included."""

  training: Run
  tested: tuple[Run, ...]


def do(
  task: Task,
  fold: int,
  settings: Mapping[str, Any],
  workdir: Path,
  rows: Mapping[str, ManifestRow],
) -> None:
  """Trains, chooses threshold and aggregator on validation scans, and tests.

  Args:
    task: of one fold.
    fold: its number.
    settings: the job's config, as a dict: this may be another process.
    workdir: of the job.
    rows: what the manifest says of the tested scans.

  Raises:
    LeakError: a tested scan, its patient or its voxels trained or validated.
  """
  todo, folder = missing(task, fold, workdir), run_folder(workdir, task.training, fold)
  config, scans = ConfigDict(settings), store_folder(workdir, task.training)
  config.input = str(scans)
  config.training = settings_of(task.training, config)
  config.training.split = str(folder / 'split.json')
  if not (folder / 'model').exists():
    train.run(config, folder)
  cohort = open_cohort(scans, config.training)
  for run in todo:
    own = run_folder(workdir, run, fold)
    if own != folder and not (own / 'model').exists():
      _write_part(run.ablation, cohort, config, folder, own)
    _test(run, fold, read_model(own / 'model'), config, own, folder, rows)


def missing(task: Task, fold: int, workdir: Path) -> list[Run]:
  """The runs of a task that a fold's results lack."""
  folders = {run: run_folder(workdir, run, fold) for run in task.tested}
  return [run for run, own in folders.items() if not (own / 'scans.csv').exists()]


def run_folder(workdir: Path, run: Run, fold: int) -> Path:
  """Of a run's training, model, predictions and results of one fold."""
  return workdir / 'runs' / run.name / f'fold{fold}'


def store_folder(workdir: Path, run: Run) -> Path:
  """The scans, in the standard space, that a run looks at."""
  base = workdir / results.PADDED if run.ablation == results.PADDED else workdir
  return base / 'store'


# Of `config.training`, what a run decides.
_GIVEN = {'target': 'infection', 'fold': '', 'split': ''}


def settings_of(run: Run, config: ConfigDict) -> ConfigDict:
  """A run's `config.training`: the common settings, the method's own, the run's.

  Raises:
    ConfigError: the config has none of the method.
  """
  own = config.crossval.settings
  if run.method not in own:
    found, remedy = f'no {run.method!r}', 'add it; it may be empty'
    raise ConfigError('config.crossval.settings', found, remedy)
  settings = ConfigDict({**config.training.to_dict(), **_GIVEN})
  settings.update(own[run.method], method=run.method, simulated_ratio=run.ratio)
  if run.ablation in _OFFSETS_MM:
    settings.offsets_mm = _OFFSETS_MM[run.ablation]
  return settings


def _write_part(
  view: str, cohort: Cohort, config: ConfigDict, whole: Path, folder: Path
) -> None:
  """The model of one view alone, with a threshold of its own."""
  variables, _ = checkpoints.best(whole / 'training' / view)
  model = Model(
    cohort.spec, {view: variables}, aggregators.plain((view,)), saw=cohort.saw()
  )
  settings = export.noted_settings(whole)
  export.write_tuned(model, cohort, config, folder, {'settings': settings})


def _test(
  run: Run,
  fold: int,
  model: Model,
  config: ConfigDict,
  folder: Path,
  trained: Path,
  rows: Mapping[str, ManifestRow],
) -> None:
  """Writes predictions, `costs.csv`, `aggregators.csv`, and `scans.csv` last."""
  about, scans, tried, seconds = run.columns(fold), [], [], []
  batch_size = config.prediction.batch_size
  candidates = _candidates(folder)
  compared = []
  for row in rows.values():
    path = store.group_path(Path(config.input), row.scan_id)
    if not path.exists():
      status = 'not cast: see failures-preprocess.json'
      scans += testing.without_figures(about | testing.about_scan(row), status)
      continue
    scan = store.open_group(path)
    found = testing.predict(model, scan, row, batch_size=batch_size)
    testing.write(folder / 'predictions', scan, found)
    seconds.append(found.seconds)
    scans += [about | each for each in testing.compare(found, scan, row)]
    if scans[-1]['status'] == 'ok':
      predicted = folder / 'predictions' / f'{row.scan_id}.nii.gz'
      compared.append((row.infection_mask, predicted))
    if 'infection' in scan.volumes:
      reference, lungs = (
        scan.volumes[name].read().result() > 0 for name in ('infection', 'lungs')
      )
      tally = choosing.tally(found.maps, reference, lungs)
      tried += [
        {
          **about,
          'scan_id': row.scan_id,
          'aggregator': each.name,
          'dice': choosing.dice(each, tally),
        }
        for each in candidates
      ]
    progress.say(f'{run.name}, fold {fold}: {row.scan_id} tested')
  costs = about | _costs(model, config, trained) | {'prediction_s': _median(seconds)}
  results.write_rows(folder / 'costs.csv', results.COSTS, [costs])
  results.write_rows(folder / 'aggregators.csv', results.AGGREGATORS, tried)
  if compared:
    nnunet.write_summary(folder / 'summary.json', compared, merged=True)
  results.write_rows(folder / 'scans.csv', results.RESULTS, scans)


def _candidates(folder: Path) -> list[Aggregator]:
  """All aggregators that the validation scans gave, as the model keeps them."""
  content = json.loads((folder / 'model' / 'model.json').read_text())
  fields = [field.name for field in dataclasses.fields(Aggregator)]
  return [
    Aggregator(**{field: tried[field] for field in fields})
    for tried in content['aggregators']
  ]


def _costs(model: Model, config: ConfigDict, folder: Path) -> Row:
  """What a training cost, and what its networks are.

  Of a training that was interrupted within an epoch that part is not counted, and of a
  call that only tests the memory is that of testing.
  """
  parts = {
    part: checkpoints.best(folder / 'training' / part)[1]
    for part in config.training.views
    if model.spec.about.staged or part in model.variables
  }
  device = jax.devices()[0]
  return {
    'parameters': model.parameters,
    'width': config.training.width,
    'training_s': round(sum(r['seconds'] for p in parts.values() for r in p), 1),
    'training_steps': sum(rows[-1]['step'] for rows in parts.values()),
    'peak_gib': round(peak_bytes(device) / 2**30, 2),
    'device': device.device_kind,
    'threshold': model.aggregator.threshold,
    'aggregator': model.aggregator.name,
  }


def _median(seconds: list[float]) -> float | None:
  """Of the tested scans: the first one's, which may hold compilation, weighs little."""
  return round(statistics.median(seconds), 2) if seconds else None
