"""Writes the model directory of a training: its best networks and their aggregator."""

import csv
import dataclasses
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
from covid3way.scans.files import read_json, whole
from covid3way.scans.store import StoredScan
from covid3way.segmentation import aggregators, choosing, oblique_map
from covid3way.segmentation.maps import predict_stacks, probability_map
from covid3way.segmentation.model import Model, write_model
from covid3way.training import checkpoints
from covid3way.training.loop import Pace
from covid3way.training.slices import TIMEOUT_S, naming

# Another run of the same training has others.
_TIMING = [field.name for field in dataclasses.fields(Pace)]
# Scans trained on, and voxels of each, by which MPUnet's views are weighed.
_FUSION_SCANS, _FUSION_VOXELS = 4, 200_000


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `model/` and `aggregators.csv` out of `training/` under the workdir.

  Raises:
    InputError: no training began there, or with other scans.
    ModelError: a part has no checkpoint, or a damaged one.
  """
  check(config.aggregation)
  noted = noted_settings(workdir)
  settings = ConfigDict(noted | {'cache_gib': config.training.cache_gib})
  cohort = open_cohort(Path(settings.input), settings)
  if any(noted[name] != ids for name, ids in cohort.ids().items()):
    raise InputError(
      settings.input,
      'it holds other scans than when the training began',
      'put it back as it was, or train anew in another --workdir',
    )
  parts = cohort.spec.about.predicting(settings.views)
  variables, figures = {}, {}
  for part in settings.views:
    known, figures[part] = checkpoints.best(workdir / 'training' / part)
    if part in parts:
      variables[part] = _with_fusion(part, known, cohort, config.prediction.batch_size)
  untuned = Model(cohort.spec, variables, aggregators.plain(parts), saw=cohort.saw())
  provenance = {
    'settings': noted,
    'versions': versions(),
    'windows': cohort.windows(),
    'training': {
      part: [{k: v for k, v in row.items() if k not in _TIMING} for row in rows]
      for part, rows in figures.items()
    },
  }
  write_tuned(untuned, cohort, config, workdir, provenance)


def write_tuned(
  model: Model,
  cohort: Cohort,
  config: ConfigDict,
  workdir: Path,
  provenance: Mapping[str, Any],
) -> None:
  """Chooses a model's aggregator on the validation scans; writes both.

  Args:
    model: whose aggregator does not matter.
    cohort: of its training.
    config: with `aggregation` and `prediction.batch_size`.
    workdir: of `model/` and `aggregators.csv`.
    provenance: of the model, JSON values.
  """
  aggregator, tried = _choose(
    model, cohort, config.aggregation, config.prediction.batch_size
  )
  _write_table(workdir / 'aggregators.csv', tried)
  chosen = dataclasses.replace(model, aggregator=aggregator)
  write_model(workdir / 'model', chosen, {**provenance, 'aggregators': tried})
  if aggregator.name != config.aggregation.choice != 'best':
    progress.say(
      'no validation scan has infection: the views are joined as in the paper'
    )
  weights = ', '.join(f'{w:g} {view}' for view, w in aggregator.weights.items())
  progress.say(
    f'model written to {workdir / "model"}; views are joined by {aggregator.name!r}: '
    f'{aggregator.kind}, {weights}, threshold {aggregator.threshold:.3f}'
  )


def _with_fusion(part: str, variables: Any, cohort: Cohort, batch_size: int) -> Any:
  """Weights as trained; of oblique planes with the model that fuses the views.

  As in MPUnet it is fitted to scans that were trained on, so that the validation scans
  stay for the threshold. All scans weigh the same.
  """
  spec = cohort.spec
  if spec.about.parts[part].sampling != 'planes':
    return variables
  network = spec.network_of(part)

  def predict(planes: np.ndarray) -> np.ndarray:
    return np.asarray(predict_stacks(network, variables, planes[..., None]))

  real = [s for s in cohort.training if 'simulated' not in s.attributes]
  seen, infected, weights = [], [], []
  with progress.beating('fusing the views') as now:
    for scan in real[:: -(-len(real) // _FUSION_SCANS)]:
      now.is_(f'predicting {scan.scan_id}')
      signal, region, target = _read(scan, cohort)
      each = oblique_map.seen_from(
        predict, spec.plane_grid, signal, region, batch_size=batch_size
      )
      every = -(-each.shape[1] // _FUSION_VOXELS)
      seen.append(each[:, ::every])
      infected.append(target[region][::every])
      weights.append(np.full(len(infected[-1]), 1e4 / len(infected[-1])))
    now.is_('fitting')
    fusion = oblique_map.fit_fusion(
      np.concatenate(seen, axis=1), np.concatenate(infected), np.concatenate(weights)
    )
  return {**variables, 'fusion': fusion}


def _read(scan: StoredScan, cohort: Cohort) -> tuple[np.ndarray, ...]:
  """Signal, where the target is looked for, and the target, (x, y, z)."""
  with naming(scan):
    signal, lungs, target = (
      scan.volumes[name].read().result(TIMEOUT_S)
      for name in ('signal', 'lungs', cohort.spec.target)
    )
  everywhere = cohort.settings.region == 'all'
  region = np.ones(lungs.shape, bool) if everywhere else lungs > 0
  return signal, region, target > 0


def check(aggregation: ConfigDict) -> None:
  """Refuses an aggregator that there is not.

  Raises:
    ConfigError: there is none of that name.
  """
  names = ('best', *choosing.NAMES)
  if aggregation.choice not in names:
    found, remedy = repr(aggregation.choice), f'use one of {", ".join(names)}'
    raise ConfigError('config.aggregation.choice', found, remedy)


def noted_settings(workdir: Path) -> dict[str, Any]:
  """Those of the training, as it noted them."""
  try:
    return read_json(workdir / 'train.json', remedy='train again in another --workdir')
  except InputError as error:
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
      signal, region, target = _read(scan, cohort)
      maps = {
        view: probability_map(
          model, view, jnp.asarray(signal), region, batch_size=batch_size
        )
        for view in model.variables
      }
      tallies.append(choosing.tally(maps, target, region))
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
