"""Compares predicted masks with references: a row per scan, whoever predicted them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import (
  ConfigError,
  Covid3wayError,
  Grid,
  InputError,
  MaskGridError,
)
from covid3way.evaluation import surfaces
from covid3way.evaluation.metrics import dice
from covid3way.evaluation.results import EVALUATIONS, METRICS, SCAN, Row, write_rows
from covid3way.jobs import testing
from covid3way.jobs.batch import report_failures
from covid3way.jobs.usage import WHOLE_JOB, required
from covid3way.scans import nifti, nnunet
from covid3way.scans.manifest import ManifestRow, read_manifest
from covid3way.standard import space as spaces

# Of the lungs that predict found, where the manifest gives others; native rows only.
_LUNGS = ('lungs_dice', 'lungs_surface_dice_1_mm', 'lungs_hausdorff_95_mm')
_COLUMNS = (*SCAN, 'evaluation', 'status', *METRICS, *_LUNGS)


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `evaluation.csv`, and nnU-Net's `summary.json` of the native masks.

  Reads references from the manifest `config.input`, and of every scan
  `<scan_id>/infection.nii.gz`, as predict writes it, or `<scan_id>.nii.gz` under
  `config.predictions`. What cannot be compared has a row whose `status` says why.

  Raises:
    InputError: there is no such folder.
    ConfigError: an unknown evaluation.
    SomeFailedError: scans with a reference could not be compared.
  """
  rows = read_manifest(Path(required(config, 'input')))
  folder = Path(required(config, 'predictions'))
  if not folder.is_dir():
    remedy = 'give the --workdir of a predict job, or a folder of NIfTI masks'
    raise InputError(str(folder), 'no such folder', remedy)
  kinds = tuple(config.evaluation.kinds)
  if not kinds or set(kinds) - set(EVALUATIONS):
    remedy = f'use some of {", ".join(EVALUATIONS)}'
    raise ConfigError('config.evaluation.kinds', f'{kinds}', remedy)
  space = spaces.StandardSpace(tuple(config.space.shape))
  table, compared, failures = [], [], {}
  for row in progress.track(rows, what='evaluate'):
    path = _prediction(folder, row.scan_id)
    found = _evaluate(row, path, space, kinds)
    table += found
    if (status := found[0]['status']) == 'ok':
      compared.append((row.infection_mask, path))
    elif row.infection_mask:
      failures[row.scan_id] = f'{row.scan_id}: {status}'
    _tell(row.scan_id, found)
  table += _strangers(folder, {row.scan_id for row in rows}, kinds)
  write_rows(workdir / 'evaluation.csv', _COLUMNS, table)
  if compared:
    nnunet.write_summary(workdir / 'summary.json', compared, merged=True)
  progress.say(f'{len(compared)} of {len(rows)} scans compared: {workdir}')
  report_failures(failures, len(rows), workdir / WHOLE_JOB.report('evaluate'))


def _prediction(folder: Path, scan_id: str) -> Path | None:
  tried = folder / scan_id / 'infection.nii.gz', folder / f'{scan_id}.nii.gz'
  return next((path for path in tried if path.exists()), None)


def _evaluate(
  row: ManifestRow,
  path: Path | None,
  space: spaces.StandardSpace,
  kinds: tuple[str, ...],
) -> list[Row]:
  about = testing.about_scan(row)
  if path is None:
    return testing.without_figures(about, 'no prediction', kinds)
  if row.infection_mask is None:
    return testing.without_figures(about, 'no reference', kinds)
  what = 'prediction'
  try:
    predicted, grid = nifti.read_labels(path, scan_id=row.scan_id)
    what = 'reference'
    reference = nifti.read_mask(row.infection_mask, grid, scan_id=row.scan_id) > 0
    what = 'lungs'
    lungs, found = _lungs(row, path, grid)
  except MaskGridError:
    return testing.without_figures(about, f'{what} on another grid', kinds)
  except Covid3wayError as error:
    return testing.without_figures(about, f'{what}: {error.found}', kinds)
  masks = reference, predicted > 0
  known = None if lungs is None else lungs > 0

  def standard():
    placement = spaces.place(grid.shape, grid.spacing_mm, space, known)
    cast = [
      None if m is None else spaces.cast_mask(m, placement) for m in (*masks, known)
    ]
    return (*cast, space.spacing_mm)

  native = (*masks, known, grid.spacing_mm)
  rows = testing.compared(about, native, standard, kinds)
  if found is not None and row.lung_mask:
    for each in rows:
      if each['evaluation'] == 'native':
        each |= _lung_figures(known, found > 0, grid.spacing_mm)
  return rows


def _lungs(
  row: ManifestRow, path: Path, grid: Grid
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """The lungs to count in, and those that predict wrote beside its mask.

  The first are the manifest's, else the second; either may be unknown.
  """
  paths = row.lung_mask, path.parent / 'lungs.nii.gz'
  given, found = (
    nifti.read_mask(p, grid, scan_id=row.scan_id) if p and p.exists() else None
    for p in paths
  )
  return found if given is None else given, found


def _lung_figures(
  reference: np.ndarray, found: np.ndarray, spacing_mm: tuple[float, float, float]
) -> Row:
  surface = surfaces.between(reference, found, spacing_mm)
  figures = dice(reference, found), surface.dice(1), surface.hausdorff_95()
  return dict(zip(_LUNGS, figures, strict=True))


def _strangers(folder: Path, known: set[str], kinds: tuple[str, ...]) -> Iterator[Row]:
  """A row for each prediction of a scan that the manifest does not name."""
  names = {path.parent.name for path in folder.glob('*/infection.nii.gz')}
  names |= {path.name.removesuffix('.nii.gz') for path in folder.glob('*.nii.gz')}
  for scan_id in sorted(names - known):
    about = dict.fromkeys(SCAN, '') | {'scan_id': scan_id}
    yield from testing.without_figures(about, 'prediction without its scan', kinds)


def _tell(scan_id: str, rows: list[Row]) -> None:
  first = rows[0]
  told = f'Dice {first["dice"]:.3f}' if first['status'] == 'ok' else first['status']
  progress.say(f'{scan_id}, {first["evaluation"]}: {told}')
