"""Tables hold the numbers that one computes by hand, and say what they lack."""

import csv
import io
import math

import pytest

from covid3way.evaluation import paper_tables, study_tables, tables
from covid3way.evaluation.results import COSTS, METRICS, RESULTS
from covid3way.evaluation.scores import Scores
from covid3way.evaluation.tables import Column, Line, Table

STAGES = {'a': 'early', 'b': 'early', 'c': 'severe', 'd': 'early'}
SCANNERS = {'a': 's1', 'b': 's1', 'c': 's1', 'd': 's2'}
FOLDS = [['a', 'b'], ['c', 'd']]
NAN = math.nan


def row(scan, dice, method='three_way', ratio=200.0, ablation='', **others):
  """One row of results.csv; metrics that are not given are 0.5."""
  parts = (method, f'{ratio:g}', ablation)
  given = {name: 0.5 for name in METRICS} | {
    'run': '-'.join(part for part in parts if part),
    'method': method,
    'ratio_percent': ratio,
    'ablation': ablation,
    'fold': 0.0 if scan in FOLDS[0] else 1.0,
    'scan_id': scan,
    'patient_id': f'patient {scan}',
    'stage': STAGES[scan],
    'scanner': SCANNERS[scan],
    'site': '',
    'evaluation': 'native',
    'status': 'ok',
    'dice': dice,
  }
  assert set(given) == set(RESULTS)
  return given | others


def rows(dice, *about, **others):
  return [row(scan, d, *about, **others) for scan, d in zip('abcd', dice, strict=False)]


def scores(*groups, **options):
  return Scores([each for group in groups for each in group], FOLDS, **options)


OURS = rows((0.8, 0.6, 0.7, 0.9))
OTHER = rows((0.1, 0.5, 0.6, 0.15), 'unet_2d')


def texts(table, block=0):
  """Cells of a block by the name of the line, as shown; bold ones in stars."""
  return {
    name: [f'*{text}*' if bold else text for text, bold in cells]
    for name, cells in table.blocks()[block]
  }


def numbers(table):
  """The CSV by label and block."""
  read = csv.DictReader(io.StringIO(tables.to_csv(table)))
  return {(line['row'], line['block']): line for line in read}


def test_table_2_against_numbers_by_hand():
  table = paper_tables.table_2(scores(OURS, OTHER))
  all_scans = texts(table)
  assert list(all_scans) == ['Ours', '2D U-Net']
  # (0.05^2 + 0.15^2 + 0.05^2 + 0.15^2) / 3 = 0.05 / 3, root 0.129.
  assert all_scans['Ours'] == [
    '*0.750 ± 0.129*',
    '0.500 ± 0.000',
    '*0.600*',
    '*0*',
    '4',
  ]
  assert all_scans['2D U-Net'][2:] == ['0.100', '2', '4']
  full = numbers(table)
  assert float(full['2D U-Net', '']['dice_mean']) == pytest.approx(0.3375, abs=1e-12)
  # Without its failures 0.1 and 0.15: of 0.5 and 0.6.
  assert float(full['2D U-Net', '*']['dice_mean']) == pytest.approx(0.55, abs=1e-12)
  assert float(full['2D U-Net', '*']['dice_sd']) == pytest.approx(0.005**0.5, abs=1e-12)
  assert full['2D U-Net', '*']['failures'] == full['2D U-Net', '*']['dice_worst'] == ''
  # Scanner s1 has most scans: a, b and c.
  assert float(full['Ours', '#']['dice_mean']) == pytest.approx(0.7, abs=1e-12)
  assert full['Ours', '#']['scans'] == '3.0' and 's1' in ' '.join(table.notes)
  assert float(full['Ours', '@']['dice_mean']) == 0.5  # dice_2_voxels
  other = numbers(paper_tables.table_2(scores(OURS, OTHER), best_scanner='s2'))
  assert float(other['Ours', '#']['dice_mean']) == 0.9


def test_a_method_that_always_fails_has_a_line_without_failures_that_says_so():
  table = paper_tables.table_2(scores(OURS, rows((0.1, 0.0, 0.1, 0.1), 'mpunet')))
  assert texts(table, 1)['MPUnet*'] == ['n/a ± n/a', 'n/a ± n/a', '', '', '0']


