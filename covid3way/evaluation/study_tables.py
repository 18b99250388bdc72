"""Tables VI, VII and S1 of the paper; the comparison's statistics; what is missing."""

import collections
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from covid3way.evaluation.inference import compare
from covid3way.evaluation.paper_tables import BOLD, MEAN_SD, gaps
from covid3way.evaluation.results import PADDED, Row
from covid3way.evaluation.scores import OURS, Scores, in_order, known, label, mean_sd
from covid3way.evaluation.tables import Cell, Column, Line, Table

# Lines of Table VII: the run's ratio (None: as it is) and its ablation.
ABLATIONS = {
  'All': (None, ''),
  '\N{MINUS SIGN} normalisation': (None, PADDED),
  '\N{MINUS SIGN} combining: x-y alone': (None, 'xy'),
  '\N{MINUS SIGN} combining: x-z alone': (None, 'xz'),
  '\N{MINUS SIGN} combining: y-z alone': (None, 'yz'),
  '\N{MINUS SIGN} augmentation': (0.0, ''),
}


def table_6(costs: Sequence[Row], ratio_percent: float) -> Table:
  """Parameters, time and memory, as the program measured them.

  Args:
    costs: rows of `costs.csv`.
    ratio_percent: of simulated scans, of the trainings shown.
  """
  shown = [
    row
    for row in costs
    if row['ratio_percent'] == ratio_percent and not row['ablation']
  ]
  columns = (
    Column('Parameters', ('parameters',), _million, better='low'),
    Column('Prediction of a scan', ('prediction_s',), duration, better='low'),
    Column('Training of a model', ('training_s',), duration, better='low'),
    Column('Steps', ('training_steps',), ',.0f'),
    Column('Peak memory', ('peak_gib',), '.2f', '{} GiB', better='low'),
    Column('Folds', ('folds',), '.0f'),
  )
  lines = []
  for method in in_order(row['method'] for row in costs):
    rows = [row for row in shown if row['method'] == method]
    fields = 'parameters', 'prediction_s', 'training_s', 'training_steps'
    cells = [(_mean(rows, field),) if rows else None for field in fields]
    cells.append((_most(rows, 'peak_gib'),) if rows else None)
    cells.append((float(len(rows)),) if rows else None)
    lines.append(Line(label(method), tuple(cells)))
  devices = ', '.join(sorted({row['device'] for row in shown})) or 'none'
  widths = ', '.join(f'{w:g}' for w in sorted({row['width'] for row in shown}))
  notes = (
    f'Means over folds; training: of all networks of the method, to a model; memory: '
    f'the most of any fold. Device: {devices}. Channels of '
    f'all methods times {widths or 1}. {BOLD}',
    'Prediction: from the scan in standard space to the mask on its own grid. Where '
    'several trainings ran at a time they shared the machine, and these times with it.',
    *gaps(lines),
  )
  title = f'Cost ({ratio_percent:g} % augmentation)'
  return Table('table_6', 'VI', title, columns, tuple(lines), notes)


def duration(seconds: float) -> str:
  """In seconds, minutes or hours."""
  for unit_s, unit in ((1, 's'), (60, 'min')):
    if seconds < 90 * unit_s:
      return f'{seconds / unit_s:.3g} {unit}'
  return f'{seconds / 3600:.3g} h'


def _million(count: float) -> str:
  return f'{count / 1e6:.3g} M'


def _mean(rows: Sequence[Row], field: str) -> float:
  return mean_sd(rows, field)[0]


def _most(rows: Sequence[Row], field: str) -> float:
  values = [row[field] for row in rows if not math.isnan(row[field])]
  return max(values, default=math.nan)


def _probability(p: float) -> str:
  return '< 0.001' if p < 0.001 else f'{p:.3f}'


_COMPARISON = (
  Column('Dice', ('dice_mean', 'dice_sd'), '.3f', MEAN_SD, 'high'),
  Column('Difference', ('difference',), '+.3f'),
  Column('95 % interval', ('low', 'high'), '+.3f', '{} to {}'),
  Column('p', ('p',), _probability),
  Column('p (Holm)', ('p_holm',), _probability),
  Column('Effect size', ('effect',), '+.2f'),
  Column('Scans', ('scans',), '.0f'),
  Column('Patients', ('patients',), '.0f'),
)


_FURTHER = (  # Field, head, format, and which is better.
  ('precision', 'Precision', '.3f', 'high'),
  ('dice_2_mm', 'Dice within 2 mm', '.3f', 'high'),
  ('surface_dice_3_mm', 'Surface Dice at 3 mm', '.3f', 'high'),
  ('hausdorff_95_mm', 'HD95, mm', '.1f', 'low'),
  ('lesion_recall', 'Lesion recall', '.3f', 'high'),
  ('lesion_precision', 'Lesion precision', '.3f', 'high'),
)


