"""Serial scans of a patient: the table's cells, and what the picture shows."""

import csv
import itertools

import pytest
from matplotlib.image import imread

from covid3way.evaluation import patient_course
from covid3way.evaluation.patient_course import write_course


def report(name, day, percent, **more):
  return {
    'scan_id': name,
    'day': day,
    'infected_percent': percent,
    'infection_ml': 40 * percent,
    'lung_ml': 4000.0,
    'per_lung': {
      'left': {'infected_percent': percent / 2},
      'right': {'infected_percent': 1.5 * percent},
    },
    'per_third': {
      third: {'infected_percent': part * percent}
      for third, part in (('upper', 0.5), ('middle', 1), ('lower', 2))
    },
    **more,
  }


def bands(ground_glass, consolidation):
  return {
    'bands': {
      'ground_glass': {'infected_percent': ground_glass},
      'consolidation': {'infected_percent': consolidation},
    }
  }


FULL = {
  'densities': bands(3.0, 1.0),
  'severity': {'total': 7, 'maximum': 25},
  'disagreement': {'reliable': False},
}


def table(folder):
  with (folder / 'course.csv').open(newline='') as file:
    return list(csv.DictReader(file))


def test_table_by_hand(tmp_path):
  scans = [report('b', 7, 6.0), report('a', -1.5, 4.0, **FULL)]
  assert write_course(tmp_path / 'p', 'p', scans)
  first, second = table(tmp_path / 'p')
  assert first == {
    'scan_id': 'a',
    'day': '-1.5',
    'infected_percent': '4.0',
    'infection_ml': '160.0',
    'lung_ml': '4000.0',
    'left_percent': '2.0',
    'right_percent': '6.0',
    'upper_percent': '2.0',
    'middle_percent': '4.0',
    'lower_percent': '8.0',
    'ground_glass_percent': '3.0',
    'consolidation_percent': '1.0',
    'severity_points': '7',
    'severity_maximum': '25',
    'views_reliable': 'False',
  }
  assert second['scan_id'] == 'b' and second['infected_percent'] == '6.0'
  # What the report does not hold is no number.
  assert [second[c] for c in list(second)[-5:]] == [''] * 5
  assert sorted(p.name for p in (tmp_path / 'p').iterdir()) == [
    'course.csv',
    'course.png',
  ]


@pytest.mark.parametrize(
  'scans',
  [
    [],
    [report('a', 1, 4.0)],
    [report('a', 1, 4.0), report('b', None, 5.0)],
    [report('a', None, 4.0), report('b', None, 5.0)],
    [report('a', 1, 4.0), report('b', 1, 5.0)],
  ],
)
def test_no_course_without_two_days(scans, tmp_path):
  assert not write_course(tmp_path / 'p', 'p', scans)
  assert not (tmp_path / 'p').exists()


def test_scans_without_a_day_are_counted_only(tmp_path):
  scans = [report('a', 0, 4.0), report('c', None, 5.0), report('b', 2, 5.0)]
  assert write_course(tmp_path, 'p', scans)
  assert [row['scan_id'] for row in table(tmp_path)] == ['a', 'b']
  figure = drawn(scans[:1] + scans[2:], undated=1)
  assert figure.get_suptitle() == 'p: 2 scans, and 1 without a day'


def test_a_single_map_is_not_doubted(tmp_path):
  scans = [report(str(day), day, 4.0, disagreement=None) for day in (0, 1)]
  assert write_course(tmp_path, 'p', scans)
  assert [row['views_reliable'] for row in table(tmp_path)] == ['', '']


def drawn(scans, undated=0):
  rows = [
    {c: patient_course._find(scan, p) for c, p in patient_course._COLUMNS.items()}
    for scan in scans
  ]
  return patient_course._figure(rows, 'p', undated)


def curves(panel):
  return {
    line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
    for line in panel.lines
    if not line.get_label().startswith('_')
  }


def test_picture_draws_the_shares_over_the_days():
  scans = [
    report('a', 0, 4.0, **FULL),
    report('b', 3, 8.0),
    report('c', 10, 6.0, densities=bands(2.0, 2.5)),
  ]
  figure = drawn(scans)
  shares, kinds = figure.axes
  assert curves(shares) == {
    'both lungs': ([0, 3, 10], [4, 8, 6]),
    'left lung': ([0, 3, 10], [2, 4, 3]),
    'right lung': ([0, 3, 10], [6, 12, 9]),
  }
  # A scan without densities has no dot there.
  assert curves(kinds) == {
    'ground glass': ([0, 10], [3, 2]),
    'consolidation': ([0, 10], [1, 2.5]),
  }
  assert (shares.get_ylabel(), kinds.get_xlabel()) == ('infected share, %', 'day')
  assert shares.get_ylim()[0] == 0 and shares.get_ylim()[1] > 12
  hollow = [line for line in shares.lines if line.get_markerfacecolor() == 'white']
  assert [list(line.get_xdata()) for line in hollow] == [[0], [0], [0]]
  assert 'hollow: the views disagree' in figure.get_suptitle()


def test_picture_without_densities_has_one_panel():
  figure = drawn([report('a', 0, 0.0), report('b', 1, 0.0)])
  (panel,) = figure.axes
  assert panel.get_ylim() == (0, 1) and figure.get_suptitle() == 'p: 2 scans'


@pytest.mark.parametrize('days', [(0, 0.5), (0, 1, 2, 4, 7, 8, 9, 15, 22, 30, 61, 180)])
def test_nothing_in_the_picture_overlaps(days, tmp_path):
  scans = [report(str(d), d, 30 / (1 + abs(d - 9)), **FULL) for d in days]
  assert write_course(tmp_path, 'p', scans)
  assert imread(tmp_path / 'course.png').shape[1] > 700
  figure = drawn(scans)
  figure.draw_without_rendering()
  whole = figure.bbox
  for panel in figure.axes:
    key = panel.get_legend().get_window_extent()
    assert key.x0 >= panel.bbox.x1 and key.x1 <= whole.x1 and key.y0 >= panel.bbox.y0
    for axis in (panel.xaxis, panel.yaxis):
      texts = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
      boxes = [t.get_window_extent() for t in texts]
      assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
