"""Casts every scan of a cohort into the standard space and stores it as zarr."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import Scan
from covid3way.jobs.batch import claim, for_each_scan, required
from covid3way.scans import nifti, source, store
from covid3way.scans.manifest import ManifestRow
from covid3way.standard import space as spaces
from covid3way.standard.cast import StandardScan, cast
from covid3way.standard.lungs import find_lungs, take_lungs
from covid3way.standard.window import choose_window


def run(config: ConfigDict, workdir: Path) -> None:
  """Reads `config.input`; writes `store/<scan_id>.zarr` per scan under the workdir."""
  rows = source.resolve(Path(required(config, 'input')))
  folder = workdir / 'store'
  settings = {'space': config.space.to_dict(), 'window': config.window.to_dict()}
  claim(workdir, 'preprocess', settings)
  for_each_scan(
    rows, lambda row: _store_scan(row, config, folder), what='cast', workdir=workdir
  )
  progress.say(f'{len(rows)} scans in standard space under {folder}')


def _store_scan(row: ManifestRow, config: ConfigDict, folder: Path) -> None:
  path = store.group_path(folder, row.scan_id)
  if path.exists():
    return
  space = spaces.StandardSpace(tuple(config.space.shape))
  scan, _, standard = read_and_cast(row, space, config.window)
  volumes = {'signal': standard.signal, 'lungs': standard.lungs}
  if row.infection_mask:
    reference = nifti.read_mask(row.infection_mask, scan.grid, scan_id=row.scan_id)
    volumes['infection'] = spaces.cast_mask(reference > 0, standard.placement)
  known = ('patient_id', 'scan_id', 'day', 'stage', 'scanner', 'site')
  attributes = {
    **{field: getattr(row, field) for field in known},
    **standard.facts(),
    'native_shape': list(scan.grid.native_shape),
    'native_affine_lps': scan.grid.native_affine.tolist(),
    'provenance': dict(scan.provenance),
  }
  store.write_group(path, volumes, attributes)


def read_and_cast(
  row: ManifestRow, space: spaces.StandardSpace, window_config: ConfigDict
) -> tuple[Scan, np.ndarray, StandardScan]:
  """Reads one scan, finds (or takes) its lungs and casts it.

  Returns:
    The scan, its lung labels on the own grid, and the scan in standard space.
  """
  scan = source.read_scan(row)
  window, window_warnings = choose_window(
    manifest=row.window,
    scanner=row.scanner,
    scanners=window_config.scanners,
    tags=scan.windows,
    default=(window_config.level_hu, window_config.width_hu),
  )
  if row.lung_mask:
    given = nifti.read_mask(row.lung_mask, scan.grid, scan_id=row.scan_id)
    lungs, lung_warnings = take_lungs(given, scan.grid.spacing_mm, scan_id=row.scan_id)
  else:
    lungs, lung_warnings = find_lungs(
      scan.hu, scan.grid.spacing_mm, scan_id=row.scan_id
    )
  warnings = window_warnings + lung_warnings
  return scan, lungs, cast(scan, lungs, window, space, warnings)