def further_metrics(scores: Scores) -> Table:
  """What the paper does not measure: precision, surfaces, whole lesions."""
  columns = [
    Column(head, (f'{field}_mean', f'{field}_sd'), form, MEAN_SD, better)
    for field, head, form, better in _FURTHER
  ]
  columns.append(Column('Scans with HD95', ('hausdorff_scans',), '.0f'))
  lines = []
  for method in scores.methods:
    rows = scores.of(method)
    cells = [mean_sd(rows, field) for field, *_ in _FURTHER]
    cells.append((float(len(known(rows, 'hausdorff_95_mm'))),) if rows else None)
    lines.append(Line(label(method), tuple(cells), remark=scores.remark(rows)))
  notes = (
    f'Mean ± standard deviation over scans. HD95 is over scans where neither mask is '
    f'empty. A lesion, 26-connected, is found where the masks overlap. {BOLD}',
    *gaps(lines),
  )
  title = f'Further metrics ({scores.said})'
  return Table('further_metrics', '', title, tuple(columns), tuple(lines), notes)


def table_7(scores: Scores, *, seed: int) -> Table:
  """The three-way method without each of its parts."""
  runs = {name: scores.of(OURS, *run) for name, run in ABLATIONS.items()}
  if not scores.ratio_percent:  # Nothing to leave out.
    runs = {name: runs[name] for name in list(ABLATIONS)[:-1]}
  title = f'Ablation of the three-way method ({scores.said}, unless left out)'
  lines = _compared(scores, runs, reference='All', seed=seed)
  alone = '\N{MINUS SIGN} normalisation: padded to the standard dimension only.'
  return Table(
    'table_7', 'VII', title, _COMPARISON, lines, (alone, *_how('All', lines))
  )


def statistics_table(scores: Scores, *, seed: int) -> Table:
  """Every method's difference to the three-way method."""
  runs = {label(method): scores.of(method) for method in scores.methods}
  title = f'Difference of Dice to the three-way method ({scores.said})'
  lines = _compared(scores, runs, reference=label(OURS), seed=seed)
  return Table('statistics', '', title, _COMPARISON, lines, _how(label(OURS), lines))


def headline(scores: Scores, *, seed: int) -> str:
  """The three-way method and the best other one, in words: whichever is ahead."""
  means = {
    m: fmean(r['dice'] for r in scores.of(m)) for m in scores.methods if scores.of(m)
  }
  ours = means.pop(OURS, None)
  if ours is None or not means:
    return 'There is no comparison: the three-way method or all others were not run.'
  best = max(means, key=means.get)
  line = next(
    x for x in statistics_table(scores, seed=seed).lines if x.label == label(best)
  )
  _, (difference,), (low, high), _, (p_holm,), *_ = line.cells
  verdict = 'neither is shown to be ahead: the interval holds 0'
  if low > 0 or high < 0:
    verdict = f'{label(OURS) if low > 0 else label(best)} is ahead'
  if math.isnan(low):
    verdict = 'too few patients for an interval'
  numbers = Column('', ('',), '+.3f', '{} (95 % interval {} to {}, p after Holm {})')
  told = numbers.text((difference, low, high, _probability(p_holm)))
  return (
    f'Mean Dice: {label(OURS)} {ours:.3f}; best other method, {label(best)}, '
    f'{means[best]:.3f}. Difference over the scans that both have: {told}; {verdict}.'
  )


def _how(reference: str, lines: Sequence[Line]) -> tuple[str, ...]:
  """Notes of a comparison."""
  return (
    f'Difference: "{reference}" minus the line, over the scans that both have; '
    f'positive where "{reference}" is better. Interval: bootstrap over patients. p: '
    'Wilcoxon signed-rank over patients, two-sided; Holm: corrected for the lines of '
    'this table. Effect size: rank-biserial correlation, 1 where '
    f'"{reference}" is better for every patient, \N{MINUS SIGN}1 where for none.',
    BOLD,
    *gaps(lines),
  )


