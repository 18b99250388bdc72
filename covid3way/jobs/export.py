"""Writes the model directory of a training: its best networks and their aggregator."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, InputError
from covid3way.jobs.batch import versions
from covid3way.jobs.cohort import Cohort, open_cohort
from covid3way.scans.files import whole
from covid3way.segmentation import aggregators, choosing
from covid3way.segmentation.model import Model, write_model
from covid3way.segmentation.three_way import probability_map
from covid3way.training import checkpoints
from covid3way.training.loop import Pace
from covid3way.training.slices import TIMEOUT_S, naming

# Another run of the same training has others.
_TIMING = [field.name for field in dataclasses.fields(Pace)]


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `model/` and `aggregators.csv` out of `training/` under the workdir.

  Raises:
    InputError: no training began there, or with other scans.
    ModelError: a view has no checkpoint, or a damaged one.
  """
  check(config.aggregation)
  noted = _settings(workdir)
  settings = ConfigDict(noted | {'cache_gib': config.training.cache_gib})
  cohort = open_cohort(Path(settings.input), settings)
  if any(noted[name] != ids for name, ids in cohort.ids().items()):
    raise InputError(
      settings.input,
      'it holds other scans than when the training began',
      'put it back as it was, or train anew in another --workdir',
    )
  variables, figures = {}, {}
  for view in settings.views:
    variables[view], figures[view] = checkpoints.best(workdir / 'training' / view)
  aggregator, tried = _choose(
    Model(cohort.spec, variables, aggregators.plain(tuple(variables))),
    cohort,
    config.aggregation,
    config.prediction.batch_size,
  )
  _write_table(workdir / 'aggregators.csv', tried)
  provenance = {
    'settings': noted,
    'versions': versions(),
    'windows': cohort.windows(),
    'aggregators': tried,
    'training': {
      view: [{k: v for k, v in row.items() if k not in _TIMING} for row in rows]
      for view, rows in figures.items()
    },
  }
  write_model(workdir / 'model', Model(cohort.spec, variables, aggregator), provenance)
  if aggregator.name != config.aggregation.choice != 'best':
    progress.say(
      'no validation scan has infection: the views are joined as in the paper'
    )
  weights = ', '.join(f'{w:g} {view}' for view, w in aggregator.weights.items())
  progress.say(
    f'model written to {workdir / "model"}; views are joined by {aggregator.name!r}: '
    f'{aggregator.kind}, {weights}, threshold {aggregator.threshold:.3f}'
  )


def check(aggregation: ConfigDict) -> None:
  """Refuses an aggregator that there is not.

  Raises:
    ConfigError: there is none of that name.
  """
  names = ('best', *choosing.NAMES)
  if aggregation.choice not in names:
    found, remedy = repr(aggregation.choice), f'use one of {", ".join(names)}'
    raise ConfigError('config.aggregation.choice', found, remedy)


def _settings(workdir: Path) -> dict[str, Any]:
  """Those of the training, as it noted them."""
  path = workdir / 'train.json'
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      str(workdir), 'no training began here', 'give the --workdir of a train job'
    ) from error


def _choose(
  model: Model, cohort: Cohort, aggregation: ConfigDict, batch_size: int
) -> tuple[aggregators.Aggregator, list[dict[str, Any]]]:
  """The aggregator that suits the validation scans, and the table of all tried."""
  tallies = []
  with progress.beating('choosing the aggregator') as now:
    for scan in cohort.validation:
      now.is_(f'predicting {scan.scan_id}')
      with naming(scan):
        signal, lungs, target = (
          scan.volumes[name].read().result(TIMEOUT_S)
          for name in ('signal', 'lungs', model.spec.target)
        )
      everywhere = cohort.settings.region == 'all'
      region = np.ones(lungs.shape, bool) if everywhere else lungs > 0
      maps = {
        view: probability_map(
          model, view, jnp.asarray(signal), region, batch_size=batch_size
        )
        for view in model.variables
      }
      tallies.append(choosing.tally(maps, target > 0, region))
    now.is_('comparing')
    return choosing.choose(
      tallies,
      tuple(model.variables),
      name=aggregation.choice,
      margin=aggregation.margin,
    )


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  with whole(path) as aside, aside.open('w', newline='') as file:
    table = csv.DictWriter(file, list(rows[0]) if rows else [])
    table.writeheader()
    table.writerows(rows)
