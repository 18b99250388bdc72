"""Fits W to every pair of serial scans; tells how well it foretells the next scan."""

import csv
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.evaluation.fits import fit_picture
from covid3way.jobs import series
from covid3way.jobs.batch import claim, for_each, versions
from covid3way.jobs.laws import fit_settings, load_law, parameters_of
from covid3way.jobs.preprocess import claim_store, stored
from covid3way.jobs.series import Series
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.scans import source
from covid3way.scans.files import read_json, sealed, whole, write_json
from covid3way.scans.manifest import file_name
from covid3way.simulator import histogram, parameters, population, serial
from covid3way.simulator.fit import FitSettings, fit
from covid3way.simulator.law import Law
from covid3way.simulator.serial import Pair

_PREDICTORS = ('law', 'copy_last', 'scaled')


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Reads `config.input`; writes `fits/<patient>.json` and `.png` under the workdir.

  Beside them `fit_report.json` and `fit_report.csv` compare, for every scan whose two
  predecessors are known, the law's forecast of its histogram with two trivial ones.
  """
  rows = source.resolve(Path(required(config, 'input')))
  law, settings = load_law(config.simulator.law), fit_settings(config.fit)
  claim_store(config, workdir)
  claim(workdir, 'fit', {'law': config.simulator.law, **config.fit.to_dict()})
  patients = series.by_patient(rows)
  try:
    for_each(
      patients,
      lambda known: _fit_patient(known, law, settings, config, workdir),
      what='fit',
      workdir=workdir,
      shard=shard,
      kind='patients',
    )
  finally:
    if shard.is_whole:
      _report(list(patients.values()), law, workdir)


def fit_path(workdir: Path, patient_id: str) -> Path:
  """Where a patient's fits are."""
  return workdir / 'fits' / f'{file_name(patient_id, "patient")}.json'


def read_fits(path: Path) -> dict[str, Any]:
  """A patient's fits.

  Raises:
    DamagedFileError: they are not as they were written.
  """
  return read_json(path, remedy='remove it and run the fit job again')


def covers(fits: Mapping[str, Any], pairs: Sequence[Pair]) -> bool:
  """Whether a patient's fits are those of these pairs."""
  return [(p['from_scan'], p['to_scan'], p['transitions']) for p in fits['pairs']] == [
    (p.from_scan, p.to_scan, p.transitions) for p in pairs
  ]


def _fit_patient(
  known: Series, law: Law, settings: FitSettings, config: ConfigDict, workdir: Path
) -> None:
  """Fits the pairs of one patient, unless they are fitted already."""
  path, pairs = fit_path(workdir, known.patient_id), known.pairs()
  if path.exists() and covers(read_fits(path), pairs):
    return
  edges = histogram.bin_edges().tolist()
  fitted, warnings, before = [], [], None
  for pair in pairs:
    row = known.row(pair.to_scan)
    scan = series.read(stored(row, config, workdir / 'store'), pair)
    warnings += [
      {'scan_id': pair.to_scan, **dataclasses.asdict(w)} for w in scan.warnings
    ]
    infected = scan.signal[scan.infection]
    observed = histogram.counts(infected)
    before = _invented(infected) if before is None else before
    one = _fit_pair(pair, before, observed, law, settings)
    fitted.append({**one, 'bin_edges': edges})
    before = observed
  with whole(path.with_suffix('.png')) as aside:
    fit_picture(aside, known.patient_id, fitted)
  about = {
    'patient_id': known.patient_id,
    'law': config.simulator.law,
    'seed': settings.seed,
    'warnings': warnings,
    'versions': versions(),
  }
  write_json(path, sealed({**about, 'pairs': fitted}))


def _invented(infected: np.ndarray) -> np.ndarray:
  """(n,) signals of the first scan -> histogram of the invented start.

  All of it is at one signal, so it does not matter which voxels are chosen.
  """
  everywhere = np.ones(len(infected), bool)
  start = serial.invented_start(jax.random.key(0), infected, everywhere)
  return histogram.counts(np.asarray(start.signal)[start.infection])


