"""Pictures of a course: they hold the data, in true proportions and orientation."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from covid3way.base import Window
from covid3way.evaluation import course, fits
from covid3way.evaluation.course import Frame
from covid3way.simulator.parameters import Parameters, as_dict

WINDOW = Window(-600.0, 1200.0, 'manifest')
SPACING_MM = (2.0, 2.0, 5.0)
SHAPE = (120, 100, 40)
EDGES = np.round(np.arange(-0.25, 0.6005, 0.001), 3)
SIGNAL = (EDGES[:-1] + EDGES[1:]) / 2


@pytest.fixture
def figures(monkeypatch):
  """Every figure that is made."""
  made = []

  class Kept(Figure):
    def __init__(self, *args, **options):
      super().__init__(*args, **options)
      made.append(self)

  for module in (course, fits):
    monkeypatch.setattr(module, 'Figure', Kept)
  return made


def pair(number):
  """Entry of a fit's report: the target is twice the first histogram."""
  before = 40 * np.exp(-(((SIGNAL + 0.03) / 0.03) ** 2)) * (SIGNAL > -0.15)
  before += 15 * np.exp(-(((SIGNAL - 0.12) / 0.05) ** 2))
  width = EDGES[1] - EDGES[0]
  return {
    'from_scan': f's{number}' if number else None,
    'to_scan': f's{number + 1}',
    'transitions': 250,
    'W': as_dict(Parameters()),
    'loss': 1.0,
    'relative_loss': 0.0125,
    'copy_last_loss': float(np.sum(before**2) / width),
    'scaled_loss': 0.0,
    'bin_edges': EDGES.tolist(),
    'observed_from': before.tolist(),
    'observed_to': (2 * before).tolist(),
    'predicted': (1.9 * before).tolist(),
  }


def lines(panel):
  return {line.get_gid(): line for line in panel.lines if line.get_gid()}


def test_fit_picture_draws_the_counts_and_tells_the_losses(tmp_path, figures):
  one = pair(1)
  fits.fit_picture(tmp_path / 'fit.png', 'p1', [one])
  panel = figures[0].axes[0]
  for name in ('observed_from', 'observed_to', 'predicted'):
    np.testing.assert_array_equal(lines(panel)[name].get_ydata(), one[name])
    np.testing.assert_allclose(lines(panel)[name].get_xdata(), SIGNAL)
    smoothed = lines(panel)[f'{name} smoothed'].get_ydata()
    assert smoothed.sum() == pytest.approx(sum(one[name]), rel=0.01)
    assert np.abs(np.diff(smoothed)).max() < np.abs(np.diff(one[name])).max()
  upright = [x[0] for x in (line.get_xdata() for line in panel.lines) if x[0] == x[-1]]
  assert upright == [-0.15, 0]
  title = panel.get_title()
  assert 's1 \N{RIGHTWARDS ARROW} s2, 250 transitions (2.5 days)' in title
  assert 'relative loss 0.0125 (copy last: 0.25, scaled: 0)' in title
  (table,) = (text.get_text() for text in panel.texts if 'growth' in text.get_text())
  assert [row.split()[0] for row in table.splitlines()] == list(one['W'])
  assert 'smoothed by 0.004' in figures[0].get_suptitle()


def test_without_smoothing_there_are_only_counts(tmp_path, figures):
  fits.fit_picture(tmp_path / 'fit.png', 'p1', [pair(1)], smoothing=0)
  drawn = lines(figures[0].axes[0])
  assert set(drawn) == {'observed_from', 'observed_to', 'predicted'}
  assert 'smoothed' not in figures[0].get_suptitle()


def test_what_lies_beyond_the_bins_is_told_and_sets_no_scale(tmp_path, figures):
  one = pair(1)
  one['observed_to'][-1] += 12_345.0
  fits.fit_picture(tmp_path / 'fit.png', 'p1', [one])
  panel = figures[0].axes[0]
  assert panel.get_ylim()[1] == pytest.approx(1.1 * max(one['observed_to'][:-1]))
  assert any(text.get_text().endswith('above 0.6:    12345') for text in panel.texts)


def test_the_invented_start_is_told_in_words(tmp_path, figures):
  first = pair(0) | {'observed_from': (np.arange(850) == 100) * 4000}
  fits.fit_picture(tmp_path / 'fit.png', 'p1', [first])
  panel = figures[0].axes[0]
  assert 'observed_from' not in lines(panel)
  labels = [text.get_text() for text in panel.get_legend().get_texts()]
  assert 'invented start: 4,000 voxels at -0.15' in labels


