"""Pictures of a course of disease: a strip of days, an animation."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy import ndimage

from covid3way.base import Window
from covid3way.evaluation.figures import PANELS, letter_sides, look_at, show_plane
from covid3way.simulator.law import STAGE
from covid3way.standard.space import Region

VIEWS = ('axial', 'coronal')
SIGNAL_EDGES = np.linspace(-0.2, 0.4, 61)  # Of the histogram in an animation.
MOST_COLUMNS = 6
MOST_BYTES = 5_000_000

_GGO, _CONSOLIDATION = '#35b7ff', '#ff7a1a'
_STAGES = {'ground glass': _GGO, 'consolidation': _CONSOLIDATION}
_MARGIN_MM = 8.0  # Around the lungs.
_NEAR_MM = 80.0, 56.0  # Shown of an axial plane from near.


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
  """One moment of a course.

  Attributes:
    day: since its start.
    hu: (a, b) per view, along its horizontal and vertical axis.
    stages: (a, b) per view: 0 normal, 1 ground glass, 2 consolidation.
    ggo_ml: volume of ground glass.
    consolidation_ml: volume of consolidation.
    histogram: infected voxels per bin of `SIGNAL_EDGES`; a strip needs none.
  """

  day: float
  hu: Mapping[str, np.ndarray]
  stages: Mapping[str, np.ndarray]
  ggo_ml: float
  consolidation_ml: float
  histogram: np.ndarray | None = None


def planes(
  infection: np.ndarray, lungs: np.ndarray, spacing_mm: tuple[float, float, float]
) -> dict[str, Region]:
  """Per view the plane through the largest lesion, cut to the lungs and a margin.

  Args:
    infection: (x, y, z) mask.
    lungs: (x, y, z) lungs on the same grid, not empty.
    spacing_mm: of that grid.

  Returns:
    Slices along x, y, z; that of the view's normal axis is one voxel thick.
  """
  point = look_at(infection if infection.any() else lungs)
  box = []
  for axis, spacing in enumerate(spacing_mm):
    others = tuple(a for a in range(3) if a != axis)
    first, last = np.flatnonzero(lungs.any(axis=others))[[0, -1]]
    margin = round(_MARGIN_MM / spacing)
    stop = min(last + margin + 1, lungs.shape[axis])
    box.append(slice(int(max(first - margin, 0)), int(stop)))
  result = {}
  for view in VIEWS:
    region, normal = list(box), PANELS[view][0]
    region[normal] = slice(point[normal], point[normal] + 1)
    result[view] = tuple(region)
  return result


def strip(
  path: Path,
  frames: Sequence[Frame],
  spacing_mm: tuple[float, float, float],
  window: Window,
  title: str,
  *,
  lung_ml: float,
) -> None:
  """Days as columns: axial plane, the lesion in it from near, coronal plane.

  Infection is tinted by its stage; from near the scan itself is shown, bare.

  Args:
    path: of the PNG.
    frames: in order of days; of more than `MOST_COLUMNS` so many are shown, evenly
      spread with the first and the last among them, and the title says so.
    spacing_mm: of the planes along x, y, z.
    window: to show the scan in.
    title: above the picture.
    lung_ml: volume of the lungs.
  """
  count = min(len(frames), MOST_COLUMNS)
  shown = np.linspace(0, len(frames) - 1, count).round().astype(int)
  if count < len(frames):
    title += f' ({count} of {len(frames)} outputs shown)'
  box = _near(frames[-1].stages['axial'] > 0, spacing_mm)
  corners_mm = np.array([(part.start, part.stop) for part in box]).T * spacing_mm[:2]
  sizes = {view: _extent_mm(frames[0], spacing_mm, view) for view in VIEWS}
  sizes['near'] = tuple(np.diff(corners_mm, axis=0)[0])
  figure, panels = _strip_panels(sizes, columns=count)
  for number, index in enumerate(shown):
    frame, column = frames[index], panels[number]
    for view in VIEWS:
      _Picture(column[view], frame, spacing_mm, window, view)
      if not number:
        letter_sides(column[view], view)
    near = frame.hu['axial'][box]
    show_plane(column['near'], near, spacing_mm[:2], window, 'axial')
    frame_mm = *corners_mm[0], *sizes['near']
    column['axial'].add_patch(
      Rectangle(frame_mm[:2], *frame_mm[2:], fill=False, color='white', linewidth=0.7)
    )
    ml = frame.ggo_ml + frame.consolidation_ml
    column['axial'].set_title(f'day {frame.day:g}', color='white', fontsize=12)
    column['coronal'].text(
      0.5,
      -0.03,
      f'{_ml(ml)} ml, {100 * ml / lung_ml:.1f} % of the lungs\n'
      f'consolidation {_ml(frame.consolidation_ml)} ml',
      transform=column['coronal'].transAxes,
      ha='center',
      va='top',
      color='white',
      fontsize=9,
      linespacing=1.4,
    )
  _scale_bar(panels[0]['near'], sizes['near'])
  figure.suptitle(
    title, color='white', fontsize=12, y=1 - 0.12 / figure.get_figheight()
  )
  _legend(figure)
  figure.savefig(path, dpi=130)


def _near(
  infection: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[slice, slice]:
  """The part of an axial plane around its largest infected region, or its middle."""
  regions, count = ndimage.label(infection)
  centre = np.array(infection.shape) / 2
  if count:
    largest = np.bincount(regions.ravel())[1:].argmax() + 1
    centre = ndimage.center_of_mass(regions == largest)
  box = []
  for axis, size_mm in enumerate(_NEAR_MM):
    n = infection.shape[axis]
    voxels = min(round(size_mm / spacing_mm[axis]), n)
    start = int(np.clip(round(centre[axis] - voxels / 2), 0, n - voxels))
    box.append(slice(start, start + voxels))
  return tuple(box)


def _scale_bar(panel: Axes, size_mm: tuple[float, float]) -> None:
  """Two centimetres, in the lower left corner."""
  x, y = 0.05 * size_mm[0], 0.93 * size_mm[1]  # y grows downwards.
  edge = [withStroke(linewidth=4, foreground='black')]
  panel.plot([x, x + 20], [y, y], color='white', linewidth=2, path_effects=edge)
  panel.text(
    x + 10,
    y - 0.03 * size_mm[1],
    '2 cm',
    color='white',
    ha='center',
    va='bottom',
    fontsize=8,
    path_effects=edge,
  )


def _strip_panels(
  sizes: Mapping[str, tuple[float, float]], *, columns: int
) -> tuple[Figure, list[dict[str, Axes]]]:
  """A black figure and its panels by name, per column; all of a row have one scale.

  Args:
    sizes: width and height of `axial`, `near` and `coronal`, mm.
    columns: of the picture.
  """
  across, gap, above, below = 2.4, 0.06, 0.72, 0.85  # Inches.
  rows = ('coronal', 'near', 'axial')  # From below.
  heights = {name: across * sizes[name][1] / sizes[name][0] for name in rows}
  # One column alone must still hold the title.
  width = max(columns * (across + gap) + gap, 6.0)
  height = sum(heights.values()) + 2 * gap + above + below
  figure = Figure(figsize=(width, height), facecolor='black')
  indent = (width - columns * (across + gap) + gap) / 2
  panels = []
  for column in range(columns):
    left, bottom, parts = indent + column * (across + gap), below, {}
    for name in rows:
      place = left / width, bottom / height, across / width, heights[name] / height
      parts[name] = figure.add_axes(place)
      bottom += heights[name] + gap
    panels.append(parts)
  return figure, panels


def _extent_mm(
  frame: Frame, spacing_mm: tuple[float, float, float], view: str
) -> tuple[float, float]:
  """Width and height of a plane."""
  _, across, up, _ = PANELS[view]
  a, b = frame.hu[view].shape
  return a * spacing_mm[across], b * spacing_mm[up]


def _legend(figure: Figure, *others: Artist) -> None:
  handles = [Patch(color=colour, label=name) for name, colour in _STAGES.items()]
  handles += others
  figure.legend(
    handles=handles,
    loc='lower center',
    ncols=len(handles),
    frameon=False,
    labelcolor='white',
    fontsize=9,
    borderaxespad=0.2,
  )


class _Picture:
  """One view of a frame, tinted where it is infected; `show` turns to another frame."""

  def __init__(
    self,
    panel: Axes,
    frame: Frame,
    spacing_mm: tuple[float, float, float],
    window: Window,
    view: str,
  ):
    self._view = view
    _, across, up, _ = PANELS[view]
    spacing = spacing_mm[across], spacing_mm[up]
    self._scan = show_plane(panel, frame.hu[view], spacing, window, view)
    self._tint = panel.imshow(
      self._tinted(frame),
      extent=self._scan.get_extent(),
      origin=self._scan.origin,
      interpolation='nearest',
    )

  def show(self, frame: Frame) -> None:
    self._scan.set_data(frame.hu[self._view].T)
    self._tint.set_data(self._tinted(frame))

  def _tinted(self, frame: Frame) -> np.ndarray:
    """(b, a, 4) colour over the plane: the stage's where infected, else none."""
    tints = [(0, 0, 0, 0), *((*to_rgb(c), 0.5) for c in _STAGES.values())]
    return np.array(tints)[frame.stages[self._view].T]


