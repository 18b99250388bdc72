"""Reads a cohort before anyone trains on it: what there is, and what is wrong."""

import csv
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import (
  Covid3wayError,
  DamagedFileError,
  NoLungError,
  Scan,
  ScanWarning,
)
from covid3way.evaluation.checking import scan_facts
from covid3way.evaluation.checking.cohort_findings import (
  cohort_findings,
  days_since_previous,
)
from covid3way.evaluation.checking.findings import Code, Finding, Severity
from covid3way.evaluation.checking.scan_findings import scan_findings
from covid3way.evaluation.checking.text import summary, text, verdicts
from covid3way.jobs.batch import for_each_scan, report_failures
from covid3way.jobs.preprocess import lungs_of, voxels_sha256, window_of
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.scans import nifti, source
from covid3way.scans.dicom_files import walk
from covid3way.scans.files import read_json, sealed, sweep, whole, write_json
from covid3way.scans.identity import first_identity
from covid3way.scans.lobes import named_lobes
from covid3way.scans.manifest import ManifestRow
from covid3way.standard import space as spaces
from covid3way.standard.window import check_choice

Facts = dict[str, Any]

_MASKS = ('infection_mask', 'lung_mask', 'lobe_mask', 'susceptible_mask')
_ROW = ('patient_id', 'scan_id', 'day', 'stage', 'scanner', 'site', 'domain')
_AGAIN = 'remove it and run check again'
_COLUMNS = (
  *_ROW,
  'verdict',
  'errors',
  'warnings',
  'notes',
  'days_since_previous',
  'format',
  'x_voxels',
  'y_voxels',
  'z_voxels',
  'x_mm',
  'y_mm',
  'z_mm',
  'orientation',
  'slices',
  'slice_distance_mm',
  'window_level_hu',
  'window_width_hu',
  'window_source',
  'lowest_hu',
  'median_hu',
  'highest_hu',
  'padding_percent',
  'lung_median_hu',
  'parenchyma_hu',
  'soft_tissue_hu',
  'left_lung_ml',
  'right_lung_ml',
  'outside_box_ml',
  *_MASKS,
  'infection_ml',
  'infected_percent',
  'outside_lungs_percent',
)


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Checks `config.input`; prints a table and writes `check.csv` and `check.json`.

  `check/<scan_id>.json` holds what was measured of a scan; it is measured again when
  its files, or what decides on its window, change. Simulated scans are left out.

  Raises:
    SomeFailedError: some scans have errors, named in `failures.json`.
    Covid3wayError: the input is none, or the config is wrong.
  """
  check_choice(config.window.choice)
  everything = source.resolve(Path(required(config, 'input')))
  rows = [row for row in everything if not row.is_simulated]
  if simulated := len(everything) - len(rows):
    progress.say(f'{simulated} simulated scans are left out')
  sweep(workdir)
  records = []
  for_each_scan(
    rows,
    lambda row: records.append(_record(row, _facts(row, config, workdir))),
    what='check',
    workdir=workdir,
    shard=shard,
  )
  findings = [found for record in records for found in scan_findings(record)]
  if shard.is_whole:
    findings += _together(rows, records, config)
    records = _with_days(records)
    _write(workdir, records, findings)
    print(text(records, findings))
  _tell_failures(records, findings, workdir / shard.report('check'))


def _together(
  rows: Sequence[ManifestRow], records: Sequence[Facts], config: ConfigDict
) -> list[Finding]:
  patterns = {record['scan_id']: record.pop('pattern', []) for record in records}
  return cohort_findings(records, config.window.scanners, patterns, _persons(rows))


def _persons(rows: Sequence[ManifestRow]) -> dict[str, tuple[str, ...]]:
  """What the files say of whose they are: kept in memory, for comparison alone.

  No hash of it is stored either: whoever guesses a name could confirm it.
  """
  known = {row.scan_id: first_identity(row.image) for row in rows}
  return {scan_id: each.words for scan_id, each in known.items() if each}


def _facts(row: ManifestRow, config: ConfigDict, workdir: Path) -> Facts:
  """What is measured of a scan, which is read unless that is done."""
  path = workdir / 'check' / f'{row.scan_id}.json'
  inputs = _inputs_sha256(row, config)
  if path.exists():
    try:
      facts = read_json(path, remedy=_AGAIN)
    except DamagedFileError:
      facts = {}
    if facts.get('inputs_sha256') == inputs:
      return facts
  facts = {'inputs_sha256': inputs, **_measured(row, config)}
  if facts['errors']:  # Their cause may go without a trace: permissions, a network.
    path.unlink(missing_ok=True)
  else:
    write_json(path, sealed(facts))
  return facts


def _inputs_sha256(row: ManifestRow, config: ConfigDict) -> str:
  """Of size and time of all files of a scan, and of what else decides on the facts."""
  files = (row.image, *(getattr(row, mask) for mask in _MASKS))
  settings = config.window.to_dict(), config.space.shape
  about = row.window, row.scanner, row.domain
  told = [*about, *settings, *map(str, files), *map(_stamps, files)]
  return hashlib.sha256(repr(told).encode()).hexdigest()


def _stamps(path: Path | None) -> list[tuple[int, int]]:
  if path is None:
    return []
  unread = []  # Told when the scan is read.
  files = sorted(walk(path, unread.append)) if path.is_dir() else [path]
  return [(stat.st_size, stat.st_mtime_ns) for stat in (p.stat() for p in files)]


@dataclasses.dataclass
class _Measuring:
  """Facts of a scan as they come in; an error costs what depends on it alone."""

  facts: Facts = dataclasses.field(default_factory=lambda: {'errors': []})

  def failed(self, code: Code, error: Exception) -> None:
    """Notes an error."""
    if isinstance(error, Covid3wayError):
      told = {'found': error.found, 'remedy': error.remedy}
    else:  # A defect of ours, whose words may hold anything.
      told = {'found': 'a defect of this program', 'remedy': 'report it'}
      logging.debug('%s', error, exc_info=True)
    kind = type(error).__name__
    told['found'] = f'{kind}: {told["found"]}'
    self.facts['errors'].append({'code': str(code), 'kind': kind, **told})

  def warn(self, warnings: Sequence[ScanWarning]) -> None:
    """Notes what was assumed."""
    self.facts['warnings'] += [dataclasses.asdict(w) for w in warnings]


def _measured(row: ManifestRow, config: ConfigDict) -> Facts:
  measuring = _Measuring()
  try:
    scan = source.read_scan(row)
    measuring.facts |= {
      'geometry': scan_facts.geometry(scan.grid),
      'signal': scan_facts.signal(scan.hu),
      'provenance': dict(scan.provenance),
      'voxels_sha256': voxels_sha256(scan),
      'warnings': [],
    }
    measuring.warn(scan.warnings)
  except Exception as error:  # Even a defect of ours must not cost the others.
    measuring.failed(Code.UNREADABLE, error)
    return measuring.facts
  lungs = _measure_lungs(row, scan, config, measuring)
  _measure_masks(row, scan, lungs, measuring)
  return measuring.facts


def _measure_lungs(
  row: ManifestRow, scan: Scan, config: ConfigDict, measuring: _Measuring
) -> np.ndarray | None:
  """The lungs' labels, None where there are none."""
  try:
    lungs, warnings = lungs_of(row, scan)
  except NoLungError as error:
    measuring.failed(Code.NO_LUNGS, error)
    return None
  except Exception as error:
    measuring.failed(Code.MASK_UNFIT if row.lung_mask else Code.NO_LUNGS, error)
    return None
  measuring.warn(warnings)
  window, warnings = window_of(row, scan, lungs, config.window)
  measuring.warn(warnings)
  space = spaces.StandardSpace(tuple(config.space.shape))
  measuring.facts |= {
    'window': dataclasses.asdict(window),
    'lungs': scan_facts.lungs(scan.hu, lungs, scan.grid, space),
    'pattern': scan_facts.pattern(scan.hu, lungs),
  }
  return lungs