def _fit_pair(
  pair: Pair, before: np.ndarray, after: np.ndarray, law: Law, settings: FitSettings
) -> dict[str, Any]:
  """One pair's entry: W, its losses and its histograms."""
  began = time.monotonic()
  found = fit(
    before,
    after,
    pair.transitions,
    law=law,
    settings=settings,
    subject=pair.subject,
  )
  progress.say(
    f'{pair.subject}: relative loss {found.relative_loss:.2e} '
    f'({"better" if found.better else "NOT better"} than both trivial predictors)'
  )
  losses = ('loss', 'relative_loss', 'copy_last_loss', 'scaled_loss')
  return {
    'from_scan': pair.from_scan,
    'to_scan': pair.to_scan,
    'transitions': pair.transitions,
    'W': parameters.as_dict(found.w),
    **{name: float(getattr(found, name)) for name in losses},
    'better': bool(found.better),
    'observed_from': before.tolist(),
    'observed_to': after.tolist(),
    'predicted': np.asarray(found.predicted).tolist(),
    'history': np.asarray(found.history).tolist(),
    'seconds': round(time.monotonic() - began, 2),
  }


def forecasts(fits: Mapping[str, Any], law: Law) -> list[dict[str, Any]]:
  """How well each pair's W foretells the scan after the pair.

  For adjacent pairs (a, b) and (b, c), the law fitted on the first one takes b's
  histogram to the time of c. It is compared with b's histogram as it is, and scaled
  to the volume of c, which no forecast could know.

  Args:
    fits: of one patient, as its JSON file holds them.
    law: the model.

  Returns:
    A row per adjacent pairs; `law`, `copy_last` and `scaled` are Eq. (3) relative to
    the observed histogram's own integral.
  """
  rows = []
  for first, then in itertools.pairwise(fits['pairs']):
    subject = f'patient {fits["patient_id"]}, pair ending at {first["to_scan"]}'
    w = parameters_of(first['W'], law, subject=subject)
    b, c = (np.array(then[k]) for k in ('observed_from', 'observed_to'))
    predicted = {
      'law': np.asarray(population.evolve(w, b, then['transitions'], law=law)),
      'copy_last': b,
      'scaled': b * c.sum() / b.sum(),
    }
    losses = {k: float(population.relative_loss(p, c)) for k, p in predicted.items()}
    rows.append(
      {
        'patient_id': fits['patient_id'],
        'fitted_from': first['from_scan'] or 'invented start',
        'fitted_to': first['to_scan'],
        'foretold': then['to_scan'],
        'transitions': then['transitions'],
        **losses,
        'better': losses['law'] < min(losses['copy_last'], losses['scaled']),
      }
    )
  return rows


def _report(patients: Sequence[Series], law: Law, workdir: Path) -> None:
  """Writes and prints the forecasts of all patients that are fitted."""
  paths = [fit_path(workdir, known.patient_id) for known in patients]
  fits = [read_fits(path) for path in paths if path.exists()]
  rows = [row for each in fits for row in forecasts(each, law)]
  kinds = {
    'invented start': [r for r in rows if r['fitted_from'] == 'invented start'],
    'two scans': [r for r in rows if r['fitted_from'] != 'invented start'],
  }
  summary = {
    kind: {'forecasts': len(some), 'better': sum(r['better'] for r in some)}
    for kind, some in kinds.items()
  }
  pairs = [pair for each in fits for pair in each['pairs']]
  fitted = {'pairs': len(pairs), 'better': sum(pair['better'] for pair in pairs)}
  report = {'fitted': fitted, 'forecasts': summary, 'rows': rows}
  write_json(workdir / 'fit_report.json', report)
  if rows:
    path = workdir / 'fit_report.csv'
    with whole(path) as aside, aside.open('w', newline='') as stream:
      table = csv.DictWriter(stream, rows[0])
      table.writeheader()
      table.writerows(rows)
  _tell(report)


def _tell(report: Mapping[str, Any]) -> None:
  for row in report['rows']:
    losses = ', '.join(f'{name} {row[name]:.4f}' for name in _PREDICTORS)
    progress.say(
      f'{row["patient_id"]}: fitted on {row["fitted_from"]} -> {row["fitted_to"]}, '
      f'{row["foretold"]} foretold: relative loss {losses}'
    )
  fitted = report['fitted']
  progress.say(
    f'fitted law better than both trivial predictors in {fitted["better"]} of '
    f'{fitted["pairs"]} pairs'
  )
  for kind, n in report['forecasts'].items():
    if n['forecasts']:
      progress.say(
        f'forecast from {kind}: law better than both in {n["better"]} of '
        f'{n["forecasts"]}'
      )
