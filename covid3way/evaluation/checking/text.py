"""What `check` prints, in 100 columns: a row per scan, then what was found."""

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from covid3way.evaluation.checking.findings import Finding, Severity
from covid3way.evaluation.checking.scan_findings import Record

WIDTH = 100
FINE = 'fine'
_NAME = 18
_SHOWN = 10  # Scans of one note.
_HEADINGS = {
  Severity.ERROR: 'Errors: these scans cannot be used as they are',
  Severity.WARNING: 'Warnings: to be looked at',
  Severity.NOTE: 'Notes',
}
_SOURCES = {'scanner table': 'table', 'dicom tag': 'tag'}


def verdicts(records: Sequence[Record], findings: Sequence[Finding]) -> dict[str, str]:
  """By scan id: the worst that was found of it, or `fine`; notes are no matter."""
  told = {record['scan_id']: FINE for record in records}
  for severity in (Severity.WARNING, Severity.ERROR):
    for finding in findings:
      if finding.severity == severity:
        told |= dict.fromkeys(finding.scans, str(severity))
  return told


def summary(records: Sequence[Record], findings: Sequence[Finding]) -> str:
  """'27 scans of 20 patients: 25 fine, 1 with warnings, 1 with errors'."""
  told = list(verdicts(records, findings).values())
  patients = len({record['patient_id'] for record in records})
  return (
    f'{_count(len(records), "scan")} of {_count(patients, "patient")}: '
    f'{told.count(FINE)} fine, {told.count(Severity.WARNING)} with warnings, '
    f'{told.count(Severity.ERROR)} with errors'
  )


def _count(n: int, what: str) -> str:
  return f'{n} {what}' if n == 1 else f'{n} {what}s'


def text(records: Sequence[Record], findings: Sequence[Finding]) -> str:
  """Table, findings and summary."""
  told = verdicts(records, findings)
  rows = [_COLUMNS, *(_row(r, told[r['scan_id']]) for r in records)]
  return '\n'.join([*_aligned(rows), *_told(findings), '', summary(records, findings)])


_COLUMNS = ('scan', 'verdict', 'voxels', 'mm', 'lungs ml', 'window HU', 'inf. %')
_LEFT = (0, 1, 5)


def _row(record: Record, verdict: str) -> tuple[str, ...]:
  return (shortened(record['scan_id']), verdict, *_figures(record))


def _figures(record: Record) -> tuple[str, ...]:
  geometry, lungs = record.get('geometry'), record.get('lungs')
  infection = record.get('infection') or {}
  share = infection.get('infected_percent')
  return (
    'x'.join(map(str, geometry['shape'])) if geometry else '-',
    'x'.join(f'{s:.2f}' for s in geometry['spacing_mm']) if geometry else '-',
    f'{lungs["left_ml"]:.0f}+{lungs["right_ml"]:.0f}' if lungs else '-',
    _window(record.get('window')),
    '-' if share is None else f'{share:.2f}',
  )


def _window(window: Mapping[str, Any] | None) -> str:
  if not window:
    return '-'
  source = _SOURCES.get(window['source'], window['source'])
  return f'{window["level_hu"]:.0f}/{window["width_hu"]:.0f} {source}'


def shortened(name: str) -> str:
  """A name of at most 18 characters, its middle left out."""
  if len(name) <= _NAME:
    return name
  half = (_NAME - 3) // 2
  return f'{name[: _NAME - 3 - half]}...{name[-half:]}'


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      cell.ljust(width) if i in _LEFT else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
  return [lines[0], '-' * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def _told(findings: Sequence[Finding]) -> list[str]:
  lines = []
  for severity, heading in _HEADINGS.items():
    some = [finding for finding in findings if finding.severity == severity]
    if some:
      lines += ['', heading]
      lines += _by_code(some)
  return lines


def _by_code(findings: Sequence[Finding]) -> list[str]:
  grouped = defaultdict(list)
  for finding in findings:
    grouped[finding.code, finding.remedy].append(finding)
  lines = []
  for (code, remedy), some in grouped.items():
    lines.append(f'  {code}')
    shown = some[:_SHOWN] if some[0].severity == Severity.NOTE else some
    for finding in shown:
      lines += _wrapped(f'{_names(finding.scans)}: {finding.found}', '    ', '       ')
    if len(shown) < len(some):
      lines.append(f'    and {len(some) - len(shown)} more, see check.json')
    if remedy:
      lines += _wrapped(f'-> {remedy}', '    ', '       ')
  return lines


def _names(scans: tuple[str, ...]) -> str:
  rest = len(scans) - _SHOWN
  named = ', '.join(scans[:_SHOWN])
  return f'{named} and {rest} more' if rest > 0 else named


def _wrapped(line: str, first: str, further: str) -> list[str]:
  return textwrap.wrap(
    line, WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False
  )
