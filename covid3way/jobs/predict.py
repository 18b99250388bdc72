"""Scans in; infection masks on their own grids, numbers and pictures out."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way.base import ConfigError, InputError, ModelError, Scan
from covid3way.evaluation import figures
from covid3way.jobs.batch import (
  WHOLE_JOB,
  Shard,
  claim,
  for_each_scan,
  required,
  versions,
)
from covid3way.jobs.preprocess import read_and_cast
from covid3way.scans import nifti, source
from covid3way.scans.files import whole, write_json
from covid3way.scans.manifest import ManifestRow
from covid3way.segmentation import aggregators
from covid3way.segmentation.maps import probability_map
from covid3way.segmentation.model import Model, read_model
from covid3way.segmentation.quantify import quantify
from covid3way.segmentation.three_way import aggregate
from covid3way.standard import space as spaces
from covid3way.standard.cast import StandardScan

_COLUMNS = (
  'scan_id',
  'infected_percent',
  'infection_ml',
  'lung_ml',
  'left_percent',
  'right_percent',
  'upper_percent',
  'middle_percent',
  'lower_percent',
  'window_level_hu',
  'window_width_hu',
  'window_source',
  'warnings',
)


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Predicts `config.input` with `config.model`; writes `<scan_id>/` per scan.

  Each holds `infection.nii.gz`, `probability.nii.gz`, `lungs.nii.gz` (1 left, 2
  right), `quantification.json` and `overview.png`; beside them `quantification.csv`
  has one row per scan.
  """
  model = read_model(Path(required(config, 'model')))
  model = _with_threshold(model, config.prediction.threshold)
  if model.spec.target != 'infection':
    raise ModelError(config.model, f'it finds {model.spec.target}', 'give another')
  rows = source.resolve(Path(required(config, 'input')))
  settings = {
    'model_sha256': model.sha256,
    'window': config.window.to_dict(),
    'aggregator': aggregators.to_json(model.aggregator),
    'keep_views': config.prediction.keep_views,
  }
  claim(workdir, 'predict', settings)
  try:
    for_each_scan(
      rows,
      lambda row: _predict_scan(row, model, config, workdir),
      what='predict',
      workdir=workdir,
      shard=shard,
    )
  finally:
    if shard.is_whole:
      _write_table(rows, workdir)


def _with_threshold(model: Model, threshold: float | None) -> Model:
  """The model, or with the paper's sum and this threshold for aggregator."""
  if threshold is None:
    return model
  if not 0 < threshold < 3:
    raise ConfigError('config.prediction.threshold', f'{threshold}', 'use 0 to 3')
  plain = aggregators.plain(tuple(model.variables), threshold)
  return dataclasses.replace(model, aggregator=plain)


def _predict_scan(row: ManifestRow, model: Model, config, workdir: Path) -> None:
  """Predicts one scan into its folder, unless that is there already."""
  if (workdir / row.scan_id / 'quantification.json').exists():
    return
  if row.domain != model.spec.domain:
    raise InputError(
      row.scan_id,
      f'signal of domain {row.domain or "HU"!r}, but a model of '
      f'{model.spec.domain or "HU"!r}',
      'give a model that was trained on such scans',
    )
  scan, lungs, standard = read_and_cast(row, model.spec.space, config.window)
  maps = {
    view: probability_map(
      model,
      view,
      standard.signal,
      standard.lungs,
      batch_size=config.prediction.batch_size,
    )
    for view in model.variables
  }
  probability, mask = aggregate(maps, standard.lungs, model.aggregator)
  infection = spaces.return_mask(mask, standard.placement) & (lungs > 0)
  own_probability = _on_own_grid(probability, standard, lungs)
  numbers = quantify(infection, lungs, scan.grid.voxel_ml)
  with whole(workdir / scan.scan_id) as folder:
    folder.mkdir()
    volumes = {
      'infection': infection.astype(np.uint8),
      'lungs': lungs,
      'probability': own_probability,
    }
    if config.prediction.keep_views:
      for view, each in maps.items():
        share = each / np.float32(aggregators.LEVELS)
        volumes[f'probability_{view}'] = _on_own_grid(share, standard, lungs)
    for name, volume in volumes.items():
      nifti.write_volume(
        folder / f'{name}.nii.gz', volume, scan.grid, dtype=volume.dtype
      )
    figures.overview(
      folder / 'overview.png',
      scan,
      infection,
      lungs,
      standard.window,
      f'{scan.scan_id}: {numbers["infected_percent"]:.2f} % of the lung infected',
    )
    write_json(
      folder / 'quantification.json',
      _report(scan, numbers, standard, model),
    )


def _on_own_grid(
  probability: np.ndarray, standard: StandardScan, lungs: np.ndarray
) -> np.ndarray:
  """(x, y, z) float32 in [0, 1] on the own grid, 0 outside the lungs."""
  own = spaces.return_volume(probability, standard.placement)
  return np.clip(own, 0, 1) * (lungs > 0)


def _report(
  scan: Scan, numbers: dict[str, Any], standard: StandardScan, model: Model
) -> dict[str, Any]:
  facts = standard.facts()
  return {
    'scan_id': scan.scan_id,
    **numbers,
    'window': facts['window'],
    'warnings': facts['warnings'],
    'model': {
      **dataclasses.asdict(model.spec),
      'sha256': model.sha256,
      'views': list(model.variables),
      'aggregator': aggregators.to_json(model.aggregator),
    },
    'provenance': dict(scan.provenance),
    'versions': versions(),
  }


def _write_table(rows: list[ManifestRow], workdir: Path) -> None:
  """One row per predicted scan, out of the scans' own JSON files."""
  with whole(workdir / 'quantification.csv') as aside, aside.open('w', newline='') as f:
    table = csv.DictWriter(f, _COLUMNS)
    table.writeheader()
    for row in rows:
      path = workdir / row.scan_id / 'quantification.json'
      if path.exists():
        table.writerow(_table_row(json.loads(path.read_text())))


def _table_row(report: dict[str, Any]) -> dict[str, Any]:
  parts = report['per_lung'] | report['per_third']
  return {
    **{field: report[field] for field in _COLUMNS[:4]},
    **{f'{name}_percent': part['infected_percent'] for name, part in parts.items()},
    **{f'window_{k}': v for k, v in report['window'].items()},
    'warnings': ' '.join(w['kind'] for w in report['warnings']),
  }
