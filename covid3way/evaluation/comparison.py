"""Methods and ablations side by side on planes of scans (paper, Figs. 4, 5 and 6)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy import ndimage

from covid3way.base import Window
from covid3way.evaluation.figures import letter_sides, show_plane
from covid3way.evaluation.metrics import dice

# Prescribed by the paper's Fig. 5.
VIEW_COLOURS = {'xy': (1.0, 0, 0), 'yz': (0, 1.0, 0), 'xz': (0, 0.3, 1.0)}
FOUND, MISSED, FALSE = '#1fc600', '#ff2020', '#2a6cff'
OUTCOMES = {'true positive': FOUND, 'false negative': MISSED, 'false positive': FALSE}
# Apart for every kind of colour vision.
REFERENCE, PREDICTED = '#35b7ff', '#ff9f1c'

_ACROSS = 2.1  # Inches, of a panel.
_GAP, _LEFT, _TOP, _BOTTOM = 0.05, 0.5, 0.36, 0.55
_SIGNAL = Window(0.0, 1.0, 'standard space')  # Signals of -0.5 ... 0.5 are shown.
_FILL = 0.45  # Opacity of a mask.


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One scan of a figure: an axial plane of it, and what was found there.

  Attributes:
    title: beside the row.
    signal: (a, b), window units, along x and y.
    reference: (a, b) mask.
    spacing_mm: along a and b.
    masks: (a, b) predicted mask by column; a column that is not here was not run.
    scan_dice: Dice of the whole scan by column.
    maps: (a, b) probability by view, in [0, 1]; for `views` alone.
    rendering: (h, w, 3) picture; for `views` alone.
  """

  title: str
  signal: np.ndarray
  reference: np.ndarray
  spacing_mm: tuple[float, float]
  masks: Mapping[str, np.ndarray]
  scan_dice: Mapping[str, float] = dataclasses.field(default_factory=dict)
  maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  rendering: np.ndarray | None = None

  @property
  def size_mm(self) -> np.ndarray:
    """(2,) width and height."""
    return np.multiply(self.signal.shape, self.spacing_mm)


