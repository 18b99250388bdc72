"""Scans in; infection masks on their own grids, numbers, pictures and pages out."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from covid3way.base import (
  ConfigError,
  InputError,
  ModelError,
  ScanWarning,
  WarningKind,
  Window,
)
from covid3way.jobs import memory, outputs
from covid3way.jobs.batch import claim
from covid3way.jobs.preprocess import read_and_cast
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.scans import source
from covid3way.scans.manifest import ManifestRow
from covid3way.segmentation import aggregators
from covid3way.segmentation.maps import PRECISIONS, probability_map
from covid3way.segmentation.model import Model, read_model
from covid3way.segmentation.quantify import disagreement, disagreement_warnings
from covid3way.segmentation.three_way import aggregate
from covid3way.standard import space as spaces
from covid3way.standard.window import ESTIMATED

# Two scans are under way: one computes while the other is read or written.
_COMPUTING, _WRITING = threading.Lock(), threading.Lock()


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Predicts `config.input` with `config.model`; writes `<scan_id>/` per scan.

  Each holds what `outputs.write` says; beside them stand the tables of
  `outputs.write_tables`.
  """
  memory.keep()
  model = read_model(Path(required(config, 'model')))
  model = _with_threshold(model, config.prediction.threshold)
  if model.spec.target != 'infection':
    raise ModelError(config.model, f'it finds {model.spec.target}', 'give another')
  rows = source.resolve(Path(required(config, 'input')))
  settings = {
    'model_sha256': model.sha256,
    'window': config.window.to_dict(),
    'aggregator': aggregators.to_json(model.aggregator),
    'precision': config.prediction.precision,
    'keep_views': config.prediction.keep_views,
    'export': config.export.to_dict(),
  }
  if config.prediction.precision not in PRECISIONS:
    remedy = f'use one of {", ".join(PRECISIONS)}'
    found = repr(config.prediction.precision)
    raise ConfigError('config.prediction.precision', found, remedy)
  outputs.check(config, workdir, 'predict')
  claim(workdir, 'predict', settings)
  outputs.for_each_folder(
    rows,
    lambda row: _predict_scan(row, model, config, workdir),
    what='predict',
    workdir=workdir,
    shard=shard,
    at_a_time=2,
  )


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
  folder = workdir / row.scan_id
  if outputs.read_report(folder):
    return
  outputs.check_source(row, config.export)
  if row.domain != model.spec.domain:
    raise InputError(
      row.scan_id,
      f'signal of domain {row.domain or "HU"!r}, but a model of '
      f'{model.spec.domain or "HU"!r}',
      'give a model that was trained on such scans',
    )
  found = _find(row, model, config)
  with _WRITING:
    outputs.write(folder, row, found, config.export)


def _find(row: ManifestRow, model: Model, config) -> outputs.Finding:
  """A scan's infection. What is held of the standard space is small in the end."""
  scan, lungs, standard = read_and_cast(row, model.spec.space, config.window)
  lobes = outputs.lobes_of(row, scan, lungs)  # Now, as they may not fit.
  with _COMPUTING:
    maps = {
      view: probability_map(
        model,
        view,
        standard.signal,
        standard.lungs,
        batch_size=config.prediction.batch_size,
        precision=config.prediction.precision,
      )
      for view in model.variables
    }
  standard.signal.delete()
  probability, mask = aggregate(maps, standard.lungs, model.aggregator)
  volumes = {'probability': (probability, 1.0)}
  if config.prediction.keep_views:
    volumes |= {
      f'probability_{view}': (each, aggregators.LEVELS) for view, each in maps.items()
    }
  differ = disagreement(maps, standard.lungs)
  about = {
    'model': {
      **dataclasses.asdict(model.spec),
      'sha256': model.sha256,
      'views': list(model.variables),
      'aggregator': aggregators.to_json(model.aggregator),
    },
    'disagreement': differ,
    'given': ['lungs'] if row.lung_mask else [],
  }
  return outputs.Finding(
    scan,
    spaces.return_mask(mask, standard.placement) & (lungs > 0),
    lungs,
    standard.window,
    (
      *standard.warnings,
      *_window_warnings(standard.window, model),
      *disagreement_warnings(differ),
    ),
    lobes,
    {
      name: _on_own_grid(volume, scale, standard.placement, lungs)
      for name, (volume, scale) in volumes.items()
    },
    about,
  )


def _window_warnings(window: Window, model: Model) -> tuple[ScanWarning, ...]:
  """Says so where only this scan's window, or only the training's, was estimated."""
  trained = {source == ESTIMATED for source in model.window_sources}
  if not trained or (window.source == ESTIMATED) in trained:
    return ()
  sources = ', '.join(sorted(model.window_sources))
  message = (
    f'window: {window.source}; trained with: {sources}; '
    'give config.window.choice as for the training'
  )
  return (ScanWarning(WarningKind.WINDOW_UNLIKE_TRAINING, message),)


def _on_own_grid(
  volume: np.ndarray, one: float, placement: spaces.Placement, lungs: np.ndarray
) -> Callable[[spaces.Region], np.ndarray]:
  """What gives parts of a map on the own grid, in [0, 1], 0 outside the lungs.

  Args:
    volume: (x', y', z') in the standard space.
    one: what stands for 1 in it.
    placement: of the own grid.
    lungs: (x, y, z) on the own grid.
  """

  def part(region: spaces.Region) -> np.ndarray:
    own = spaces.return_volume(volume, placement, region) / np.float32(one)
    return np.clip(own, 0, 1) * (lungs[region] > 0)

  return part