def _compared(
  scores: Scores, runs: Mapping[str, Sequence[Row]], *, reference: str, seed: int
) -> tuple[Line, ...]:
  """Dice per run, and its difference to a reference run's."""
  dice = {
    n: {r['scan_id']: r['dice'] for r in rows} for n, rows in runs.items() if rows
  }
  compared = {}
  if reference in dice:
    patients = {r['scan_id']: r['patient_id'] for rows in runs.values() for r in rows}
    found = compare(dice, patients, reference=reference, seed=seed)
    compared = {row['method']: row for row in found}
  lines = []
  for name, rows in runs.items():
    cells = mean_sd(rows, 'dice'), *_difference(compared.get(name), name == reference)
    lines.append(Line(name, cells, remark=scores.remark(rows)))
  return tuple(lines)


def _difference(row: Mapping | None, is_reference: bool) -> tuple[Cell, ...]:
  if is_reference:
    return ((),) * (len(_COMPARISON) - 1)
  if row is None:
    return (None,) * (len(_COMPARISON) - 1)
  single = ('p', 'p_holm', 'effect', 'n_scans', 'n_patients')
  return (
    (row['difference'],),
    (row['low'], row['high']),
    *((float(row[field]),) for field in single),
  )


def table_s1(scores: Scores, aggregators: Sequence[Row]) -> Table:
  """Other aggregation functions and other slice offsets of the three-way method.

  Args:
    scores: of all runs.
    aggregators: rows of `aggregators.csv`.
  """
  by_name = collections.defaultdict(list)
  for row in aggregators:
    run = row['method'], row['ratio_percent'], row['ablation']
    if run == (OURS, scores.ratio_percent, ''):
      by_name[row['aggregator']].append(row)
  lines = [
    Line(f'g: {name}', (mean_sd(rows, 'dice'), ()), remark=scores.remark(rows))
    for name, rows in by_name.items()
  ]
  standard = Scores(scores.rows, scores.folds, 'standard', scores.ratio_percent)
  ablations = {r['ablation'] for r in scores.rows if r['method'] == OURS}
  offsets = sorted(a for a in ablations if a.startswith('offsets'))
  for ablation in ('', *offsets) if offsets else ():
    rows = scores.of(OURS, ablation=ablation)
    cells = [mean_sd(s.of(OURS, ablation=ablation), 'dice') for s in (standard, scores)]
    lines.append(Line(_offsets(ablation), tuple(cells), remark=scores.remark(rows)))
  columns = (
    Column(
      'Dice, standard space', ('dice_standard', 'sd_standard'), '.3f', MEAN_SD, 'high'
    ),
    Column(f'Dice, {scores.evaluation}', ('dice', 'sd'), '.3f', MEAN_SD, 'high'),
  )
  notes = (
    f'Dice of test scans, mean ± standard deviation. {BOLD} Aggregators g have '
    'thresholds and weights from validation scans, and are compared in the standard '
    'space.',
    *gaps(lines),
  )
  title = (
    f'Aggregation functions and slice offsets ({scores.ratio_percent:g} % augmentation)'
  )
  return Table('table_s1', 'S1', title, columns, tuple(lines), notes, stub='Variant')


def _offsets(ablation: str) -> str:
  """'offsets_2' -> 'Offsets: 0, ±2 mm'."""
  if not ablation:
    return "Offsets: the method's own"
  reach = [mm for mm in ablation.split('_')[1:] if mm != '0']
  return f'Offsets: {", ".join(["0", *(f"±{mm}" for mm in reach)])} mm'


def missing_table(
  scores: Scores, planned: Sequence[str], *, most_named: int = 4
) -> Table:
  """Which scans have no figures, and why.

  Args:
    scores: of all runs.
    planned: names of the runs that were to be made.
    most_named: scans that are named where many share one reason.
  """
  columns = (
    Column('Fold', ('fold',)),
    Column('Scans', ('scans',), '.0f'),
    Column('Why', ('why',)),
    Column('Which', ('which',)),
  )
  own = [row for row in scores.rows if row['evaluation'] == scores.evaluation]
  seen = {(row['run'], row['fold'], row['scan_id']): row['status'] for row in own}
  lines = []
  for run in (*planned, *sorted({row['run'] for row in own} - set(planned))):
    for fold, scans in enumerate(scores.folds):
      reasons = collections.defaultdict(list)
      for scan in scans:
        status = seen.get((run, fold, scan), 'not run')
        if status != 'ok':
          reasons[status].append(scan)
      for why, which in reasons.items():
        named = ', '.join(which[:most_named])
        named += f', and {len(which) - most_named} more' * (len(which) > most_named)
        lines.append(Line(run, ((str(fold),), (float(len(which)),), (why,), (named,))))
  notes = () if lines else ('Nothing: every planned run has figures of all scans.',)
  title = f'What is missing ({scores.evaluation} evaluation)'
  return Table('missing', '', title, columns, tuple(lines), notes, stub='Run')
