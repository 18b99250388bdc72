"""The whole method on a phantom cohort: make it, train, predict, compare."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, Window
from covid3way.evaluation import figures
from covid3way.evaluation.metrics import dice, recall
from covid3way.jobs import augment, fit, phantom, predict, preprocess, train, watching
from covid3way.scans import nifti, source
from covid3way.scans.files import whole, write_json
from covid3way.scans.manifest import ManifestRow, read_manifest, write_manifest
from covid3way.segmentation.quantify import quantify

_PLAIN = 'without_augmentation'


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `cohort/`, `store/`, `fits/`, `model/`, `predictions/` and `results.json`.

  And `without_augmentation/`, a model trained on the real scans alone, with its
  predictions.
  """
  seconds, began = {}, time.monotonic()

  def stage(job, folder, *, name=None, **inputs):
    start = time.monotonic()
    name = name or job.__name__.rpartition('.')[2]
    progress.say(f'{name} ...')
    stage_config = ConfigDict(config)
    stage_config.update(inputs)
    job.run(stage_config, folder)
    seconds[name] = round(time.monotonic() - start, 1)

  stage(phantom, workdir / 'cohort')
  held_out = _split(workdir, config.held_out_patients)
  training, blind = str(workdir / 'training.csv'), str(workdir / 'held_out.csv')
  stage(preprocess, workdir, input=training)
  stage(fit, workdir, input=training)
  stage(augment, workdir, input=training)
  ratio = config.training.simulated_ratio
  for simulated_ratio, name, folder in (
    (ratio, '', workdir),
    (0.0, '_' + _PLAIN, workdir / _PLAIN),
  ):
    stage(
      train,
      folder,
      name='train' + name,
      input=str(workdir / 'store'),
      training={'simulated_ratio': simulated_ratio},
    )
    model = str(folder / 'model')
    predictions = folder / 'predictions'
    stage(predict, predictions, name='predict' + name, input=blind, model=model)
  scans = [_compare(row, workdir, config.training.views) for row in held_out]
  results = _summary(scans, config.training.views)
  seconds['total'] = round(time.monotonic() - began, 1)
  write_json(workdir / 'results.json', results | {'seconds': seconds})
  curves = {
    view: watching.rows(workdir / 'training' / view) for view in config.training.views
  }
  with whole(workdir / 'training.png') as aside:
    figures.training_curves(aside, curves)
  _tell(results, seconds, workdir)


def _split(workdir: Path, n: int) -> list[ManifestRow]:
  """Parts the patients; the held-out manifest names scans and nothing known of them.

  Held-out patients are spread evenly over the cohort ordered by stage. Of each the
  first scan is predicted, as it is for a diagnosis; the others are not used.

  Returns:
    The held-out rows with their references.
  """
  rows = read_manifest(workdir / 'cohort' / 'manifest.csv')
  first = {row.patient_id: row for row in reversed(rows)}
  if not 0 < n < len(first):
    raise ConfigError(
      'config.held_out_patients',
      f'{n} of {len(first)}',
      'hold out fewer than there are',
    )
  ordered = sorted(first.values(), key=lambda row: (row.stage, row.scan_id))
  middles = (np.arange(n) + 0.5) * len(ordered) / n
  held_out = [ordered[int(i)] for i in middles]
  patients = {row.patient_id for row in held_out}
  blind = [
    ManifestRow(row.patient_id, row.scan_id, row.image, scanner=row.scanner)
    for row in held_out
  ]
  training = [row for row in rows if row.patient_id not in patients]
  write_manifest(workdir / 'training.csv', training)
  write_manifest(workdir / 'held_out.csv', blind)
  return held_out


def _compare(row: ManifestRow, workdir: Path, views: tuple[str, ...]) -> dict[str, Any]:
  """One scan's row of the results, and its picture with both outlines."""
  folder = workdir / 'predictions' / row.scan_id
  scan = source.read_scan(row)

  def read(path):
    return nifti.read_volume(path, scan_id=row.scan_id)[0]

  plain = workdir / _PLAIN / 'predictions' / row.scan_id
  reference, infection, without, lungs = (
    read(path)
    for path in (
      row.infection_mask,
      folder / 'infection.nii.gz',
      plain / 'infection.nii.gz',
      folder / 'lungs.nii.gz',
    )
  )
  true = quantify(reference, read(row.lung_mask), scan.grid.voxel_ml)
  report = json.loads((folder / 'quantification.json').read_text())
  result = {
    'scan_id': row.scan_id,
    'stage': row.stage,
    'scanner': row.scanner,
    'dice': dice(reference, infection),
    f'dice_{_PLAIN}': dice(reference, without),
    'recall': recall(reference, infection),
    'dice_per_view': {
      view: dice(reference, read(folder / f'probability_{view}.nii.gz') > 0.5)
      for view in views
    },
    'infected_percent_predicted': report['infected_percent'],
    'infected_percent_true': true['infected_percent'],
  }
  with whole(workdir / 'pictures' / f'{row.scan_id}.png') as aside:
    figures.overview(
      aside,
      scan,
      infection,
      lungs,
      Window(**report['window']),
      f'{row.scan_id} ({row.stage}): Dice {result["dice"]:.2f}, '
      f'infected {report["infected_percent"]:.2f} %, '
      f'truly {true["infected_percent"]:.2f} %',
      reference=reference,
    )
  return result


def _summary(scans: list[dict[str, Any]], views: tuple[str, ...]) -> dict[str, Any]:
  return {
    'dice_mean': float(np.mean([s['dice'] for s in scans])),
    f'dice_mean_{_PLAIN}': float(np.mean([s[f'dice_{_PLAIN}'] for s in scans])),
    'dice_per_view': {
      view: float(np.mean([s['dice_per_view'][view] for s in scans])) for view in views
    },
    'scans': scans,
  }


def _tell(results: dict[str, Any], seconds: dict[str, float], workdir: Path) -> None:
  for scan in results['scans']:
    progress.say(
      '{scan_id}, {stage}: Dice {dice:.3f} (without augmentation '
      '{dice_without_augmentation:.3f}), infected {infected_percent_predicted:.2f} % '
      '(truly {infected_percent_true:.2f} %)'.format(**scan)
    )
  views = ', '.join(f'{v} {d:.3f}' for v, d in results['dice_per_view'].items())
  progress.say(
    f'mean Dice on held-out patients: {results["dice_mean"]:.3f} '
    f'(single views: {views}); without augmentation '
    f'{results[f"dice_mean_{_PLAIN}"]:.3f}'
  )
  progress.say(f'{seconds["total"]} s in all; results under {workdir}')
