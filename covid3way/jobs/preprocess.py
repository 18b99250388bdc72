"""Casts every scan of a cohort into the standard space and stores it as zarr."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import Scan, ScanWarning, Window
from covid3way.jobs.batch import claim, for_each_scan
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.scans import nifti, source, store
from covid3way.scans.manifest import ManifestRow
from covid3way.standard import space as spaces
from covid3way.standard.cast import StandardScan, cast
from covid3way.standard.lungs import find_lungs, take_lungs
from covid3way.standard.window import (
  ESTIMATED,
  check_choice,
  choose_window,
  estimate_window,
)


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Reads `config.input`; writes `store/<scan_id>.zarr` per scan under the workdir."""
  rows = source.resolve(Path(required(config, 'input')))
  folder = claim_store(config, workdir)
  for_each_scan(
    rows,
    lambda row: stored(row, config, folder),
    what='cast',
    workdir=workdir,
    shard=shard,
  )
  if shard.is_whole:
    progress.say(f'{len(rows)} scans in standard space under {folder}')


def claim_store(config: ConfigDict, workdir: Path) -> Path:
  """The folder of all scans that are cast as `config.space` and `window` say.

  Raises:
    ConfigError: an earlier job of this workdir cast them otherwise, or an unknown
      choice of the window.
  """
  check_choice(config.window.choice)
  settings = {'space': config.space.to_dict(), 'window': config.window.to_dict()}
  claim(workdir, 'preprocess', settings)
  return workdir / 'store'


def stored(row: ManifestRow, config: ConfigDict, folder: Path) -> store.StoredScan:
  """A scan in standard space, opened; cast first unless it is there already."""
  path = store.group_path(folder, row.scan_id)
  if not path.exists():
    _cast_into(path, row, config)
  return store.open_group(path)


def _cast_into(path: Path, row: ManifestRow, config: ConfigDict) -> None:
  space = spaces.StandardSpace(tuple(config.space.shape))
  padded_mm = tuple(config.space.padded_mm)
  scan, _, standard = read_and_cast(row, space, config.window, padded_mm)
  volumes = {'signal': standard.signal, 'lungs': standard.lungs}
  given = {'infection': row.infection_mask, 'susceptible': row.susceptible_mask}
  for name, file in given.items():
    if file:
      mask = nifti.read_mask(file, scan.grid, scan_id=row.scan_id)
      volumes[name] = spaces.cast_mask(mask > 0, standard.placement)
  store.write_group(path, volumes, attributes_of(row, scan, standard))


def attributes_of(
  row: ManifestRow, scan: Scan, standard: StandardScan
) -> dict[str, Any]:
  """What a scan's group says of it, as JSON values."""
  known = ('patient_id', 'scan_id', 'day', 'stage', 'scanner', 'site', 'domain')
  placement = standard.placement
  # Of the standard space, in the scan's own mm, whatever it was taken to have.
  stretch = np.divide(scan.grid.spacing_mm, placement.own_spacing_mm)
  spacing_mm = np.multiply(placement.space.spacing_mm, stretch)
  return {
    **{field: getattr(row, field) for field in known},
    **standard.facts(),
    **scan.grid.to_json(),
    'spacing_mm': spacing_mm.tolist(),
    'provenance': dict(scan.provenance),
    'voxels_sha256': voxels_sha256(scan),
  }


def voxels_sha256(scan: Scan) -> str:
  """By which the same voxels are known again under another name."""
  return hashlib.sha256(scan.hu).hexdigest()[:16]


def read_and_cast(
  row: ManifestRow,
  space: spaces.StandardSpace,
  window_config: ConfigDict,
  padded_mm: tuple[float, ...] = (),
) -> tuple[Scan, np.ndarray, StandardScan]:
  """Reads one scan, finds (or takes) its lungs and casts it.

  Args:
    row: of the scan.
    space: to cast into.
    window_config: `config.window`.
    padded_mm: not empty: the size that voxels are taken to have, and no window but the
      default.

  Returns:
    The scan, its lung labels on the own grid, and the scan in standard space.
  """
  scan = source.read_scan(row)
  lungs, lung_warnings = lungs_of(row, scan)
  if padded_mm:
    default = window_config.level_hu, window_config.width_hu
    window, window_warnings = Window(*default, 'none: not normalised'), ()
  else:
    window, window_warnings = window_of(row, scan, lungs, window_config)
  warnings = window_warnings + lung_warnings
  return scan, lungs, cast(scan, lungs, window, space, warnings, padded_mm)


def lungs_of(
  row: ManifestRow, scan: Scan
) -> tuple[np.ndarray, tuple[ScanWarning, ...]]:
  """The lungs that the manifest gives, else those that are found.

  Returns:
    As `find_lungs`.

  Raises:
    Covid3wayError: see `nifti.read_mask`, `take_lungs` and `find_lungs`.
  """
  spacing_mm = scan.grid.spacing_mm
  if not row.lung_mask:
    return find_lungs(scan.hu, spacing_mm, scan_id=row.scan_id)
  given = nifti.read_mask(row.lung_mask, scan.grid, scan_id=row.scan_id)
  return take_lungs(given, spacing_mm, scan_id=row.scan_id)


def window_of(
  row: ManifestRow, scan: Scan, lungs: np.ndarray, settings: ConfigDict
) -> tuple[Window, tuple[ScanWarning, ...]]:
  """The window of a scan, and what was assumed for it.

  Args:
    row: of the scan; a window that it gives is always used.
    scan: as read.
    lungs: (x, y, z), 0 outside the lungs.
    settings: `config.window`.

  Raises:
    ConfigError: an unknown choice.
  """
  window, warnings = choose_window(
    manifest=row.window,
    scanner=row.scanner,
    scanners=settings.scanners,
    tags=scan.windows,
    default=(settings.level_hu, settings.width_hu),
  )
  if check_choice(settings.choice) == ESTIMATED and row.window is None:
    return estimate_window(scan.hu, lungs, otherwise=window)
  return window, warnings