def _ml(volume: float) -> str:
  return f'{volume:.1f}' if volume < 100 else f'{volume:.0f}'


def animation(
  path: Path,
  frames: Sequence[Frame],
  spacing_mm: tuple[float, float, float],
  window: Window,
  title: str,
) -> None:
  """The course as a GIF that repeats without end, at most `MOST_BYTES` large.

  Above, both planes; below, the histogram of infected signals and the infected volume
  so far. When the file would be too large every second frame is left out, as often as
  needed, but never the last.

  Args:
    path: of the GIF.
    frames: in order of days, each with its histogram.
    spacing_mm: of the planes along x, y, z.
    window: to show the scan in.
    title: above the picture.
  """
  pictures = _render(frames, spacing_mm, window, title)
  encoded = _encode(pictures)
  while len(encoded) > MOST_BYTES and len(pictures) > 2:
    pictures = [*pictures[:-1:2], pictures[-1]]
    encoded = _encode(pictures)
  path.write_bytes(encoded)


def _render(
  frames: Sequence[Frame],
  spacing_mm: tuple[float, float, float],
  window: Window,
  title: str,
) -> list[Image.Image]:
  """Each frame as an RGB picture; all of one size and one scale."""
  across, above, below = 3.9, 0.75, 2.35  # Inches.
  extents = {v: _extent_mm(frames[0], spacing_mm, v) for v in VIEWS}
  inch_per_mm = across / extents['axial'][0]
  tall = inch_per_mm * max(extents[v][1] for v in VIEWS)
  width, height = 2 * across + 0.3, tall + above + below
  figure = Figure(figsize=(width, height), facecolor='black', dpi=90)
  canvas = FigureCanvasAgg(figure)
  pictures = []
  for number, view in enumerate(VIEWS):
    own = inch_per_mm * extents[view][1]
    left, bottom = 0.1 + number * (across + 0.1), below + (tall - own) / 2
    place = left / width, bottom / height, across / width, own / height
    panel = figure.add_axes(place)
    pictures.append(_Picture(panel, frames[0], spacing_mm, window, view))
    letter_sides(panel, view)
  places = [(0.75 + i * (across + 0.1), 0.85, across - 0.85, 1.35) for i in range(2)]
  size = np.array([width, height, width, height])
  histogram, curve = (figure.add_axes(np.array(p) / size) for p in places)
  top = 1 - 0.12 / height
  figure.text(0.5, top, title, color='white', fontsize=11, ha='center', va='top')
  style = {'color': 'white', 'fontsize': 15, 'fontweight': 'bold'}
  clock = figure.text(0.5, 1 - 0.38 / height, '', ha='center', va='top', **style)
  first = f'day {frames[0].day:g}'
  _legend(figure, Line2D([], [], color='white', linewidth=0.8, label=first))
  rendered = []
  for number, frame in enumerate(frames):
    for picture in pictures:
      picture.show(frame)
    clock.set_text(f'day {frame.day:.1f}')
    _draw_histogram(histogram, frames, number)
    _draw_curve(curve, frames, number)
    canvas.draw()
    rendered.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB'))
  return rendered