def test_an_incomplete_run_says_how_many_scans_it_has():
  partly = [*rows((0.8, 0.6, 0.7)), row('d', NAN, status='no prediction')]
  table = paper_tables.table_2(scores(partly, OTHER))
  line = texts(table)['Ours (3 of 4 scans)']
  assert line[0] == '*0.700 ± 0.100*' and line[-1] == '3'
  assert any('lacks some' in note for note in table.notes)
  complete = paper_tables.table_2(scores(OURS, OTHER))
  assert not any('lacks some' in note for note in complete.notes)


def test_what_was_not_run_is_a_dash_and_never_a_zero():
  zero = rows((0.5, 0.5, 0.5, 0.5), ratio=0.0)
  gone = rows((NAN,) * 4, 'unet_3d', status='not run')
  study = scores(OURS, OTHER, zero, gone)
  table = paper_tables.table_5(study)
  assert [column.title for column in table.columns] == ['0 %', '200 %']
  assert texts(table) == {
    'Ours': ['0.500', '*0.750*'],
    '2D U-Net': ['–', '0.338'],
    '3D U-Net': ['–', '–'],
  }
  assert '–: not run.' in table.notes
  assert numbers(table)['2D U-Net', '']['dice_0_percent'] == ''
  for build in (paper_tables.table_2, paper_tables.table_3, paper_tables.table_4):
    assert set(texts(build(study))['3D U-Net']) == {'–'}


def test_table_3_by_stage():
  table = paper_tables.table_3(scores(OURS, OTHER))
  titles = [column.title for column in table.columns]
  assert titles == ['Early: 75.0 % of scans (3)', 'Severe: 25.0 % of scans (1)']
  assert texts(table)['Ours'] == ['*0.767*', '*0.700*']


def test_table_4_in_percentage_points():
  share = 'infected_percent_reference', 'infected_percent_predicted'
  pairs = ((1.0, 2.0), (3.0, 3.0), (5.0, 4.0), (7.0, 11.0))
  given = [
    row(scan, 0.5, **dict(zip(share, pair, strict=True)))
    for scan, pair in zip('abcd', pairs, strict=True)
  ]
  line = numbers(paper_tables.table_4(scores(given)))['Ours', '']
  assert float(line['rmse_points']) == pytest.approx((18 / 4) ** 0.5, abs=1e-12)
  assert float(line['worst_points']) == 4.0
  assert float(line['bias_points']) == 1.0
  # Differences 1, 0, -1, 4: variance 14 / 3.
  reach = 1.96 * (14 / 3) ** 0.5
  assert float(line['low_points']) == pytest.approx(1 - reach, abs=1e-12)
  assert float(line['high_points']) == pytest.approx(1 + reach, abs=1e-12)


def test_undefined_recall_is_left_out_of_the_mean():
  given = [row('a', 0.5, recall=NAN), row('b', 0.5, recall=0.4), row('c', 0.5)]
  line = numbers(paper_tables.table_2(scores(given)))['Ours', '']
  assert float(line['recall_mean']) == pytest.approx(0.45)
  alone = paper_tables.table_2(scores([row('a', 0.5, recall=NAN)]))
  assert texts(alone)['Ours (1 of 4 scans)'][:2] == ['0.500 ± n/a', 'n/a ± n/a']


def cost(method, fold, **others):
  given = {name: 1.0 for name in COSTS} | {
    'run': f'{method}-200',
    'method': method,
    'ratio_percent': 200.0,
    'ablation': '',
    'fold': fold,
    'device': 'cpu',
    'aggregator': '',
  }
  return given | others


def test_table_6_means_over_folds():
  costs = [
    cost('three_way', 0.0, parameters=8.6e6, training_s=3600.0, peak_gib=1.5),
    cost('three_way', 1.0, parameters=8.6e6, training_s=9000.0, peak_gib=2.5),
    cost('three_way', 0.0, ablation='padded', training_s=1e9),
    cost('unet_2d', 0.0, ratio_percent=0.0),
  ]
  table = study_tables.table_6(costs, 200.0)
  assert texts(table) == {
    'Ours': ['8.6 M', '1 s', '1.75 h', '1', '2.50 GiB', '2'],
    '2D U-Net': ['–'] * 6,
  }


