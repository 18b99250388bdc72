"""A results folder becomes tables, figures and a page, whatever of it is there."""

import base64
import csv
import json
import re
import shutil
from html.parser import HTMLParser

import crossval_results
import numpy as np
import pytest
from conftest import run_job

from covid3way.base import ConfigError, Covid3wayError
from covid3way.evaluation import results
from covid3way.evaluation.metrics import dice
from covid3way.jobs import pictures, report, results_folder

TABLES = ('missing', 'statistics', 'table_2', 'table_3', 'table_4', 'table_5')
TABLES += ('table_6', 'table_7', 'table_s1', 'further_metrics')
FIGURES = ('figure_3', 'figure_4', 'figure_5', 'figure_6')
FIGURES += ('dice_by_method', 'dice_by_volume', 'bland_altman')


class Page(HTMLParser):
  """Tags, addresses, ids and words of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.addresses, self.ids, self.words = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    for name, value in attributes:
      if name in ('src', 'href', 'srcset', 'data', 'action', 'poster'):
        self.addresses.append(value)
      if name == 'id':
        self.ids.append(value)
      assert not name.startswith('on') and name != 'style'

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self):
    return re.sub(r'\s+', ' ', ' '.join(self.words))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A folder with its report."""
  folder = tmp_path_factory.mktemp('results')
  crossval_results.write(folder)
  settings = json.loads((folder / 'crossval.json').read_text())
  settings['note'] = '<script>alert("x")</script>'
  (folder / 'crossval.json').write_text(json.dumps(settings))
  run_job('report', folder)
  return folder


@pytest.fixture
def bare(whole, tmp_path):
  """A copy of the folder's tables and splits: no scans, predictions or fits."""
  for path in whole.glob('*.*'):
    if path.is_file() and path.name != 'report.html':
      shutil.copy(path, tmp_path)
  return tmp_path


def page(folder):
  return Page((folder / 'report.html').read_text(encoding='utf-8'))


def test_every_table_and_figure_is_written(whole):
  found = {path.name for path in (whole / 'tables').iterdir()}
  assert found == {f'{name}.{kind}' for name in TABLES for kind in ('csv', 'md', 'tex')}
  assert {path.stem for path in (whole / 'figures').iterdir()} == set(FIGURES)


def test_page_needs_nothing_from_elsewhere(whole):
  found = page(whole)
  assert not {'script', 'link', 'iframe', 'object', 'embed'} & set(found.tags)
  inside = [a for a in found.addresses if a.startswith(('#', 'data:image/png;base64,'))]
  assert inside == found.addresses
  text = (whole / 'report.html').read_text()
  assert not re.search(r'url\(|@import|https?:', re.sub(r'base64,[^"]*', '', text))


def test_page_holds_every_figure_and_table(whole):
  found = page(whole)
  assert set(TABLES) | set(FIGURES) <= set(found.ids)
  assert {a[1:] for a in found.addresses if a.startswith('#')} <= set(found.ids)
  shown = {base64.b64decode(a.partition(',')[2]) for a in found.addresses if ',' in a}
  assert shown == {path.read_bytes() for path in (whole / 'figures').iterdir()}
  for words in ('Table II. ', 'Table S1. ', 'Fig. 3. ', 'Fig. 6. ', 'is ahead'):
    assert words in found.text


def test_page_says_what_is_missing_and_how_it_was_made(whole):
  text = page(whole).text
  assert 'unet_2d-200 0 1 no prediction' in text
  assert '2D U-Net (6 of 7 scans)' in text
  assert 'training.epochs 3' in text and 'tensorstore' in text
  assert '7 scans in 2 folds; patients: 6, scanners: 2, sites: 1' in text
  # 7.05 in all, but 0.7 of a single view, which is one network of the whole.
  spread = (
    sum(crossval_results.RUNS.values()) - crossval_results.RUNS['three_way', 200, 'xy']
  )
  assert f'took {2 * spread:.3g} h in all' in text


def test_text_from_files_is_no_markup(whole):
  assert '<script>alert("x")</script>' in page(whole).text  # As words.