def _measure_masks(
  row: ManifestRow, scan: Scan, lungs: np.ndarray | None, measuring: _Measuring
) -> None:
  for name in ('infection_mask', 'lobe_mask', 'susceptible_mask'):
    path = getattr(row, name)
    if not path:
      continue
    try:
      mask = nifti.read_mask(path, scan.grid, scan_id=row.scan_id)
      if name == 'infection_mask':
        measuring.facts['infection'] = scan_facts.infection(
          scan.hu, mask, lungs, scan.grid.voxel_ml
        )
      if name == 'lobe_mask' and lungs is not None:
        named_lobes(mask, lungs, scan_id=row.scan_id)
    except Exception as error:
      measuring.failed(Code.MASK_UNFIT, error)


def _record(row: ManifestRow, facts: Facts) -> Facts:
  """A manifest's row with what was measured."""
  provenance = facts.get('provenance', {})
  return {
    **{field: getattr(row, field) for field in _ROW},
    'masks': {mask: getattr(row, mask) is not None for mask in _MASKS},
    'window_given': row.window is not None,
    'series_sha256': provenance.get('series_sha256'),
    **{field: value for field, value in facts.items() if field != 'inputs_sha256'},
  }


def _with_days(records: Sequence[Facts]) -> list[Facts]:
  days = days_since_previous(records)
  return [{**r, 'days_since_previous': days.get(r['scan_id'])} for r in records]