@pytest.mark.parametrize('n', [1, 4, 5])
def test_one_panel_per_pair(tmp_path, figures, n):
  fits.fit_picture(tmp_path / 'fit.png', 'p1', [pair(i) for i in range(n)])
  titles = [panel.get_title() for panel in figures[0].axes if panel.axison]
  assert [t.split(',')[0].split()[-1] for t in titles] == [
    f's{i}' for i in range(1, n + 1)
  ]
  height, width, _ = read_png(tmp_path / 'fit.png').shape
  assert width > 850 and 0.2 < height / width < 1.1


@pytest.fixture(scope='module')
def chest():
  """Lungs, and a lesion in the left one: at its back and top."""
  lungs = np.zeros(SHAPE, np.uint8)
  lungs[70:105, 20:80, 5:35], lungs[15:50, 20:80, 5:35] = 1, 2
  lesion = np.zeros(SHAPE, bool)
  lesion[80:100, 60:75, 25:32] = True
  return lungs, lesion


def frames_of(chest, n):
  """The lesion consolidates from its middle while its volume grows."""
  lungs, lesion = chest
  hu = np.where(lungs > 0, -850.0, 40.0)
  regions = course.planes(lesion, lungs, SPACING_MM)
  frames = []
  for number in range(n):
    stages = lesion.astype(np.uint8)
    stages[85 : 85 + number, 62:72, 25:32] = 2
    now = np.where(stages, -700.0 + 200 * (stages == 2), hu)
    cut = {
      view: [v[region].squeeze(course.PANELS[view][0]) for v in (now, stages)]
      for view, region in regions.items()
    }
    frames.append(
      Frame(
        number / 2,
        {view: planes[0] for view, planes in cut.items()},
        {view: planes[1] for view, planes in cut.items()},
        100.0 + number,
        2.0 * number,
        np.histogram(np.full(50 + number, -0.1), course.SIGNAL_EDGES)[0],
      )
    )
  return frames


def read_png(path):
  """(rows, columns, 3) int."""
  with Image.open(path) as picture:
    return np.array(picture.convert('RGB'), int)


def blue(picture):
  """Where ground glass is tinted, (rows, columns)."""
  red, _, blue = np.moveaxis(picture, -1, 0)
  return blue > red + 60


def centre(panel, mask):
  """Middle of a mask's part in a panel, as shares of its width and its height."""
  height, width = mask.shape
  box = panel.get_position()
  left, right = round(box.x0 * width), round(box.x1 * width)
  top, bottom = round((1 - box.y1) * height), round((1 - box.y0) * height)
  rows, columns = np.nonzero(mask[top:bottom, left:right])
  return columns.mean() / (right - left), rows.mean() / (bottom - top)


def test_planes_run_through_the_lesion_and_hold_the_lungs(chest):
  lungs, lesion = chest
  regions = course.planes(lesion, lungs, SPACING_MM)
  assert regions['axial'] == (slice(11, 109), slice(16, 84), slice(25, 26))
  assert regions['coronal'] == (slice(11, 109), slice(60, 61), slice(3, 37))
  everywhere = course.planes(np.zeros_like(lesion), np.ones(SHAPE, bool), SPACING_MM)
  assert everywhere['axial'][:2] == (slice(0, 120), slice(0, 100))


def test_strip_is_radiological_and_in_true_proportions(chest, tmp_path, figures):
  frames = frames_of(chest, 3)
  path = tmp_path / 'strip.png'
  course.strip(path, frames, SPACING_MM, WINDOW, 'a course', lung_ml=1000.0)
  figure = figures[0]
  panels = [panel for panel in figure.axes if panel.images]
  assert len(panels) == 9  # Three days of three planes.
  for panel in panels:
    left, right, bottom, top = panel.images[0].get_extent()
    box = panel.get_window_extent()
    mm_per_pixel = (right - left) / box.width, abs(top - bottom) / box.height
    assert mm_per_pixel[0] == pytest.approx(mm_per_pixel[1], rel=0.01)
  picture = read_png(path)
  tinted = {id(p): p for p in panels if len(p.images) == 2}
  assert len(tinted) == 6
  for panel in tinted.values():
    is_axial = bool(panel.get_title())
    x, y = centre(panel, blue(picture))
    assert x > 0.6  # The patient's left.
    assert y > 0.6 if is_axial else y < 0.4  # Behind is below; the head is above.
  told = [text.get_text() for panel in figure.axes for text in panel.texts]
  assert '103 ml, 10.3 % of the lungs\nconsolidation 2.0 ml' in told
  assert [p.get_title() for p in panels if p.get_title()] == [
    'day 0',
    'day 0.5',
    'day 1',
  ]