def _draw_histogram(panel: Axes, frames: Sequence[Frame], number: int) -> None:
  """Infected voxels by signal, in their stage's colour; the first frame's outlined."""
  panel.clear()
  middle = (SIGNAL_EDGES[:-1] + SIGNAL_EDGES[1:]) / 2
  colours = np.where(middle < STAGE, _GGO, _CONSOLIDATION)
  counts = frames[number].histogram
  panel.bar(middle, counts, np.diff(SIGNAL_EDGES), color=colours)
  panel.stairs(frames[0].histogram, SIGNAL_EDGES, color='white', linewidth=0.8)
  top = max(max(f.histogram.max() for f in frames), 1)
  panel.set(ylim=(0, 1.05 * top), xlim=SIGNAL_EDGES[[0, -1]], yticks=[])
  _darken(panel, 'signal', 'infected voxels')


def _draw_curve(panel: Axes, frames: Sequence[Frame], number: int) -> None:
  """Volumes so far, stacked, on axes that hold the whole course."""
  panel.clear()
  days, ggo, consolidation = np.array(
    [(f.day, f.ggo_ml, f.consolidation_ml) for f in frames]
  ).T
  so_far = slice(number + 1)
  stacked = [consolidation[so_far], ggo[so_far]]
  panel.stackplot(days[so_far], stacked, colors=[_CONSOLIDATION, _GGO])
  panel.axvline(days[number], color='white', linewidth=1)
  top = 1.08 * max((ggo + consolidation).max(), 1e-6)
  panel.set(xlim=days[[0, -1]], ylim=(0, top))
  _darken(panel, 'day', 'infected, ml')


