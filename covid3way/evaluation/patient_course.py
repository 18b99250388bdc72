"""Serial scans of a patient: a table and a picture of their course."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from covid3way.evaluation.scan_report import BAND_COLOURS
from covid3way.scans.files import whole

# Column of the table -> where its number is in a report.
_COLUMNS = {
  'scan_id': ('scan_id',),
  'day': ('day',),
  'infected_percent': ('infected_percent',),
  'infection_ml': ('infection_ml',),
  'lung_ml': ('lung_ml',),
  'left_percent': ('per_lung', 'left', 'infected_percent'),
  'right_percent': ('per_lung', 'right', 'infected_percent'),
  'upper_percent': ('per_third', 'upper', 'infected_percent'),
  'middle_percent': ('per_third', 'middle', 'infected_percent'),
  'lower_percent': ('per_third', 'lower', 'infected_percent'),
  'ground_glass_percent': ('densities', 'bands', 'ground_glass', 'infected_percent'),
  'consolidation_percent': ('densities', 'bands', 'consolidation', 'infected_percent'),
  'severity_points': ('severity', 'total'),
  'severity_maximum': ('severity', 'maximum'),
  'views_reliable': ('disagreement', 'reliable'),
}
# Curves of each panel: column, name, colour, marker, line.
_PANELS = (
  (
    ('infected_percent', 'both lungs', '#1d1d1f', 'o', '-'),
    ('left_percent', 'left lung', '#0072b2', '^', '--'),
    ('right_percent', 'right lung', '#cc79a7', 's', '--'),
  ),
  (
    ('ground_glass_percent', 'ground glass', BAND_COLOURS['ground_glass'], 'o', '-'),
    ('consolidation_percent', 'consolidation', BAND_COLOURS['consolidation'], 's', '-'),
  ),
)
_SHARES = ('infected share, %', 'infected, % of both lungs')


def write_course(
  folder: Path, patient_name: str, reports: Sequence[Mapping[str, Any]]
) -> bool:
  """Writes `course.csv` and `course.png` of a patient, if there is a course.

  Scans without a day are in neither. What a report does not hold is an empty cell, and
  no dot. Filled dots are of scans whose views agree, or are only one.

  Args:
    folder: to write into; made if needed.
    patient_name: shown above the picture.
    reports: what `quantification.json` of each scan holds, and its `day`, if known.

  Returns:
    Whether they were written: not of scans of fewer than two days.

  Raises:
    StorageError: the disk refused.
  """
  dated = [report for report in reports if report.get('day') is not None]
  if len({report['day'] for report in dated}) < 2:
    return False
  rows = [
    {column: _find(report, place) for column, place in _COLUMNS.items()}
    for report in sorted(dated, key=lambda r: (r['day'], r['scan_id']))
  ]
  with (
    whole(folder / 'course.csv') as aside,
    aside.open('w', newline='', encoding='utf-8') as stream,
  ):
    table = csv.DictWriter(stream, _COLUMNS, lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
  undated = len(reports) - len(dated)
  with whole(folder / 'course.png') as aside:
    _figure(rows, patient_name, undated).savefig(aside, format='png', dpi=110)
  return True


def _find(report: Mapping[str, Any], place: Sequence[str]) -> Any:
  """A value among nested ones; None if it, or what holds it, is not there."""
  value = report
  for name in place:
    value = (value or {}).get(name)
  return value


def _figure(
  rows: Sequence[Mapping[str, Any]], patient_name: str, undated: int
) -> Figure:
  curves = [
    [curve for curve in panel if any(row[curve[0]] is not None for row in rows)]
    for panel in _PANELS
  ]
  shown = [(c, share) for c, share in zip(curves, _SHARES, strict=True) if c]
  figure = Figure(figsize=(7.5, 1 + 2.6 * len(shown)), layout='constrained')
  panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
  for panel, (chosen, share) in zip(panels, shown, strict=True):
    for number, curve in enumerate(chosen):
      _draw(panel, rows, *curve, zorder=4 - number)
    panel.set(ylabel=share)
    panel.set_ylim(0, 1.12 * panel.dataLim.y1 or 1)
    panel.grid(alpha=0.25)
    panel.spines[['top', 'right']].set_visible(False)
    # Beside the curves, whose ends may be anywhere.
    panel.legend(frameon=False, loc='upper left', bbox_to_anchor=(1.0, 1.0))
  panels[-1].set_xlabel('day')
  panels[-1].xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
  title = f'{patient_name}: {len(rows)} scans'
  if undated:
    title += f', and {undated} without a day'
  if any(row['views_reliable'] is False for row in rows):
    title += '\nhollow: the views disagree'
  figure.suptitle(title, fontsize=11)
  return figure


def _draw(
  panel: Axes,
  rows: Sequence[Mapping[str, Any]],
  column: str,
  name: str,
  colour: str,
  marker: str,
  line: str,
  *,
  zorder: int,
) -> None:
  known = [row for row in rows if row[column] is not None]
  days = [row['day'] for row in known]
  values = [row[column] for row in known]
  style = {'color': colour, 'marker': marker, 'markersize': 6, 'zorder': zorder}
  panel.plot(days, values, line, label=name, **style)
  doubted = [row for row in known if row['views_reliable'] is False]
  panel.plot(
    [row['day'] for row in doubted],
    [row[column] for row in doubted],
    linestyle='',
    markerfacecolor='white',
    **style,
  )
