"""Masks that are there in; numbers, pictures and pages out, without any network."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way.base import InputError, Scan, ScanWarning, WarningKind
from covid3way.jobs import outputs
from covid3way.jobs.batch import claim
from covid3way.jobs.preprocess import lungs_of, window_of
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.scans import nifti, source
from covid3way.scans.files import sha256
from covid3way.scans.manifest import ManifestRow
from covid3way.segmentation.quantify import disagreement_warnings

# Of the report beside a mask: what cannot be measured of the mask.
_KEPT = ('model', 'disagreement', 'given')


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Quantifies masks of `config.input`, or of `config.predictions`.

  Writes `<scan_id>/` per scan, as `outputs.write` says, and beside them the tables of
  `outputs.write_tables`.

  Raises:
    InputError: `config.predictions` is no folder.
  """
  rows = source.resolve(Path(required(config, 'input')))
  if config.predictions:
    rows = [_predicted(row, Path(config.predictions)) for row in rows]
  settings = {'window': config.window.to_dict(), 'export': config.export.to_dict()}
  outputs.check(config, workdir, 'quantify')
  claim(workdir, 'quantify', settings)
  outputs.for_each_folder(
    rows,
    lambda row: _quantify_scan(row, config, workdir),
    what='quantify',
    workdir=workdir,
    shard=shard,
  )


def _predicted(row: ManifestRow, predictions: Path) -> ManifestRow:
  """The row with the masks that predict wrote, which go before its own."""
  if not predictions.is_dir():
    remedy = 'give the --workdir of a predict job'
    raise InputError('config.predictions', 'no such folder', remedy)
  folder = predictions / row.scan_id
  lungs = folder / 'lungs.nii.gz'
  return dataclasses.replace(
    row,
    infection_mask=folder / 'infection.nii.gz',
    lung_mask=lungs if lungs.exists() else row.lung_mask,
  )


def _quantify_scan(row: ManifestRow, config: ConfigDict, workdir: Path) -> None:
  """Quantifies one scan, unless that is done already of the same masks."""
  if row.infection_mask is None or not row.infection_mask.exists():
    raise InputError(
      row.scan_id,
      'no infection mask',
      "give it in the manifest's column infection_mask, or give --config.predictions",
    )
  folder = workdir / row.scan_id
  files = {
    'infection': row.infection_mask,
    'lungs': row.lung_mask,
    'lobes': row.lobe_mask,
  }
  masks = {f'{n}_sha256': sha256(path) for n, path in files.items() if path}
  if (earlier := outputs.read_report(folder)) and earlier['masks'] == masks:
    return
  outputs.check_source(row, config.export)
  scan = source.read_scan(row)
  infection = nifti.read_mask(row.infection_mask, scan.grid, scan_id=row.scan_id) > 0
  lungs, lung_warnings = lungs_of(row, scan)
  window, window_warnings = window_of(row, scan, lungs, config.window)
  given = ['infection', *(['lungs'] if row.lung_mask else [])]
  kept = _kept(row.infection_mask.parent, masks['infection_sha256'])
  found = outputs.Finding(
    scan,
    infection,
    lungs,
    window,
    (
      *scan.warnings,
      *window_warnings,
      *lung_warnings,
      *_outside(infection, lungs, scan),
      *disagreement_warnings(kept.get('disagreement')),
    ),
    outputs.lobes_of(row, scan, lungs),
    about={'masks': masks, 'given': given, **kept},
  )
  outputs.write(folder, row, found, config.export)


def _outside(
  infection: np.ndarray, lungs: np.ndarray, scan: Scan
) -> tuple[ScanWarning, ...]:
  """Says what of a mask does not count, if anything."""
  ml = np.count_nonzero(infection & (lungs == 0)) * scan.grid.voxel_ml
  if not ml:
    return ()
  message = f'{ml:.2f} ml of the infection mask lie outside the lungs; not counted'
  return (ScanWarning(WarningKind.INFECTION_OUTSIDE_LUNGS, message),)


def _kept(folder: Path, infection_sha256: str) -> dict[str, Any]:
  """What the report beside a mask says of where it comes from, if it is of this one."""
  report = outputs.read_report(folder) or {}
  if report.get('infection_sha256') != infection_sha256:
    return {}
  return {name: report[name] for name in _KEPT if name in report}