def _darken(panel: Axes, xlabel: str, ylabel: str) -> None:
  panel.set_facecolor('black')
  panel.tick_params(colors='white', labelsize=8)
  panel.set_xlabel(xlabel, color='white', fontsize=9)
  panel.set_ylabel(ylabel, color='white', fontsize=9)
  panel.spines[:].set_color('white')
  panel.spines[['top', 'right']].set_visible(False)


def _encode(pictures: Sequence[Image.Image]) -> bytes:
  """A GIF in one palette for all, so that what stays the same costs nothing."""
  ends = [pictures[0], pictures[len(pictures) // 2], pictures[-1]]
  sample = Image.new('RGB', (ends[0].width, 3 * ends[0].height))
  for number, picture in enumerate(ends):
    sample.paste(picture, (0, number * picture.height))
  palette = sample.quantize(255, method=Image.Quantize.MEDIANCUT)
  mapped = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
  # The ends stay longer, so that one sees where it begins anew.
  each_ms = int(np.clip(6000 / len(mapped), 60, 500))
  durations = [800, *[each_ms] * (len(mapped) - 2), 1600]
  stream = io.BytesIO()
  mapped[0].save(
    stream,
    'GIF',
    save_all=True,
    append_images=mapped[1:],
    duration=durations[: len(mapped)],
    loop=0,
    optimize=False,
  )
  return stream.getvalue()
