"""All that is written for one scan, whoever found the infection in it."""

import collections
import contextlib
import csv
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way.base import (
  ConfigError,
  DamagedFileError,
  InputError,
  Scan,
  ScanWarning,
  Window,
)
from covid3way.evaluation import figures, patient_course, scan_report
from covid3way.jobs.batch import for_each_scan, versions
from covid3way.jobs.usage import Shard
from covid3way.scans import dicom_seg, dicom_source, dicom_sr, nifti
from covid3way.scans.files import read_json, sealed, sha256, whole, write_json
from covid3way.scans.lobes import named_lobes
from covid3way.scans.manifest import ManifestRow, file_name
from covid3way.segmentation.quantify import densities, quantify
from covid3way.standard.space import Region
from covid3way.standard.window import check_choice

REPORT = 'quantification.json'
JOBS = ('predict', 'quantify')

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


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
  """What was found in a scan, on its own grid.

  Attributes:
    scan: as read.
    infection: (x, y, z) bool.
    lungs: (x, y, z) uint8, 1 left, 2 right.
    window: of the scan.
    warnings: all of them.
    lobes: (x, y, z) uint8, where a mask of them was given.
    probabilities: by file name: what gives a part of (x, y, z) float32 in [0, 1].
    about: further JSON values for the report: the model, how far its views agree;
      `given` names the masks that nobody here found, of infection and lungs.
  """

  scan: Scan
  infection: np.ndarray
  lungs: np.ndarray
  window: Window
  warnings: tuple[ScanWarning, ...]
  lobes: np.ndarray | None = None
  probabilities: Mapping[str, Callable[[Region], np.ndarray]] = dataclasses.field(
    default_factory=dict
  )
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check(config: ConfigDict, workdir: Path, job: str) -> None:
  """Refuses what no scan could be done with.

  Raises:
    ConfigError: an unknown choice of the window; patients are to be named in DICOM that
      is not asked for; the workdir is that of another job that writes such outputs.
  """
  for other in JOBS:
    if other != job and (workdir / f'{other}.json').exists():
      raise ConfigError(
        '--workdir', f'{other} wrote into {workdir}', f'choose another one for {job}'
      )
  check_choice(config.window.choice)
  if config.export.identified and not config.export.dicom:
    raise ConfigError(
      'config.export.identified',
      'True without config.export.dicom, and nothing else ever names a patient',
      'add --config.export.dicom=True, or leave it out',
    )


def check_source(row: ManifestRow, export: ConfigDict) -> None:
  """Refuses what the outputs that are asked for cannot be made of.

  Raises:
    InputError: DICOM is asked for, of a scan that is none.
  """
  if export.dicom and row.image.name.lower().endswith(nifti.SUFFIXES):
    raise InputError(
      row.scan_id,
      'a NIfTI file, and DICOM SEG and SR refer to the DICOM series they are of',
      'give the DICOM series, or --config.export.dicom=False',
    )


def lobes_of(row: ManifestRow, scan: Scan, lungs: np.ndarray) -> np.ndarray | None:
  """The lobes that the manifest gives, if it does, as `lobes.named_lobes` numbers them.

  Raises:
    Covid3wayError: see `nifti.read_mask` and `lobes.named_lobes`.
  """
  if row.lobe_mask is None:
    return None
  labels = nifti.read_mask(row.lobe_mask, scan.grid, scan_id=row.scan_id)
  return named_lobes(labels, lungs, scan_id=row.scan_id)


def write(folder: Path, row: ManifestRow, found: Finding, export: ConfigDict) -> None:
  """Writes a scan's folder, whole.

  Holds `infection.nii.gz`, `lungs.nii.gz`, a file per probability map,
  `quantification.json`, `overview.png` and `report.html`; with `export.dicom` also
  `infection.dcm`, `probability.dcm`, if there is one, and `measurements.dcm`.

  Args:
    folder: to write.
    row: of the scan.
    found: in it.
    export: `config.export`.
  """
  scan = found.scan
  report = _report(row, found)
  with whole(folder) as aside:
    aside.mkdir()
    masks = {'infection': found.infection, 'lungs': found.lungs}
    volumes = [(name, mask.__getitem__, np.uint8) for name, mask in masks.items()]
    volumes += [(name, part, np.float32) for name, part in found.probabilities.items()]
    with ThreadPoolExecutor(2) as threads:  # Most of it is compressing.
      written = [
        threads.submit(
          nifti.write_slabs, aside / f'{name}.nii.gz', part, scan.grid, dtype=dtype
        )
        for name, part, dtype in volumes
      ]
      percent = report['infected_percent']
      figures.overview(
        aside / 'overview.png',
        scan,
        found.infection,
        found.lungs,
        found.window,
        f'{row.scan_id}: {percent:.2f} % of the lung infected',
      )
      scan_report.write_page(aside / 'report.html', report, aside / 'overview.png')
      if export.dicom:
        _write_dicom(aside, row, found, report, export)
      for each in written:
        each.result()
    # By which the mask is known as the one that all this is about.
    report['infection_sha256'] = sha256(aside / 'infection.nii.gz')
    write_json(aside / REPORT, sealed(report))


