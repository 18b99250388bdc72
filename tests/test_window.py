"""Whose window Eq. (1) uses, and what the one estimated from the scan is worth."""

import dataclasses

import numpy as np
import pytest
import series
from ml_collections import ConfigDict

from covid3way.base import ConfigError, Grid, Scan, WarningKind, Window
from covid3way.jobs.preprocess import window_of
from covid3way.scans import dicom
from covid3way.scans.manifest import ManifestRow
from covid3way.standard.lungs import find_lungs
from covid3way.standard.space import normalise
from covid3way.standard.window import check_choice, estimate_window

OTHER = Window(-555.0, 1111.0, 'scanner table')


def chest(lung_hu=-850.0, tissue_hu=40.0, fat_share=0.6, n=40):
  """Two lungs, soft tissue and fat between and around them, air around the body."""
  rng = np.random.default_rng(0)
  x = np.arange(n)
  lungs = np.zeros((n, n, n), np.uint8)
  inner = slice(n // 5, -(n // 5))
  lungs[n // 8 : 2 * n // 5, inner, inner] = 2
  lungs[3 * n // 5 : -(n // 8), inner, inner] = 1
  hu = rng.normal(tissue_hu, 15, lungs.shape)
  fat = rng.random(lungs.shape) < fat_share
  hu[fat] = rng.normal(-110, 12, fat.sum())
  hu[lungs > 0] = rng.normal(lung_hu, 40, (lungs > 0).sum())
  hu[:, x < 2] = -1000
  return hu.astype(np.float32), lungs


@pytest.mark.parametrize('fat_share', [0.0, 0.3, 0.6])
def test_a_nominal_scan_gets_the_nominal_window(fat_share):
  """However fat the patient: what is taken for soft tissue is not fat."""
  window, warnings = estimate_window(*chest(fat_share=fat_share), otherwise=OTHER)
  assert window.source == 'auto'
  assert window.level_hu == pytest.approx(-600, abs=5)
  assert window.width_hu == pytest.approx(1200, abs=10)
  (warning,) = warnings
  assert warning.kind == WarningKind.WINDOW_ESTIMATED
  assert all(word in warning.message for word in ('parenchyma at -8', 'soft tissue at'))


@pytest.mark.parametrize(('gain', 'offset'), [(0.9, 30), (1.1, 40), (1.05, -40)])
def test_a_miscalibrated_scanner_gives_the_same_signal(gain, offset):
  hu, lungs = chest()
  off = gain * hu + offset
  one, other = (
    normalise(each, estimate_window(each, lungs, otherwise=OTHER)[0])
    for each in (hu, off)
  )
  np.testing.assert_allclose(one, other, atol=0.005)
  assert np.abs(normalise(hu, Window(-600, 1200, '')) - (off + 600) / 1200).max() > 0.03


def test_a_miscalibrated_real_scan_gives_the_same_signal():
  scan = dicom.read_series(series.real('lung-dx-A0002'), scan_id='test')
  windows = []
  for gain, offset in ((1, 0), (0.9, 30), (1.1, 40)):
    hu = np.maximum(gain * scan.hu + offset, -1024).astype(np.float32)
    lungs, _ = find_lungs(hu, scan.grid.spacing_mm)
    window, _ = estimate_window(hu, lungs, otherwise=OTHER)
    assert window.source == 'auto'
    windows.append(
      [normalise(gain * h + offset, window) for h in (-850.0, -600.0, -300.0, 40.0)]
    )
  np.testing.assert_allclose(windows[1:], [windows[0]] * 2, atol=0.005)
  np.testing.assert_allclose(windows[0][3], 640 / 1200, atol=0.01)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'n': 12}, 'parenchyma without a clear mode'),
    ({'lung_hu': -300.0}, 'parenchyma without a clear mode'),
    ({'tissue_hu': 400.0, 'fat_share': 0.0}, 'soft tissue without a clear mode'),
    # Fat for want of anything denser, and lung that is nearly as dense: no lung window.
    ({'lung_hu': -550.0, 'fat_share': 1.0}, 'at -110 HU'),
  ],
)
def test_a_scan_that_tells_too_little_gets_the_known_window(changes, words):
  window, warnings = estimate_window(*chest(**changes), otherwise=OTHER)
  assert window == OTHER
  (warning,) = warnings
  assert warning.kind == WarningKind.WINDOW_ASSUMED
  assert words in warning.message
  assert '-555/1111 HU, scanner table' in warning.message


def test_no_lung_at_all_gets_the_known_window():
  hu, lungs = chest()
  window, _ = estimate_window(hu, np.zeros_like(lungs), otherwise=OTHER)
  assert window == OTHER


def of_row(choice, **changes):
  """The window of a scan with a plausible tag and a scanner of the table."""
  hu, lungs = chest()
  settings = ConfigDict({'level_hu': -555.0, 'width_hu': 1111.0, 'choice': choice})
  settings.scanners = {'a': (-500.0, 1400.0)}
  row = dataclasses.replace(ManifestRow('p', 's', 'unused'), **changes)
  tag = Window(-450.0, 1500.0, 'dicom tag')
  scan = Scan('s', hu, Grid(hu.shape, np.eye(4)), (tag,))
  return window_of(row, scan, lungs, settings)


@pytest.mark.parametrize('scanner', ['', 'a'])
def test_auto_replaces_scanner_table_and_tags(scanner):
  window, warnings = of_row('auto', scanner=scanner)
  assert window.source == 'auto'
  assert [w.kind for w in warnings] == [WarningKind.WINDOW_ESTIMATED]


@pytest.mark.parametrize('choice', ['known', 'auto'])
def test_a_manifests_own_window_is_always_used(choice):
  own = Window(-700.0, 1300.0, 'manifest')
  assert of_row(choice, window=own, scanner='a') == (own, ())


def test_known_windows_go_by_scanner_then_tag():
  assert of_row('known', scanner='a')[0] == Window(-500.0, 1400.0, 'scanner table')
  assert of_row('known')[0] == Window(-450.0, 1500.0, 'dicom tag')


def test_an_unknown_choice_is_told():
  with pytest.raises(
    ConfigError, match=r"window.choice: 'tags'; use one of known, auto"
  ):
    check_choice('tags')
  with pytest.raises(ConfigError, match=r'window\.choice'):
    of_row('tags', window=Window(-700.0, 1300.0, 'manifest'))