def test_tables_of_the_folder_agree_with_its_rows(whole):
  rows = results.read_rows(whole / 'results.csv', results.RESULTS)
  mine = [
    row['dice']
    for row in rows
    if (row['run'], row['evaluation']) == ('vnet_3d-200', 'native')
  ]
  with (whole / 'tables' / 'table_2.csv').open() as file:
    lines = {(line['row'], line['block']): line for line in csv.DictReader(file)}
  assert float(lines['3D V-Net', '']['dice_mean']) == pytest.approx(np.mean(mine))


def test_without_scans_there_are_tables_and_reasons(bare):
  stale = bare / 'figures' / 'figure_4.png'
  stale.parent.mkdir()
  stale.write_bytes(b'of an earlier report')
  run_job('report', bare)
  assert {path.stem for path in (bare / 'figures').iterdir()} == set(FIGURES[4:])
  found = page(bare)
  assert found.text.count('Not made:') == 4
  assert 'no patient has two scans and a fit of the law to them' in found.text
  assert found.tags.count('img') == 3 and set(TABLES) <= set(found.ids)


def keep(folder, wanted):
  """Leaves rows that a function wants."""
  path = folder / 'results.csv'
  rows = results.read_rows(path, results.RESULTS)
  results.write_rows(path, results.RESULTS, [row for row in rows if wanted(row)])


def test_without_the_three_way_method(bare):
  keep(bare, lambda row: row['method'] != 'three_way')
  run_job('report', bare)
  assert 'There is no comparison' in page(bare).text
  assert 'Ours' not in (bare / 'tables' / 'table_2.md').read_text()


def test_where_nothing_is_done_yet(bare):
  rows = results.read_rows(bare / 'results.csv', results.RESULTS)
  undone = [{**row, 'status': 'not run', 'dice': ''} for row in rows]
  results.write_rows(bare / 'results.csv', results.RESULTS, undone)
  run_job('report', bare)
  assert page(bare).text.count('no scan has scores') == len(FIGURES)
  assert '| Ours | – | – | – | – | – |' in (bare / 'tables' / 'table_2.md').read_text()


@pytest.mark.parametrize(
  'name',
  ['crossval.json', 'splits_final.json', 'results.csv', 'costs.csv', 'aggregators.csv'],
)
def test_a_missing_file_is_named(name, bare):
  (bare / name).unlink()
  with pytest.raises(Covid3wayError, match=re.escape(name)):
    run_job('report', bare)
  assert not (bare / 'report.html').exists()


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'evaluation': 'own'}, "evaluation: 'own'; use one of native, standard, dilated"),
    ({'ratio_percent': 300.0}, 'ratio_percent: 300: no run; there is: 0, 50, 200'),
    ({'examples': 0}, 'examples: 0; use 1 or more'),
    ({'best_scanner': 'x'}, "best_scanner: 'x'; .* scanner 0, scanner 1"),
  ],
)
def test_options_that_cannot_be(changes, words, bare):
  with pytest.raises(ConfigError, match=words):
    run_job('report', bare, report=changes)


def test_a_padded_prediction_is_taken_from_the_scans_own_grid(whole):
  folder = results_folder.read(whole)
  rows = [row for row in folder.rows if row['evaluation'] == 'native']
  for run in ('three_way-200-padded', 'three_way-200'):
    row = next(row for row in rows if row['run'] == run)
    scan = folder.scan(row['scan_id'])
    reference = results_folder.volume(scan, 'infection')
    everything = (slice(None),) * 3
    found = folder.predicted(row, scan, everything)
    assert dice(reference, found) == pytest.approx(row['dice'], abs=1e-12)


def test_simulated_scans_are_nobodys(whole):
  patients = results_folder.read(whole).patients
  assert len(patients) == 7 and patients['p5-b'] == 'p5'


def test_a_plane_shows_the_largest_lesion_and_all_of_the_lungs(whole):
  folder = results_folder.read(whole)
  scan = folder.scan('p0-a')
  lungs, infection = (
    results_folder.volume(scan, name) > 0 for name in ('lungs', 'infection')
  )
  x, y, z = pictures._where(scan)
  assert lungs[x, y].sum() == lungs.sum() and infection[:, :, z].any()
  assert x.stop - x.start < lungs.shape[0]


def test_settings_are_told_by_dotted_names():
  settings = {'a': {'b': 1, 'c': {'d': 'x'}}, 'e': [1, 2], 'f': {}}
  assert report.flat(settings) == {'a.b': '1', 'a.c.d': 'x', 'e': '[1, 2]', 'f': '{}'}