def _write(
  workdir: Path, records: Sequence[Facts], findings: Sequence[Finding]
) -> None:
  told = verdicts(records, findings)
  report = {
    'summary': summary(records, findings),
    'scans': [{**r, 'verdict': told[r['scan_id']]} for r in records],
    'findings': [dataclasses.asdict(finding) for finding in findings],
  }
  write_json(workdir / 'check.json', report)
  path = workdir / 'check.csv'
  with whole(path) as aside, aside.open('w', newline='', encoding='utf-8') as stream:
    table = csv.DictWriter(stream, _COLUMNS, extrasaction='ignore', lineterminator='\n')
    table.writeheader()
    for scan in report['scans']:
      table.writerow(scan | _flat(scan) | dict(_codes(scan['scan_id'], findings)))


def _flat(scan: Facts) -> Mapping[str, Any]:
  geometry, signal, lungs = (scan.get(n, {}) for n in ('geometry', 'signal', 'lungs'))
  infection, window = scan.get('infection', {}), scan.get('window', {})
  sizes = zip('xyz', geometry.get('shape', ()), strict=False)
  spacing = zip('xyz', geometry.get('spacing_mm', ()), strict=False)
  return {
    **geometry,
    **signal,
    **{f'{axis}_voxels': n for axis, n in sizes},
    **{f'{axis}_mm': mm for axis, mm in spacing},
    **{f'window_{field}': value for field, value in window.items()},
    **scan['masks'],
    **infection,
    'median_hu': signal.get('percentiles_hu', {}).get('50'),
    'lung_median_hu': lungs.get('median_hu'),
    'parenchyma_hu': lungs.get('parenchyma_hu'),
    'soft_tissue_hu': lungs.get('soft_tissue_hu'),
    'left_lung_ml': lungs.get('left_ml'),
    'right_lung_ml': lungs.get('right_ml'),
    'outside_box_ml': lungs.get('outside_box_ml'),
    'infection_ml': infection.get('ml'),
    'format': scan.get('provenance', {}).get('format'),
  }


def _codes(scan_id: str, findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
  for severity in Severity:
    codes = [f.code for f in findings if f.severity == severity and scan_id in f.scans]
    yield f'{severity}s', ' '.join(dict.fromkeys(codes))


def _tell_failures(
  records: Sequence[Facts], findings: Sequence[Finding], path: Path
) -> None:
  failures = {}
  for finding in findings:
    if finding.severity == Severity.ERROR:
      for scan_id in finding.scans:
        told = f'{scan_id}: {finding.code}: {finding.found}; {finding.remedy}'
        failures.setdefault(scan_id, told)
  report_failures(failures, len(records), path)
