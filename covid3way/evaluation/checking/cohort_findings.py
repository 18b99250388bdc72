"""What is wrong with scans together: duplicates, leaks, days, a manifest's columns."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from covid3way.base import SerialError
from covid3way.evaluation.checking.findings import Code, Finding, Severity
from covid3way.evaluation.checking.scan_findings import Record
from covid3way.simulator.serial import adjacent_pairs

# Correlation of two patterns. Other reconstructions of one acquisition, smoother,
# noisier, cropped or of slices three times as thick, had 0.97 or more on real scans,
# scans of different people 0.76 at most.
NEARLY_SAME = 0.97


def cohort_findings(
  records: Sequence[Record],
  scanners: Iterable[str],
  patterns: Mapping[str, Sequence[int]],
  persons: Mapping[str, tuple[str, ...]],
) -> list[Finding]:
  """What there is to say of several scans together.

  Args:
    records: of all scans, as `scan_findings` takes them, with the rest of their row.
    scanners: that the window table knows.
    patterns: of scans, by id; see `scan_facts.pattern`.
    persons: what the files say of whose they are, by scan id. Nothing of it is told.
  """
  return [
    *_same(records),
    *_nearly_same(records, patterns),
    *_persons(records, persons),
    *_days(records),
    *_columns(records, set(scanners)),
  ]


def _groups(records: Iterable[Record], key) -> list[list[Record]]:
  """Records of one key, where they are several; a key of None is none."""
  grouped = defaultdict(list)
  for record in records:
    grouped[key(record)].append(record)
  grouped.pop(None, None)
  return [group for group in grouped.values() if len(group) > 1]


def _ids(records: Iterable[Record]) -> tuple[str, ...]:
  return tuple(record['scan_id'] for record in records)


def _patients(records: Iterable[Record]) -> list[str]:
  return sorted({record['patient_id'] for record in records})


def _same(records: Sequence[Record]) -> Iterator[Finding]:
  known = set()
  for code, field, what in (
    (Code.SAME_VOXELS, 'voxels_sha256', 'the same voxels'),
    (Code.SAME_SERIES, 'series_sha256', 'the same DICOM series'),
  ):
    for group in _groups(records, lambda r, field=field: r.get(field)):
      ids, patients = _ids(group), _patients(group)
      if ids in known:
        continue
      known.add(ids)
      if len(patients) > 1:
        yield Finding(
          Severity.ERROR,
          code,
          ids,
          f'{what} under patients {", ".join(patients)}: they would leak into '
          'validation',
          'give all scans of a patient one patient_id, and every scan once',
        )
      else:
        found = f'{what} more than once under patient {patients[0]}'
        yield Finding(Severity.WARNING, code, ids, found, 'keep one of them')


def _nearly_same(
  records: Sequence[Record], patterns: Mapping[str, Sequence[int]]
) -> Iterator[Finding]:
  having = [r for r in records if patterns.get(r['scan_id'])]
  if len(having) < 2:
    return
  each = np.array([patterns[r['scan_id']] for r in having], np.float32)
  each -= each.mean(axis=1, keepdims=True)
  norms = np.linalg.norm(each, axis=1, keepdims=True)
  each = np.divide(each, norms, out=np.zeros_like(each), where=norms > 0)
  for i, j in np.argwhere(np.triu(each @ each.T, 1) >= NEARLY_SAME):
    pair = having[i], having[j]
    if len({r['voxels_sha256'] for r in pair}) == 1:
      continue
    if len(patients := _patients(pair)) > 1:
      yield Finding(
        Severity.WARNING,
        Code.NEARLY_SAME,
        _ids(pair),
        f'nearly the same picture of patients {" and ".join(patients)}',
        'if they are one person, give both one patient_id: else they may leak',
      )


def _persons(
  records: Sequence[Record], persons: Mapping[str, tuple[str, ...]]
) -> Iterator[Finding]:
  having = [r for r in records if any(persons.get(r['scan_id'], ()))]
  for group in _groups(having, lambda r: persons[r['scan_id']]):
    if len(patients := _patients(group)) > 1:
      yield Finding(
        Severity.WARNING,
        Code.SAME_PERSON,
        _ids(group),
        f'patients {", ".join(patients)} have the same name, ID and birth date in '
        'their files',
        'if they are one person, give all one patient_id: else scans leak; nothing to '
        'do if all files were made anonymous alike',
      )
  for group in _groups(having, lambda r: r['patient_id']):
    if len({persons[r['scan_id']] for r in group}) > 1:
      yield Finding(
        Severity.WARNING,
        Code.OTHER_PERSON,
        _ids(group),
        f'name, ID or birth date differ among the files of patient '
        f'{group[0]["patient_id"]}',
        'check that all these scans are of one person',
      )


def in_order_of_days(records: Sequence[Record]) -> list[Record]:
  """Those that have a day, the earliest first."""
  return sorted((r for r in records if r['day'] is not None), key=lambda r: r['day'])


def days_since_previous(records: Sequence[Record]) -> dict[str, float]:
  """Days from the scan of the same patient before, by scan id."""
  return {
    after['scan_id']: after['day'] - before['day']
    for group in _groups(records, lambda r: r['patient_id'])
    for before, after in itertools.pairwise(in_order_of_days(group))
  }


def _days(records: Sequence[Record]) -> Iterator[Finding]:
  for group in _groups(records, lambda r: r['patient_id']):
    try:
      days = [r['day'] for r in group]
      adjacent_pairs(group[0]['patient_id'], _ids(group), days)
    except SerialError as error:
      found = f'{error.subject}: {error.found}'
      yield Finding(Severity.WARNING, Code.DAYS, _ids(group), found, error.remedy)


def _columns(records: Sequence[Record], scanners: set[str]) -> Iterator[Finding]:
  domains = sorted({r['domain'] or 'HU' for r in records})
  if len(domains) > 1:
    yield Finding(
      Severity.WARNING,
      Code.DOMAINS_MIXED,
      _ids(records),
      f'signals of several domains: {", ".join(domains)}',
      'no model is trained on a mixture: make one manifest of each',
    )
  asking = [r for r in records if r['scanner'] and not r['window_given']]
  for scanner in sorted({r['scanner'] for r in asking} - scanners):
    yield Finding(
      Severity.WARNING,
      Code.SCANNER_UNKNOWN,
      _ids(r for r in asking if r['scanner'] == scanner),
      f'scanner {scanner!r} is not in the table of windows',
      'correct it, or add it to config.window.scanners',
    )
  for site in sorted({r['site'] for r in records} - {''}):
    there = [r for r in records if r['site'] == site]
    if len(_patients(there)) == 1:
      yield Finding(
        Severity.NOTE,
        Code.SITE_OF_ONE,
        _ids(there),
        f'site {site!r} has one patient',
        'folds that leave a site out test on that patient alone there',
      )
  without = [r for r in records if not r['masks']['infection_mask']]
  if 0 < len(without) < len(records):
    yield Finding(
      Severity.NOTE,
      Code.WITHOUT_INFECTION_MASK,
      _ids(without),
      f'{len(without)} of {len(records)} scans have no infection mask',
      'train, fit and evaluate leave them out',
    )
