"""Pictures: what was found, over the scan, as a radiologist looks at it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy import ndimage

from covid3way.base import Scan, Window

# View -> the axis it is normal to, its horizontal and vertical axis, and what lies
# left, right, top and bottom. Radiological: the patient's right is on the left.
PANELS = {
  'axial': (2, 0, 1, 'RLAP'),
  'coronal': (1, 0, 2, 'RLHF'),
  'sagittal': (0, 1, 2, 'APHF'),
}
_COLOURS = {'lungs': '#4cc9f0', 'infection': '#ff3b30', 'reference': '#34c759'}


def overview(
  path: Path,
  scan: Scan,
  infection: np.ndarray,
  lungs: np.ndarray,
  window: Window,
  title: str,
  *,
  reference: np.ndarray | None = None,
) -> None:
  """Axial, coronal and sagittal slice through the largest lesion, masks outlined.

  Args:
    path: of the PNG.
    scan: the scan.
    infection: (x, y, z) mask on its grid.
    lungs: (x, y, z) lung labels on its grid.
    window: to show the signal in.
    title: above the picture.
    reference: (x, y, z) reference infection mask, if there is one.
  """
  masks = {'lungs': lungs > 0, 'infection': infection}
  if reference is not None:
    masks['reference'] = reference > 0
  shown = infection if infection.any() or reference is None else reference
  point = look_at(shown if np.any(shown) else lungs)
  figure = Figure(figsize=(13, 5), facecolor='black', layout='constrained')
  axes = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 1))
  for panel, (name, row) in zip(axes, PANELS.items(), strict=True):
    _draw(panel, scan, masks, window, point, name)
    mm = point[row[0]] * scan.grid.spacing_mm[row[0]]
    panel.set_title(f'{name}, {"xyz"[row[0]]} = {mm:.0f} mm', color='white')
  figure.suptitle(title, color='white')
  lines = [Line2D([], [], color=_COLOURS[n], label=n) for n in masks]
  figure.legend(
    handles=lines,
    loc='outside lower center',
    ncols=len(lines),
    frameon=False,
    labelcolor='white',
  )
  figure.savefig(path, dpi=110)


def look_at(mask: np.ndarray) -> tuple[int, int, int]:
  """Along each axis, the slice that shows most of the largest connected region."""
  mask = mask != 0
  # Labels take four bytes a voxel: only where there is something.
  (box,) = ndimage.find_objects(mask.view(np.uint8)) or [(slice(None),) * 3]
  regions, count = ndimage.label(mask[box])
  sizes = sum(np.bincount(plane.ravel(), minlength=count + 1) for plane in regions)
  sizes[0] = 0
  largest = regions == sizes.argmax()
  others = [tuple(a for a in range(3) if a != axis) for axis in range(3)]
  first = [part.start or 0 for part in box]
  at = [largest.sum(axis=o).argmax() for o in others]
  return tuple(int(a + b) for a, b in zip(first, at, strict=True))


def _draw(
  panel: Axes,
  scan: Scan,
  masks: Mapping[str, np.ndarray],
  window: Window,
  point: tuple[int, int, int],
  name: str,
) -> None:
  normal, across, up, _ = PANELS[name]
  spacing = scan.grid.spacing_mm
  plane_mm = spacing[across], spacing[up]
  show_plane(panel, scan.hu.take(point[normal], axis=normal), plane_mm, window, name)
  # Contours take coordinates of voxel centres, not an extent: it would shift them.
  x, y = ((np.arange(scan.grid.shape[a]) + 0.5) * spacing[a] for a in (across, up))
  for mask_name, mask in masks.items():
    plane = mask.take(point[normal], axis=normal).T
    if plane.any():
      thin = 0.6 if mask_name == 'lungs' else 1.1
      panel.contour(x, y, plane, [0.5], colors=_COLOURS[mask_name], linewidths=thin)
  letter_sides(panel, name)


def show_plane(
  panel: Axes,
  hu: np.ndarray,
  spacing_mm: tuple[float, float],
  window: Window,
  view: str,
) -> AxesImage:
  """A plane of a scan in true proportions, turned as radiologists look at it.

  Args:
    panel: to draw on; its units are mm from the plane's corner.
    hu: (a, b), along the view's horizontal and vertical axis.
    spacing_mm: along the same.
    window: to show it in.
    view: a key of `PANELS`.
  """
  width_mm, height_mm = np.multiply(hu.shape, spacing_mm)
  # y grows to the back, which is down; z grows to the head, which is up.
  down = PANELS[view][2] == 1
  panel.set_axis_off()
  return panel.imshow(
    hu.T,
    cmap='gray',
    vmin=window.level_hu - window.width_hu / 2,
    vmax=window.level_hu + window.width_hu / 2,
    extent=(0, width_mm, height_mm, 0) if down else (0, width_mm, 0, height_mm),
    origin='upper' if down else 'lower',
    interpolation='bilinear',
  )


def letter_sides(panel: Axes, view: str) -> None:
  """What lies left, right, top and bottom."""
  # Aligned to the inside, or they would stick out of a small panel.
  places = (
    (0.01, 0.5, 'left', 'center'),
    (0.99, 0.5, 'right', 'center'),
    (0.5, 0.98, 'center', 'top'),
    (0.5, 0.02, 'center', 'bottom'),
  )
  for letter, (a, b, ha, va) in zip(PANELS[view][3], places, strict=True):
    panel.text(
      a,
      b,
      letter,
      transform=panel.transAxes,
      color='white',
      ha=ha,
      va=va,
      fontsize=11,
      path_effects=[withStroke(linewidth=3, foreground='black')],
    )


def training_curves(
  path: Path, figures: Mapping[str, Sequence[Mapping[str, float]]]
) -> None:
  """Loss, Dice, learning rate and pace of each view, by epoch.

  Args:
    path: of the PNG.
    figures: per view, one row per epoch: the fields of `loop.Epoch` and, if known, of
      `loop.Pace`.
  """
  figure = Figure(figsize=(10, 6.4), layout='constrained')
  loss, dice, rate, pace = figure.subplots(2, 2).flat
  waiting = pace.twinx()
  for number, (view, rows) in enumerate(figures.items()):
    columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
    epochs, style = columns['epoch'], {'color': f'C{number}', 'marker': '.'}
    loss.plot(epochs, columns['loss'], label=view, **style)
    dice.plot(epochs, columns['dice'], ':', color=f'C{number}')
    dice.plot(epochs, columns['validation_dice'], label=view, **style)
    rate.plot(epochs, columns['learning_rate'], label=view, **style)
    if 'images_per_s' in columns:
      pace.plot(epochs, columns['images_per_s'], label=view, **style)
      percent = 100 * columns['waiting_share']
      waiting.plot(epochs, percent, ':', color=f'C{number}')
  loss.set(ylabel='training loss')
  dice.set(ylabel='Dice', ylim=(0, 1))
  dice.set_title('dotted: training batches, solid: validation slices', fontsize=9)
  rate.set(ylabel='learning rate at the end of the epoch', ylim=(0, None))
  pace.set(ylabel='images per second', ylim=(0, None))
  pace.set_title('solid: images, dotted: share of the time', fontsize=9)
  waiting.set(ylabel='waiting for data, %', ylim=(0, 100))
  # The corners that curves leave free; to look for the best one can take seconds.
  falls, rises = 'upper right', 'lower right'
  corners = {loss: falls, dice: rises, rate: falls, pace: rises}
  for panel, corner in corners.items():
    panel.set(xlabel='epoch')
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    if panel.lines:
      panel.legend(title='view', frameon=False, loc=corner)
  figure.savefig(path, dpi=110)