def read_report(folder: Path) -> dict[str, Any] | None:
  """A scan's numbers, or None where it is not finished.

  Raises:
    DamagedFileError: they are not as they were written.
  """
  path = folder / REPORT
  remedy = f'remove the folder {folder.name} and run the same command again'
  return read_json(path, remedy=remedy) if path.exists() else None


def _write_dicom(
  folder: Path,
  row: ManifestRow,
  found: Finding,
  report: Mapping[str, Any],
  export: ConfigDict,
) -> None:
  grid, identified = found.scan.grid, export.identified
  model = found.about.get('model', {}).get('sha256', 'none')
  source = dicom_source.read(
    row.image, grid, scan_id=row.scan_id, identified=identified
  )
  masks = found.infection, found.lungs
  segmentation = dicom_seg.write_seg(
    folder / 'infection.dcm',
    source,
    *masks,
    grid,
    model=model,
    given=found.about['given'],
  )
  if 'probability' in found.probabilities:
    part = found.probabilities['probability']
    dicom_seg.write_probability(
      folder / 'probability.dcm', source, part, grid, model=model
    )
  window = found.window
  dicom_sr.write_sr(
    folder / 'measurements.dcm',
    source,
    report,
    segmentation,
    model=model,
    comments=[
      *(f'the mask of the {name} was given' for name in found.about['given']),
      f'window {window.level_hu:g}/{window.width_hu:g} HU: {window.source}',
      *(f'{warning.kind}: {warning.message}' for warning in found.warnings),
    ],
  )


def for_each_folder(
  rows: Sequence[ManifestRow],
  work: Callable[[ManifestRow], Any],
  *,
  what: str,
  workdir: Path,
  shard: Shard,
  at_a_time: int = 1,
) -> None:
  """`batch.for_each_scan`, and then the tables of all that is done."""
  try:
    for_each_scan(
      rows, work, what=what, workdir=workdir, shard=shard, at_a_time=at_a_time
    )
  finally:
    if shard.is_whole:
      write_tables(rows, workdir)


def write_tables(rows: Iterable[ManifestRow], workdir: Path) -> None:
  """Writes what is of all scans together, out of their own reports.

  `quantification.csv` has a row per finished scan; `courses/<patient_id>/` holds the
  course of each patient with two days or more.
  """
  done = []
  for row in rows:
    # Told when the scan was come to.
    with contextlib.suppress(DamagedFileError, InputError):
      if report := read_report(workdir / row.scan_id):
        done.append((row, report))
  path = workdir / 'quantification.csv'
  with whole(path) as aside, aside.open('w', newline='') as stream:
    table = csv.DictWriter(stream, _COLUMNS)
    table.writeheader()
    table.writerows(_table_row(report) for _, report in done)
  patients = collections.defaultdict(list)
  for row, report in done:
    # The manifest may have been corrected since.
    patients[file_name(row.patient_id, 'patient')].append(report | {'day': row.day})
  for name, reports in patients.items():
    course = workdir / 'courses' / name
    if not patient_course.write_course(course, name, reports):
      shutil.rmtree(course, ignore_errors=True)


def _report(row: ManifestRow, found: Finding) -> dict[str, Any]:
  scan, masks = found.scan, (found.infection, found.lungs)
  voxel_ml = scan.grid.voxel_ml
  known = {'day': row.day, 'stage': row.stage}
  return {
    'scan_id': row.scan_id,
    **{name: value for name, value in known.items() if value not in (None, '')},
    **quantify(*masks, voxel_ml, lobes=found.lobes),
    **({} if row.domain else {'densities': densities(scan.hu, *masks, voxel_ml)}),
    'window': dataclasses.asdict(found.window),
    'warnings': [dataclasses.asdict(w) for w in found.warnings],
    **found.about,
    'provenance': dict(scan.provenance),
    'versions': versions(),
  }


def _table_row(report: dict[str, Any]) -> dict[str, Any]:
  parts = report['per_lung'] | report['per_third']
  return {
    **{field: report[field] for field in _COLUMNS[:4]},
    **{f'{name}_percent': part['infected_percent'] for name, part in parts.items()},
    **{f'window_{k}': v for k, v in report['window'].items()},
    'warnings': ' '.join(w['kind'] for w in report['warnings']),
  }
