"""A scan's page: its numbers, in one file that needs nothing and trusts no text."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from test_report import Page

from covid3way.base import LEFT, RIGHT, ScanWarning, WarningKind, Window
from covid3way.evaluation import scan_report
from covid3way.segmentation import quantify

PNG = b'\x89PNG\r\n\x1a\nof the scan'


@pytest.fixture(scope='module')
def report():
  """What quantification.json of a scan with all there is would hold."""
  lungs = np.zeros((20, 10, 30), np.uint8)
  lungs[10:], lungs[:10] = LEFT, RIGHT
  lobes = np.where(lungs == LEFT, 1, 3).astype(np.uint8)
  lobes[10:, :, :15], lobes[:10, :, :15] = 2, 5
  infection = np.zeros(lungs.shape, bool)
  infection[12:15, 2:9, 3:28] = True
  hu = np.linspace(-1024, 300, lungs.size, dtype=np.float32).reshape(lungs.shape)
  maps = {'xy': infection * 1.0, 'yz': infection * 1.0, 'xz': infection[::-1] * 1.0}
  apart = quantify.disagreement(maps, lungs)
  warnings = [
    ScanWarning(WarningKind.TILT_CORRECTED, 'the gantry was tilted by 12.5 degrees'),
    *quantify.disagreement_warnings(apart),
  ]
  return json.loads(
    json.dumps(
      {
        'scan_id': 'p1-a',
        'day': 4.5,
        **quantify.quantify(infection, lungs, 0.25, lobes=lobes),
        'densities': quantify.densities(hu, infection, lungs, 0.25),
        'disagreement': apart,
        'window': dataclasses.asdict(Window(-550, 1500, 'scanner table')),
        'warnings': [dataclasses.asdict(w) for w in warnings],
        'model': {'sha256': 'abc123', 'aggregator': {'threshold': 2.0}},
        'provenance': {'manufacturer': 'Acme', 'slices': 30},
        'versions': {'jax': '0.10.2'},
      }
    )
  )


def write(folder, report):
  (folder / 'overview.png').write_bytes(PNG)
  scan_report.write_page(folder / 'report.html', report, folder / 'overview.png')
  assert sorted(p.name for p in folder.iterdir()) == ['overview.png', 'report.html']
  return (folder / 'report.html').read_text(encoding='utf-8')


def without(report, *keys):
  return {key: value for key, value in report.items() if key not in keys}


def ids(page):
  return [i for i in page.ids if i != 'overview']


def test_page_needs_nothing_from_elsewhere(report, tmp_path):
  text = write(tmp_path, report)
  page = Page(text)
  assert not {'script', 'link', 'iframe', 'object', 'embed'} & set(page.tags)
  links = [a for a in page.addresses if a.startswith('#')]
  pictures = [a for a in page.addresses if a.startswith('data:image/png;base64,')]
  assert links and sorted(links + pictures) == sorted(page.addresses)
  assert {link[1:] for link in links} <= set(page.ids)
  assert not re.search(r'url\(|@import|https?:', re.sub(r'base64,[^"]*', '', text))
  assert base64.b64decode(pictures[0].partition(',')[2]) == PNG
  assert len(pictures) == 2


def test_page_holds_the_numbers(report, tmp_path):
  text = Page(write(tmp_path, report)).text
  # 3 x 7 x 25 of 6000 voxels, all of them left, 3 x 7 x 13 of them in the upper lobe.
  assert '8.75 % of the lungs infected: 131.2 ml of 1500.0 ml' in text
  for row in (
    'both lungs 8.75 % 131.2 1500.0',
    'left 17.50 % 131.2 750.0',
    'right 0.00 % 0.0 750.0',
    'left upper 18.20 % 68.2 375.0',
    'left lower 16.80 % 63.0 375.0',
    'left upper 18.20 % 2',
    'right middle no lung none',
  ):
    assert row in text, row
  assert '4 of 25 : CT severity score of the five lobes, Pan et al.' in text
  assert '5 above 75 %' in text
  hu = ('below -950', '-950 to -700', '-700 to -300', '-300 and above')
  bands = report['densities']['bands']
  assert sum(band['lung_ml'] for band in bands.values()) == 1500
  for limits, (name, band) in zip(hu, bands.items(), strict=True):
    cells = f'{limits} {band["lung_ml"]:.1f} {band["lung_percent"]:.2f} % '
    cells += f'{band["infection_ml"]:.1f} {band["infected_percent"]:.2f} %'
    row = f'{name.replace("_", " ")} {cells}'
    assert row.replace('-', '\N{MINUS SIGN}') in text
  assert 'yz and xz 0.000' in text and 'xy and yz 1.000' in text
  assert 'not a medical device' in text


def test_page_says_how_it_was_made_and_what_was_assumed(report, tmp_path):
  text = Page(write(tmp_path, report)).text
  assert 'Tilt corrected: the gantry was tilted by 12.5 degrees' in text
  assert 'Views disagree: the views overlap by a mean Dice of 0.33 only' in text
  assert 'Level \N{MINUS SIGN}550 HU, width 1500 HU; source: scanner table' in text
  for words in ('Day 4.5', 'sha256 abc123', 'aggregator.threshold 2.0', 'jax 0.10.2'):
    assert words in text
  assert 'manufacturer Acme' in text and 'slices 30' in text


def test_only_views_that_disagree_are_told_above(report, tmp_path):
  told = 'Not reliable: the views do not agree'
  assert told in Page(write(tmp_path, report)).text
  agreeing = {**report, 'disagreement': {**report['disagreement'], 'reliable': True}}
  text = Page(write(tmp_path, agreeing)).text
  assert told not in text and 'The views agree with one another' in text


def test_what_is_absent_is_left_out(report, tmp_path):
  every = ['warnings', 'shares', 'severity', 'density', 'agreement', 'about']
  assert ids(Page(write(tmp_path, report))) == every
  for keys, missing in (
    (['severity'], 'severity'),
    (['densities'], 'density'),
    (['disagreement'], 'agreement'),
    (['warnings'], 'warnings'),
    (['window', 'model', 'provenance', 'versions'], 'about'),
  ):
    page = Page(write(tmp_path, without(report, *keys)))
    assert ids(page) == [i for i in every if i != missing]
    if missing != 'agreement':
      assert {a[1:] for a in page.addresses if a[0] == '#'} <= set(page.ids)
  single = Page(write(tmp_path, {**report, 'disagreement': None}))
  assert 'agreement' not in single.ids
  bare = Page(write(tmp_path, without(report, 'per_lobe', 'outside_lobes', 'day')))
  assert 'Lobes' not in bare.words and 'Day' not in bare.words
  assert (
    'None: nothing had to be' in Page(write(tmp_path, {**report, 'warnings': []})).text
  )


def test_lung_in_no_lobe_is_a_row_of_its_own(report, tmp_path):
  assert 'in no lobe' not in Page(write(tmp_path, report)).text
  rest = {'infected_percent': 50.0, 'infection_ml': 7.0, 'lung_ml': 14.0}
  text = Page(write(tmp_path, {**report, 'outside_lobes': rest})).text
  assert 'in no lobe 50.00 % 7.0 14.0' in text


def test_text_is_no_markup(report, tmp_path):
  nasty = '<script>alert("x")</script>&amp;'
  page = write(
    tmp_path,
    {
      **report,
      'scan_id': nasty,
      'stage': nasty,
      'window': {**report['window'], 'source': nasty},
      'warnings': [{'kind': nasty, 'message': nasty}],
      'provenance': {nasty: nasty},
      'versions': {nasty: {nasty: [nasty]}},
      'severity': {**report['severity'], 'name': nasty, 'source': nasty},
    },
  )
  assert '<script' not in page
  assert Page(page).text.count('alert("x")') >= 10


def bars(found):
  return imread(io.BytesIO(scan_report._histogram(found)))


def test_histogram_shows_the_infection_only_where_there_is_some(report):
  with_both = bars(report['densities'])
  none = {**report['densities']}
  none['infection_voxels'] = [0] * len(none['infection_voxels'])
  alone = bars(none)
  assert with_both.shape[1] == alone.shape[1]
  assert with_both.shape[0] > 1.5 * alone.shape[0]