def methods(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
  """Fig. 4: scan, reference, and what each method finds, with its Dice.

  Args:
    path: of the PNG.
    rows: scans.
    columns: methods, in order.
  """
  figure, panels = _sheet(rows, ['scan', 'reference', *columns])
  for row, (raw, reference, *others) in zip(rows, panels, strict=True):
    show(raw, row)
    letter_sides(raw, 'axial')
    show(reference, row, _filled(row.reference, REFERENCE))
    for column, panel in zip(columns, others, strict=True):
      if column not in row.masks:
        _not_run(panel)
        continue
      mask = row.masks[column]
      show(panel, row, _filled(mask, PREDICTED))
      _outline(panel, row, row.reference, REFERENCE)
      _tell(panel, 'left', f'{row.scan_dice[column]:.2f}')
      _tell(panel, 'right', f'{dice(row.reference, mask):.2f}')
  colours = {
    'reference (outlined beside a prediction)': REFERENCE,
    'predicted': PREDICTED,
  }
  _finish(figure, path, colours, 'Dice: scan, top left; this slice, top right')


def views(path: Path, rows: Sequence[Row], column: str) -> None:
  """Fig. 5: scan, the three views' probabilities, the final mask, a 3D rendering.

  Args:
    path: of the PNG.
    rows: scans, with maps and rendering.
    column: key of the final mask.
  """
  titles = ['scan', 'probability by view', 'final mask', 'lesions, from the front']
  figure, panels = _sheet(rows, titles)
  for row, (raw, maps, final, solid) in zip(rows, panels, strict=True):
    show(raw, row)
    letter_sides(raw, 'axial')
    show(maps, row, mixed(row.maps))
    show(final, row, outcomes(row.reference, row.masks[column]))
    _tell(final, 'left', f'{row.scan_dice[column]:.2f}')
    _tell(final, 'right', f'{dice(row.reference, row.masks[column]):.2f}')
    _fit(solid, row.rendering)
  colours = {f'view {view}': colour for view, colour in VIEW_COLOURS.items()}
  _finish(figure, path, colours, 'all three views: white', OUTCOMES)


def ablations(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
  """Fig. 6: scan, and what is right and wrong without each part of the method.

  Args:
    path: of the PNG.
    rows: scans.
    columns: variants of the method, in order.
  """
  figure, panels = _sheet(rows, ['scan', *columns])
  for row, (raw, *others) in zip(rows, panels, strict=True):
    show(raw, row)
    letter_sides(raw, 'axial')
    for column, panel in zip(columns, others, strict=True):
      if column not in row.masks:
        _not_run(panel)
        continue
      show(panel, row, outcomes(row.reference, row.masks[column]))
      _tell(panel, 'left', f'{row.scan_dice[column]:.2f}')
      _tell(panel, 'right', f'{dice(row.reference, row.masks[column]):.2f}')
  told = 'Dice: scan, top left; this slice, top right'
  _finish(figure, path, OUTCOMES, told)


def outcomes(reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """(a, b, 4) colour: found, missed and falsely found infection, else nothing."""
  reference, predicted = reference > 0, predicted > 0
  colour = np.zeros((*reference.shape, 4))
  for where, name in (
    (reference & predicted, FOUND),
    (reference & ~predicted, MISSED),
    (predicted & ~reference, FALSE),
  ):
    colour[where] = (*to_rgb(name), 0.6)
  return colour


def mixed(maps: Mapping[str, np.ndarray]) -> np.ndarray:
  """(a, b, 4) colour of three probability maps: each view's own, added up."""
  shape = next(iter(maps.values())).shape
  colour = np.zeros((*shape, 4))
  for view, probability in maps.items():
    colour[..., :3] += probability[..., None] * np.array(VIEW_COLOURS[view])
  strength = np.max(list(maps.values()), axis=0)
  # As opaque as the surest view; the hue is the views' shares.
  colour[..., :3] /= np.maximum(strength, 1e-6)[..., None]
  colour[..., 3] = 0.75 * strength
  return np.clip(colour, 0, 1)


def lesion_outcomes(
  reference: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
  """Whole lesions by colour: predicted ones that meet the reference, missed, false.

  Args:
    reference: (x, y, z) mask.
    predicted: (x, y, z) mask.
  """
  found, false = _meeting(predicted, reference)
  return {FOUND: found, MISSED: _meeting(reference, predicted)[1], FALSE: false}


def _meeting(mask: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The lesions of a mask that meet another mask, and those that do not."""
  regions, count = ndimage.label(mask, np.ones((3, 3, 3)))
  meets = np.zeros(count + 1, bool)
  meets[regions[other > 0]] = True
  meets[0] = False
  return meets[regions], ~meets[regions] & (regions > 0)


def _filled(mask: np.ndarray, colour: str) -> np.ndarray:
  tinted = np.zeros((*mask.shape, 4))
  tinted[mask > 0] = (*to_rgb(colour), _FILL)
  return tinted


def show(panel: Axes, row: Row, tint: np.ndarray | None = None) -> None:
  """A row's plane, and (a, b, 4) colours over it."""
  size_mm = panel.get_xlim()[1], panel.get_ylim()[0]
  picture = show_plane(panel, row.signal, row.spacing_mm, _SIGNAL, 'axial')
  if tint is not None:
    panel.imshow(
      tint.transpose(1, 0, 2),
      extent=picture.get_extent(),
      origin=picture.origin,
      interpolation='nearest',
    )
  # All panels of a figure have one scale and size: small scans lie in the middle.
  panel.set_axis_on()
  room = (np.array(size_mm) - row.size_mm) / 2
  panel.set_xlim(-room[0], row.size_mm[0] + room[0])
  panel.set_ylim(row.size_mm[1] + room[1], -room[1])


def _fit(panel: Axes, picture: np.ndarray) -> None:
  """A picture as large as a panel holds it."""
  (_, wide), (tall, _) = panel.get_xlim(), panel.get_ylim()
  h, w, _ = picture.shape
  scale = max(h / tall, w / wide)  # Pixels per mm of the panel.
  panel.imshow(picture)
  panel.set_xlim(w / 2 - scale * wide / 2, w / 2 + scale * wide / 2)
  panel.set_ylim(h / 2 + scale * tall / 2, h / 2 - scale * tall / 2)


def _outline(panel: Axes, row: Row, mask: np.ndarray, colour: str) -> None:
  if mask.any():
    x, y = (
      (np.arange(n) + 0.5) * mm
      for n, mm in zip(mask.shape, row.spacing_mm, strict=True)
    )
    panel.contour(x, y, mask.T, [0.5], colors=colour, linewidths=0.8)


def _tell(panel: Axes, side: str, text: str) -> None:
  panel.text(
    0.03 if side == 'left' else 0.97,
    0.97,
    text,
    transform=panel.transAxes,
    color='white',
    ha=side,
    va='top',
    fontsize=12,
    fontweight='bold',
    path_effects=[withStroke(linewidth=3, foreground='black')],
  )


def _not_run(panel: Axes) -> None:
  panel.text(0.5, 0.5, 'not run', transform=panel.transAxes, color='white', ha='center')


def _sheet(
  rows: Sequence[Row], titles: Sequence[str]
) -> tuple[Figure, list[list[Axes]]]:
  """A figure with a row per scan, whose panels all show as many mm as the largest."""
  size_mm = np.max([row.size_mm for row in rows], axis=0)
  tall = _ACROSS * size_mm[1] / size_mm[0]
  width = _LEFT + len(titles) * (_ACROSS + _GAP)
  height = _TOP + len(rows) * (tall + _GAP) + _BOTTOM
  figure = Figure(figsize=(width, height))
  panels = []
  for number, row in enumerate(rows):
    bottom = height - _TOP - (number + 1) * (tall + _GAP)
    line = []
    for column, title in enumerate(titles):
      left = _LEFT + column * (_ACROSS + _GAP)
      place = left / width, bottom / height, _ACROSS / width, tall / height
      panel = figure.add_axes(place, xticks=[], yticks=[], facecolor='black')
      panel.set(xlim=(0, size_mm[0]), ylim=(size_mm[1], 0))
      if not number:
        panel.set_title(title, fontsize=13)
      line.append(panel)
    # The longest line of it fits beside the row; a letter is about 0.65 wide.
    longest = max(map(len, row.title.splitlines()))
    line[0].set_ylabel(row.title, fontsize=min(10, 72 * tall / (0.65 * longest)))
    panels.append(line)
  return figure, panels


def _finish(
  figure: Figure,
  path: Path,
  colours: Mapping[str, object],
  told: str,
  others: Mapping[str, object] | None = None,
) -> None:
  """Explains the colours below, and writes the picture."""
  named = [*colours.items(), (told, 'none'), *(others or {}).items()]
  handles = [Patch(color=colour, label=name) for name, colour in named]
  # Short rows, or a narrow figure would cut them.
  columns = max(2, min(len(handles), round(figure.get_figwidth() / 2.5)))
  figure.legend(
    handles=handles,
    loc='lower center',
    ncols=columns,
    frameon=False,
    fontsize=10.5,
    borderaxespad=0.1,
  )
  figure.savefig(path, dpi=110)