@pytest.mark.parametrize(
  ('seconds', 'text'), [(0.5, '0.5 s'), (89, '89 s'), (90, '1.5 min'), (5400, '1.5 h')]
)
def test_durations(seconds, text):
  assert study_tables.duration(seconds) == text


def test_table_7_takes_each_part_away():
  study = scores(
    OURS,
    rows((0.5, 0.5, 0.5, 0.5), ablation='padded'),
    rows((0.4, 0.4, 0.4, 0.4), ablation='xz'),
    rows((0.3, 0.3, 0.3, 0.3), ratio=0.0),
  )
  lines = numbers(study_tables.table_7(study, seed=0))
  means = {name: line['dice_mean'] for (name, _), line in lines.items()}
  assert {name: float(mean) for name, mean in means.items() if mean} == pytest.approx(
    {
      'All': 0.75,
      '− normalisation': 0.5,
      '− combining: x-z alone': 0.4,
      '− augmentation': 0.3,
    }
  )
  assert means['− combining: x-y alone'] == means['− combining: y-z alone'] == ''
  assert float(lines['− augmentation', '']['difference']) == pytest.approx(0.45)
  none = study_tables.table_7(
    scores(rows((0.5,) * 4, ratio=0.0), ratio_percent=0.0), seed=0
  )
  assert '− augmentation' not in texts(none)


def test_statistics_pair_the_scans_that_both_have():
  other = rows((0.7, 0.3), 'unet_2d')
  line = numbers(study_tables.statistics_table(scores(OURS, other), seed=0))
  assert float(line['2D U-Net', '']['difference']) == pytest.approx((0.1 + 0.3) / 2)
  assert float(line['2D U-Net', '']['scans']) == 2
  # Two patients: drawn twice the one, or the other, is a quarter of all draws each.
  assert float(line['2D U-Net', '']['low']) == pytest.approx(0.1)
  assert float(line['2D U-Net', '']['high']) == pytest.approx(0.3)
  assert line['Ours', '']['difference'] == ''


def test_the_headline_names_whoever_is_ahead():
  def said(*dice):
    return study_tables.headline(scores(OURS, rows(dice, 'vnet_3d')), seed=0)

  assert 'Ours is ahead' in said(0.3, 0.2, 0.2, 0.3)
  assert '3D V-Net is ahead' in said(0.9, 0.7, 0.8, 0.95)
  assert 'neither is shown to be ahead' in said(0.9, 0.5, 0.8, 0.8)
  assert 'no comparison' in study_tables.headline(scores(OURS), seed=0)


def test_table_s1_has_aggregators_and_offsets():
  about = {'run': 'three_way-200', 'method': 'three_way', 'ratio_percent': 200.0}
  tried = [
    about | {'ablation': '', 'fold': 0.0, 'scan_id': s, 'aggregator': g, 'dice': d}
    for g, pair in {'sum > 2': (0.5, 0.7), 'product': (0.1, 0.2)}.items()
    for s, d in zip('ab', pair, strict=True)
  ]
  tried.append(tried[0] | {'ablation': 'xy', 'dice': 0.0})  # Another run's.
  native = rows((0.6,) * 4, ablation='offsets_5_10')
  standard = [each | {'evaluation': 'standard', 'dice': 0.7} for each in native]
  found = texts(study_tables.table_s1(scores(OURS, native, standard), tried))
  assert found == {
    'g: sum > 2 (2 of 4 scans)': ['0.600 ± 0.141', ''],
    'g: product (2 of 4 scans)': ['0.150 ± 0.071', ''],
    "Offsets: the method's own": ['–', '*0.750 ± 0.129*'],
    'Offsets: 0, ±5, ±10 mm': ['*0.700 ± 0.000*', '0.600 ± 0.000'],
  }


def test_missing_table_names_scans_folds_and_reasons():
  partly = [*rows((0.8, 0.6)), row('c', NAN, status='no reference')]
  table = study_tables.missing_table(scores(partly), ['three_way-200', 'mpunet-200'])
  found = [(line.label, *(cell[0] for cell in line.cells)) for line in table.lines]
  assert found == [
    ('three_way-200', '1', 1.0, 'no reference', 'c'),
    ('three_way-200', '1', 1.0, 'not run', 'd'),
    ('mpunet-200', '0', 2.0, 'not run', 'a, b'),
    ('mpunet-200', '1', 2.0, 'not run', 'c, d'),
  ]
  nothing = study_tables.missing_table(scores(OURS), ['three_way-200'])
  assert not nothing.lines and 'every planned run' in nothing.notes[0]