def test_strip_tints_the_stages_and_leaves_the_near_view_bare(chest, tmp_path, figures):
  frames = frames_of(chest, 2)
  course.strip(tmp_path / 's.png', frames, SPACING_MM, WINDOW, '', lung_ml=1000.0)
  panels = [panel for panel in figures[0].axes if panel.images]
  (near,) = (p for p in panels[:3] if len(p.images) == 1)
  hu = near.images[0].get_array()
  assert hu.shape == (28, 40)  # 56 x 80 mm.
  assert (hu == -700).sum() == 20 * 15  # All of the lesion.
  last = next(p for p in panels[3:] if p.get_title())
  tint = last.images[1].get_array()
  counts = [(frames[1].stages['axial'] == stage).sum() for stage in (1, 2)]
  shown = [(np.argmax(tint[..., :3], -1) == c) & (tint[..., 3] > 0) for c in (2, 0)]
  assert [s.sum() for s in shown] == counts and min(counts) > 0


def test_a_long_strip_says_what_it_leaves_out(chest, tmp_path, figures):
  course.strip(
    tmp_path / 's.png', frames_of(chest, 9), SPACING_MM, WINDOW, 'it', lung_ml=1000.0
  )
  assert figures[0].get_suptitle() == 'it (6 of 9 outputs shown)'
  days = [panel.get_title() for panel in figures[0].axes if panel.get_title()]
  assert (len(days), days[0], days[-1]) == (6, 'day 0', 'day 4')


def read_gif(path):
  with Image.open(path) as gif:
    info, pictures = dict(gif.info), []
    for number in range(gif.n_frames):
      gif.seek(number)
      pictures.append(np.array(gif.convert('RGB'), int))
  return info, pictures


def test_animation_has_a_frame_per_moment(chest, tmp_path, figures):
  path = tmp_path / 'course.gif'
  course.animation(path, frames_of(chest, 5), SPACING_MM, WINDOW, 'a course')
  info, pictures = read_gif(path)
  assert len(pictures) == 5 and info['loop'] == 0
  assert len({p.shape for p in pictures}) == 1 and pictures[0].shape[1] > 600
  assert path.stat().st_size < course.MOST_BYTES
  axial, coronal, histogram, curve = figures[0].axes
  x, y = centre(axial, blue(pictures[0]))
  assert x > 0.6 and y > 0.6
  x, y = centre(coronal, blue(pictures[0]))
  assert x > 0.6 and y < 0.4
  grown = [blue(p)[: len(p) // 2].sum() for p in pictures]
  assert all(b < a for a, b in itertools.pairwise(grown))  # It consolidates.
  # The last state drawn: all volumes up to the last day, and the last histogram.
  assert sum(bar.get_height() for bar in histogram.patches[:60]) == 54
  below, above = (area.get_paths()[0].vertices for area in curve.collections)
  assert below[:, 1].max() == 8 and above[:, 1].max() == 112
  assert above[:, 0].max() == 2


def test_an_animation_too_large_is_thinned_but_keeps_its_end(
  chest, tmp_path, monkeypatch
):
  frames = frames_of(chest, 6)
  whole, thinned = tmp_path / 'whole.gif', tmp_path / 'thinned.gif'
  course.animation(whole, frames, SPACING_MM, WINDOW, '')
  monkeypatch.setattr(course, 'MOST_BYTES', whole.stat().st_size - 1)
  course.animation(thinned, frames, SPACING_MM, WINDOW, '')
  assert thinned.stat().st_size < whole.stat().st_size
  (_, all_of_them), (_, some) = read_gif(whole), read_gif(thinned)
  assert len(some) == 4
  for i, j in ((0, 0), (-1, -1)):
    same = blue(some[i]) == blue(all_of_them[j])
    assert same.mean() > 0.999  # The palette is another one.
