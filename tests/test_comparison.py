"""Pictures of a comparison hold the data: colours, places, numbers."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from covid3way.evaluation import comparison, lesions, plots, rendering
from covid3way.evaluation.comparison import FALSE, FOUND, MISSED, Row
from covid3way.evaluation.rendering import Surface, render
from covid3way.evaluation.results import METRICS
from covid3way.evaluation.scores import Scores

SPACING_MM = (2.0, 3.0)


@pytest.fixture
def figures(monkeypatch):
  """Every figure that is made."""
  made = []

  class Kept(Figure):
    def __init__(self, *args, **options):
      super().__init__(*args, **options)
      made.append(self)

  for module in (comparison, plots, lesions):
    monkeypatch.setattr(module, 'Figure', Kept)
  return made


def masks():
  """Reference and prediction: 4 x 4 each, 2 x 4 of it in common."""
  reference, predicted = np.zeros((2, 40, 30), bool)
  reference[10:14, 5:9], predicted[12:16, 5:9] = True, True
  return reference, predicted


def row(**others):
  reference, predicted = masks()
  given = {'masks': {'Ours': predicted}, 'scan_dice': {'Ours': 0.87}} | others
  return Row('early', np.full((40, 30), -0.5), reference, SPACING_MM, **given)


def colour_at(path, figure, panel, voxel):
  """RGB of a picture where a panel shows the centre of a voxel of its plane."""
  mm = (np.array(voxel) + 0.5) * SPACING_MM
  across, up = figure.transFigure.inverted().transform(panel.transData.transform(mm))
  picture = np.asarray(Image.open(path).convert('RGB'))
  h, w, _ = picture.shape
  return tuple(picture[int((1 - up) * h), int(across * w)])


def shade(colour, opacity):
  """Of a colour over black."""
  return pytest.approx([255 * opacity * part for part in to_rgb(colour)], abs=6)


def test_outcomes_are_green_red_and_blue_where_they_should_be(tmp_path, figures):
  path = tmp_path / 'a.png'
  comparison.ablations(path, [row()], ['Ours'])
  (figure,) = figures
  panel = figure.axes[1]
  for voxel, colour in (((12, 6), FOUND), ((10, 6), MISSED), ((15, 6), FALSE)):
    assert colour_at(path, figure, panel, voxel) == shade(colour, 0.6)
  assert colour_at(path, figure, panel, (30, 20)) == (0, 0, 0)
  assert panel.get_title() == 'Ours'
  # 2 * 8 of 16 + 16 voxels of the slice.
  assert [text.get_text() for text in panel.texts] == ['0.87', '0.50']
  told = [text.get_text() for text in figure.legends[0].get_texts()]
  assert told[:3] == ['true positive', 'false negative', 'false positive']


def test_colours_of_outcomes():
  reference, predicted = masks()
  colour = comparison.outcomes(reference, predicted)
  assert (colour[..., 3] > 0).sum() == (reference | predicted).sum()
  assert tuple(colour[10, 5, :3]) == to_rgb(MISSED)
  assert not colour[0, 0].any()


def test_methods_that_were_not_run_say_so(tmp_path, figures):
  path = tmp_path / 'a.png'
  comparison.methods(path, [row(), row(masks={})], ['Ours', '2D U-Net'])
  (figure,) = figures
  titles = [panel.get_title() for panel in figure.axes[:4]]
  assert titles == ['scan', 'reference', 'Ours', '2D U-Net']
  told = [[text.get_text() for text in panel.texts] for panel in figure.axes]
  assert told[2] == ['0.87', '0.50']
  assert told[3] == told[6] == told[7] == ['not run']
  reference = colour_at(path, figure, figure.axes[1], (11, 7))
  assert reference == shade(comparison.REFERENCE, 0.45)
  predicted = colour_at(path, figure, figure.axes[2], (14, 7))
  assert predicted == shade(comparison.PREDICTED, 0.45)


def test_each_view_has_its_colour_and_they_add_up():
  maps = {view: np.zeros((4, 4)) for view in ('xy', 'yz', 'xz')}
  maps['xy'][0], maps['yz'][1] = 0.8, 1.0
  for each in maps.values():
    each[3] = 1.0
  maps['xy'][2], maps['yz'][2] = 0.5, 0.5
  colour = comparison.mixed(maps)
  np.testing.assert_allclose(colour[0, 0], [1, 0, 0, 0.6])
  np.testing.assert_allclose(colour[1, 0], [0, 1, 0, 0.75])
  np.testing.assert_allclose(colour[2, 0], [1, 1, 0, 0.375])
  np.testing.assert_allclose(colour[3, 0], [1, 1, 1, 0.75])


def test_views_show_maps_mask_and_rendering_uncut(tmp_path, figures):
  maps = {view: np.zeros((40, 30)) for view in ('xy', 'yz', 'xz')}
  maps['xy'][20, 20] = 1.0
  tall = np.zeros((300, 100, 3))
  path = tmp_path / 'a.png'
  comparison.views(path, [row(maps=maps, rendering=tall)], 'Ours')
  (figure,) = figures
  assert colour_at(path, figure, figure.axes[1], (20, 20)) == shade('red', 0.75)
  solid = figure.axes[3]
  (left, right), (bottom, top) = solid.get_xlim(), solid.get_ylim()
  assert left <= -0.5 and right >= 99.5 and bottom >= 299.5 and top <= 0.5


def test_planes_of_unlike_sizes_have_one_scale(tmp_path, figures):
  small = Row('b', np.zeros((20, 10)), np.zeros((20, 10), bool), SPACING_MM, {})
  comparison.ablations(tmp_path / 'a.png', [row(), small], ['Ours'])
  sizes = [np.abs(np.diff([p.get_xlim(), p.get_ylim()]))[:, 0] for p in figures[0].axes]
  for shown, panel in zip(sizes, figures[0].axes, strict=True):
    if panel.images:
      np.testing.assert_allclose(shown, [80, 90])
      assert panel.get_ylim()[0] > panel.get_ylim()[1]  # The back is down.
      assert panel.get_xlim()[0] < panel.get_xlim()[1]  # The right is on the left.


def test_lesions_are_found_missed_or_false_as_a_whole():
  reference, predicted = np.zeros((2, 12, 12, 12), bool)
  reference[1:4, 1, 1], predicted[3:6, 1, 1] = True, True
  reference[9, 9, 9], predicted[1, 9, 9] = True, True
  found = comparison.lesion_outcomes(reference, predicted)
  assert {colour: mask.sum() for colour, mask in found.items()} == {
    FOUND: 3,
    MISSED: 1,
    FALSE: 1,
  }
  assert found[FOUND][5, 1, 1] and found[MISSED][9, 9, 9] and found[FALSE][1, 9, 9]


# A rendering: two lungs as boxes, x grows to the left, y to the back, z to the head.
SHAPE, MM = (60, 40, 50), (4.0, 4.0, 4.0)


def box(x, y, z, size):
  mask = np.zeros(SHAPE, bool)
  mask[x : x + size, y : y + size, z : z + size] = True
  return mask


def both_lungs():
  lungs = np.zeros(SHAPE, np.uint8)
  lungs[32:56, 4:36, 4:46], lungs[4:28, 4:36, 4:46] = 1, 2
  return lungs


def place_of(picture, channel):
  """Where a colour is: mean row and column, as shares of the height and width."""
  others = np.delete(picture, channel, axis=2).max(axis=2)
  rows, columns = np.nonzero(picture[..., channel] > others + 0.15)
  h, w, _ = picture.shape
  return rows.mean() / h, columns.mean() / w, len(rows)


def test_rendering_is_seen_from_the_front():
  high_right = box(8, 15, 36, 6)  # Of the patient's right lung, near its apex.
  picture = render(both_lungs(), [Surface(high_right, 'red')], MM, azimuth_degrees=0)
  assert 0 <= picture.min() and picture.max() <= 1
  down, across, _ = place_of(picture, 0)
  assert down < 0.35 and across < 0.35
  size_mm = 52 * 4.0, 42 * 4.0  # Of both lungs; a margin is around them.
  h, w, _ = picture.shape
  assert size_mm[0] < w < size_mm[0] + 45 and size_mm[1] < h < size_mm[1] + 45
  glass = picture[h // 2, w // 4]  # Neither background nor opaque.
  assert 0.02 < glass.max() < 0.6
  assert not picture[2, 2].any()


def test_the_nearer_surface_hides_the_farther():
  front, back = box(10, 8, 20, 8), box(10, 24, 20, 8)
  surfaces = [Surface(back, '#00ff00'), Surface(front, 'red')]
  picture = render(both_lungs(), surfaces, MM, azimuth_degrees=0)
  assert place_of(picture, 0)[2] > 500
  assert np.sum(picture[..., 1] > picture[..., 0] + 0.3) == 0


def test_the_viewer_walks_to_the_patients_right():
  front = box(10, 5, 20, 6)
  picture = render(both_lungs(), [Surface(front, 'red')], MM, azimuth_degrees=90)
  w = picture.shape[1]
  assert place_of(picture, 0)[1] > 0.6  # Whose right side is seen faces to the right.
  assert w < 32 * 4.0 + 45


@pytest.mark.parametrize('mm', [(4.0, 4.0, 4.0), (0.65, 0.65, 1.0)])
def test_a_lesion_of_one_voxel_is_seen(mm):
  picture = render(both_lungs(), [Surface(box(15, 20, 25, 1), 'red')], mm)
  assert place_of(picture, 0)[2] > 1


def test_a_sphere_is_lit_from_above_on_the_left():
  grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing='ij'))
  ball = np.sum((grid - np.array([16, 20, 25])[:, None, None, None]) ** 2, axis=0) < 80
  picture = render(both_lungs(), [Surface(ball, 'red')], MM, azimuth_degrees=0)
  down, across, _ = place_of(picture, 0)
  h, w, _ = picture.shape
  row, column, r = int(down * h), int(across * w), 20
  assert picture[row - r, column - r, 0] > picture[row + r, column + r, 0] + 0.2


def test_interpolation_weights_of_a_plane():
  field = np.arange(12.0).reshape(3, 4)
  places = np.array([[1, 2], [0.5, 0], [1.25, 2.5], [2, 3], [-5, 0]])
  weights = rendering._weights(places, (3, 4))
  np.testing.assert_allclose(weights @ field.ravel(), [6, 2, 7.5, 11, 0])


def test_curves_of_the_largest_lesions():
  infection = np.zeros((20, 20, 20), bool)
  infection[1:4, 1:4, 1:4] = infection[10, 10, 10] = infection[11, 11, 11] = True
  signal = np.full(infection.shape, 0.0525)
  signal[1:4, 1:4, 1:4] = -0.1025
  found = lesions.lesion_curves(signal, infection)
  assert [voxels for voxels, _ in found] == [27, 2]  # Corners connect.
  for (voxels, counts), value in zip(found, (-0.1025, 0.0525), strict=True):
    (bin_,) = np.flatnonzero(counts)
    assert counts[bin_] == voxels and bin_ == math.floor((value + 0.3) / 0.005)
  assert lesions.lesion_curves(signal, np.zeros_like(infection)) == []
  many = np.zeros((20, 20, 20), bool)
  many[::4, ::4, ::4] = True
  assert len(lesions.lesion_curves(signal, many)) == lesions.MOST_LESIONS


def test_progression_shows_what_the_law_foretold(tmp_path, figures):
  edges = np.round(np.arange(-0.25, 0.6005, 0.001), 3)
  middle = (edges[:-1] + edges[1:]) / 2
  before = 100 * np.exp(-(((middle - 0.1) / 0.05) ** 2))
  pair = {'observed_from': before, 'observed_to': 2 * before, 'predicted': 3 * before}
  pair |= {'bin_edges': edges, 'transitions': 250, 'relative_loss': 0.25}
  infection = box(5, 5, 5, 3)
  moments = tuple(
    lesions.Moment(f'day {day}', np.zeros(SHAPE), infection, 0.5, np.zeros((9, 9, 3)))
    for day in (1, 3)
  )
  lesions.progression(tmp_path / 'a.png', 'p', moments, pair)
  panels = figures[0].axes
  law = panels[5]
  lines = {line.get_gid(): line for line in law.lines if line.get_gid()}
  heights = {name: line.get_ydata().max() for name, line in lines.items()}
  # Five bins of 0.001 are one step of 0.005; smoothing lowers the peak a little.
  assert heights['observed_from'] == pytest.approx(500, rel=0.05)
  assert heights['predicted'] == pytest.approx(3 * heights['observed_from'])
  assert '0.25' in law.get_title() and 'foretells' in law.get_title()
  assert [t.get_text() for t in panels[1].get_legend().get_texts()] == ['13.5 ml']
  for panel in (*panels[1:3], *panels[4:6]):
    assert 'window units' in panel.get_xlabel() and 'voxels' in panel.get_ylabel()


def scored(dice, volumes, shares=((1.0, 2.0),) * 9):
  """Scores of one method."""
  about = {'run': 'r', 'method': 'three_way', 'ratio_percent': 200.0, 'ablation': ''}
  about |= {'scanner': '', 'site': '', 'evaluation': 'native', 'status': 'ok'}
  about |= {name: 0.5 for name in METRICS}
  rows = [
    about
    | {'scan_id': f's{i}', 'patient_id': f'p{i}', 'stage': ('early', 'severe')[i % 2]}
    | {'dice': d, 'fold': 0.0, 'infection_ml_reference': ml}
    | {'infected_percent_reference': a, 'infected_percent_predicted': b}
    for i, (d, ml, (a, b)) in enumerate(zip(dice, volumes, shares, strict=False))
  ]
  return Scores(rows, [[row['scan_id'] for row in rows]])


def dots(panel):
  return sorted(tuple(d) for c in panel.collections for d in c.get_offsets().data)


def test_bland_altman_draws_bias_and_limits(tmp_path, figures):
  shares = ((1.0, 2.0), (3.0, 3.0), (5.0, 4.0), (7.0, 11.0))
  plots.bland_altman(tmp_path / 'a.png', scored((0.5,) * 4, (1.0,) * 4, shares))
  panel = figures[0].axes[0]
  assert dots(panel) == [(1.5, 1.0), (3.0, 0.0), (4.5, -1.0), (9.0, 4.0)]
  heights = sorted(line.get_ydata()[0] for line in panel.lines)
  reach = 1.96 * (14 / 3) ** 0.5
  np.testing.assert_allclose(heights, [1 - reach, 0, 1, 1 + reach])
  low, high = panel.get_ylim()
  assert low < 1 - reach and high > 1 + reach
  assert 'points' in figures[0].get_supylabel() and '%' in figures[0].get_supxlabel()


def test_dice_by_volume_says_what_it_cannot_show(tmp_path, figures):
  plots.dice_by_volume(tmp_path / 'a.png', scored((0.4, 0.6, 0.1), (10.0, 200.0, 0.0)))
  panel = figures[0].axes[0]
  shown = [dot for dot in dots(panel) if not math.isnan(dot[0])]
  assert shown == [(10.0, 0.4), (200.0, 0.6)]
  assert panel.get_xscale() == 'log' and 'ml' in figures[0].get_supxlabel()
  assert '1 scans of 0 ml not shown' in panel.get_title()


def test_dice_by_method_marks_the_mean(tmp_path, figures):
  plots.dice_by_method(tmp_path / 'a.png', scored((0.2, 0.4, 0.9), (1.0,) * 3), seed=0)
  panel = figures[0].axes[0]
  assert [x for x, _ in dots(panel)] == [0.2, 0.4, 0.9]
  mean = next(line for line in panel.lines if line.get_gid() == 'mean three_way')
  assert mean.get_xdata()[0] == pytest.approx(0.5)
  assert 'mean 0.500' in [text.get_text() for text in panel.texts]