def test_another_evaluation_is_shown_and_said():
  dilated = [each | {'evaluation': 'dilated', 'dice': 0.99} for each in OURS]
  table = paper_tables.table_2(scores(OURS, dilated, evaluation='dilated'))
  assert texts(table)['Ours'][0].startswith('0.990') and 'dilated' in table.title


def test_examples_are_near_the_median_of_their_stage():
  # Early: a 0.8, b 0.6, d 0.9, median a; severe: c alone.
  assert scores(OURS).representative(2) == ['a', 'c']
  assert scores(OURS).representative(9) == ['a', 'c', 'd', 'b']


def plain(better, *cells, best_of='column'):
  columns = tuple(Column(f'x{i}', (f'x{i}',), '.2f', better=better) for i in range(2))
  lines = tuple(Line(f'm{i}', cell) for i, cell in enumerate(cells))
  return Table('t', '', 'T', columns, lines, best_of=best_of)


@pytest.mark.parametrize(
  ('better', 'best'), [('high', [2]), ('low', [0]), ('near 0', [1]), ('', [])]
)
def test_the_best_is_bold(better, best):
  table = plain(better, ((-3.0,), None), ((0.5,), (NAN,)), ((2.0,), (1.0,)))
  bold = [[b for _, b in cells] for _, cells in table.blocks()[0]]
  assert [i for i, (first, _) in enumerate(bold) if first] == best
  assert not any(second for _, second in bold)  # Only one number: no contest.


def test_ties_are_judged_by_what_is_shown():
  table = plain('high', ((0.501,), (1.0,)), ((0.502,), (1.0,)), ((0.1,), (1.0,)))
  bold = [[b for _, b in cells] for _, cells in table.blocks()[0]]
  assert bold == [[True, False], [True, False], [False, False]]


def test_the_best_of_each_line():
  table = plain('high', ((0.1,), (0.2,)), ((0.4,), None), best_of='line')
  assert [[b for _, b in cells] for _, cells in table.blocks()[0]] == [
    [False, True],
    [False, False],
  ]


def test_csv_keeps_all_digits():
  table = plain('', ((1 / 3,), (NAN,)), (None, ()))
  assert tables.to_csv(table) == (
    f'row,block,remark,x0,x1\nm0,,,{1 / 3!r},nan\nm1,,,,\n'
  )


def test_markdown():
  table = plain('high', ((0.25,), (-1.0,)), ((0.5,), None))
  assert tables.to_markdown(table).splitlines()[:6] == [
    '**T**',
    '',
    '| Method | x0 | x1 |',
    '| --- | ---: | ---: |',
    '| m0 | 0.25 | −1.00 |',
    '| m1 | **0.50** | – |',
  ]
  assert '2D\\_x \\| y\\*' in tables.to_markdown(
    Table('t', '', 'T', (), (Line('2D_x | y', (), '*'),))
  )


def test_latex_is_escaped():
  told = tables.latex('50 % & a_b #1 {x} $y$ \\z ~ ^ < > ± − –')
  assert told == (
    r'50 \% \& a\_b \#1 \{x\} \$y\$ \textbackslash{}z \textasciitilde{} '
    r'\textasciicircum{} $<$ $>$ $\pm$ $-$ --'
  )


def test_latex_has_booktabs_rules_between_blocks():
  table = paper_tables.table_2(scores(OURS, OTHER))
  lines = tables.to_latex(table).splitlines()
  assert lines.count(r'\midrule') == 4  # Below the titles and between four blocks.
  assert lines.count(r'\toprule') == lines.count(r'\bottomrule') == 1
  assert r'\label{tab:table_2}' in lines
  line = next(each for each in lines if each.startswith('2D U-Net\\# '))
  assert line.count('&') == 5 and line.endswith(r'\\')
  assert r'\textbf{0.750 $\pm$ 0.129}' in '\n'.join(lines)
