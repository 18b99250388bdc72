"""Tables II to V of the paper: segmentation, stages, quantification, augmentation."""

import collections
import math
from collections.abc import Sequence

from covid3way.evaluation.agreement import agreement
from covid3way.evaluation.results import Row
from covid3way.evaluation.scores import (
  FAILURE_DICE,
  Scores,
  label,
  mean,
  mean_sd,
  shares,
  stage_order,
)
from covid3way.evaluation.tables import NOT_RUN, Cell, Column, Line, Table

MEAN_SD = '{} ± {}'
BOLD = 'The best of each column is bold.'


def gaps(lines: Sequence[Line]) -> tuple[str, ...]:
  """Notes on what a table lacks, if it lacks anything."""
  notes = []
  if any(cell is None for line in lines for cell in line.cells):
    notes.append(f'{NOT_RUN}: not run.')
  if any(line.remark for line in lines):
    notes.append(
      'Means are over the scans there are: a line that says so lacks some, and is not '
      'strictly comparable with the others.'
    )
  return tuple(notes)


def table_2(scores: Scores, *, best_scanner: str = '') -> Table:
  """Dice, recall, worst case and failures: all scans, and three ways to look closer.

  Args:
    scores: of all runs.
    best_scanner: of block #; '': the one of most scans.
  """
  scanner = best_scanner or scores.most_frequent_scanner
  of_scanner = sum(a.get('scanner') == scanner for a in scores.tested.values())
  columns = (
    Column('Dice', ('dice_mean', 'dice_sd'), '.3f', MEAN_SD, 'high'),
    Column('Recall', ('recall_mean', 'recall_sd'), '.3f', MEAN_SD, 'high'),
    Column('Worst Dice', ('dice_worst',), better='high'),
    Column(f'Failures (Dice < {FAILURE_DICE:g})', ('failures',), '.0f', better='low'),
    Column('Scans', ('scans',), '.0f'),
  )
  lines = []
  for block, suffix in (('', ''), ('*', ''), ('#', ''), ('@', '_2_voxels')):
    if block == '#' and not scanner:
      continue
    for method in scores.methods:
      rows, tested = scores.of(method), len(scores.tested)
      remark = scores.remark(rows)
      if block == '#':
        rows, tested = [r for r in rows if r['scanner'] == scanner], of_scanner
        remark = scores.remark(rows, tested)
      cells = _segmentation(rows, suffix)
      if block == '*' and rows:
        rows = [r for r in rows if r['dice'] >= FAILURE_DICE]
        kept = _segmentation(rows, suffix) if rows else ((math.nan,) * 2,) * 2
        cells = (*kept[:2], (), (), (float(len(rows)),))
      lines.append(Line(label(method), cells, block, remark))
  about_scanner = (
    f'#: scans of scanner {scanner} alone, by the same models; the paper trained anew '
    'on that subset.'
    if scanner
    else '#: no block of the best scanner, as the manifest names none.'
  )
  notes = (
    f'Mean ± standard deviation over scans. A failure has a Dice below '
    f'{FAILURE_DICE:g}. {BOLD}',
    f"*: without each method's own failures. {about_scanner} @: a predicted voxel "
    'within 2 voxels of the reference counts as found, and the other way round.',
    'Recall is over the scans whose reference is not empty.',
    *gaps(lines),
  )
  title = f'Segmentation of scans ({scores.said})'
  return Table('table_2', 'II', title, columns, tuple(lines), notes)


def _segmentation(rows: Sequence[Row], suffix: str) -> tuple[Cell, ...]:
  """Cells of one line of Table II."""
  if not rows:
    return (None,) * 5
  dice = [row[f'dice{suffix}'] for row in rows]
  return (
    mean_sd(rows, f'dice{suffix}'),
    mean_sd(rows, f'recall{suffix}'),
    (min(dice),),
    (float(sum(d < FAILURE_DICE for d in dice)),),
    (float(len(rows)),),
  )


def table_3(scores: Scores) -> Table:
  """Dice by stage."""
  stages = collections.Counter(a.get('stage', '') for a in scores.tested.values())
  order = stage_order(stages)
  total = sum(stages.values())
  columns = tuple(
    Column(
      f'{(stage or "unknown").capitalize()}: {100 * stages[stage] / total:.1f} % of '
      f'scans ({stages[stage]})',
      (f'dice_{stage or "unknown"}',),
      better='high',
    )
    for stage in order
  )
  lines = []
  for method in scores.methods:
    rows = scores.of(method)
    cells = [mean([r for r in rows if r['stage'] == s], 'dice') for s in order]
    lines.append(Line(label(method), tuple(cells), remark=scores.remark(rows)))
  notes = (f'Mean Dice. {BOLD}', *gaps(lines))
  title = f'Dice by stage ({scores.said})'
  return Table('table_3', 'III', title, columns, tuple(lines), notes)


def table_4(scores: Scores) -> Table:
  """How well the infected share of the lungs is measured."""
  columns = (
    Column('RMSE, points', ('rmse_points',), '.2f', better='low'),
    Column('PCC', ('pcc',), better='high'),
    Column('Worst error, points', ('worst_points',), '.2f', better='low'),
    Column('Bias, points', ('bias_points',), '+.2f', better='near 0'),
    Column(
      '95 % limits of agreement, points',
      ('low_points', 'high_points'),
      '+.2f',
      '{} to {}',
    ),
    Column('ICC', ('icc',), better='high'),
  )
  lines = []
  for method in scores.methods:
    rows = scores.of(method)
    line = Line(label(method), _quantification(rows), remark=scores.remark(rows))
    lines.append(line)
  notes = (
    'Points are percentage points of the lung volume (the paper gives shares: its '
    '0.025 are 2.5 points). Worst error: root of the largest squared error, '
    "the paper's Worst-RSE. Bias and limits after Bland and Altman, predicted minus "
    f'reference. {BOLD}',
    *gaps(lines),
  )
  title = f'Quantification: infected share of the lungs ({scores.said})'
  return Table('table_4', 'IV', title, columns, tuple(lines), notes)


def _quantification(rows: Sequence[Row]) -> tuple[Cell, ...]:
  if not rows:
    return (None,) * 6
  found = agreement(*shares(rows))
  return (
    (found.rmse,),
    (found.pearson,),
    (found.worst,),
    (found.bias,),
    (found.low, found.high),
    (found.icc,),
  )


def table_5(scores: Scores) -> Table:
  """Dice by augmentation ratio."""
  columns = tuple(
    Column(f'{ratio:g} %', (f'dice_{ratio:g}_percent',), better='high')
    for ratio in scores.ratios
  )
  lines = []
  for method in scores.methods:
    runs = {ratio: scores.of(method, ratio) for ratio in scores.ratios}
    remarks = {f'{ratio:g} %': scores.remark(rows) for ratio, rows in runs.items()}
    remark = ', '.join(f'{at}: {said}' for at, said in remarks.items() if said)
    cells = tuple(mean(rows, 'dice') for rows in runs.values())
    lines.append(Line(label(method), cells, remark=remark))
  notes = (
    'Mean Dice by the number of simulated scans per real one. The best of each line '
    'is bold.',
    *gaps(lines),
  )
  title = f'Dice by augmentation ratio ({scores.evaluation} evaluation)'
  return Table('table_5', 'V', title, columns, tuple(lines), notes, best_of='line')
