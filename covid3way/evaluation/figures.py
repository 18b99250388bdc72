"""Pictures: what was found, over the scan, as a radiologist looks at it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy import ndimage

from covid3way.base import Scan, Window

# View -> the axis it is normal to, its horizontal and vertical axis, and what lies
# left, right, top and bottom. Radiological: the patient's right is on the left.
_PANELS = {
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
  point = _look_at(shown if np.any(shown) else lungs)
  figure = Figure(figsize=(13, 5), facecolor='black', layout='constrained')
  axes = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 1))
  for panel, (name, row) in zip(axes, _PANELS.items(), strict=True):
    _draw(panel, scan, masks, window, point, row)
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


def _look_at(mask: np.ndarray) -> tuple[int, int, int]:
  """Along each axis, the slice that shows most of the largest connected region."""
  regions, _ = ndimage.label(mask)
  sizes = np.bincount(regions.ravel())
  sizes[0] = 0
  largest = regions == sizes.argmax()
  others = [tuple(a for a in range(3) if a != axis) for axis in range(3)]
  return tuple(int(largest.sum(axis=o).argmax()) for o in others)


def _draw(
  panel: Axes,
  scan: Scan,
  masks: Mapping[str, np.ndarray],
  window: Window,
  point: tuple[int, int, int],
  row: tuple[int, int, int, str],
) -> None:
  normal, across, up, letters = row
  spacing = scan.grid.spacing_mm
  width_mm, height_mm = (scan.grid.shape[a] * spacing[a] for a in (across, up))
  # y grows to the back, which is down; z grows to the head, which is up.
  extent = (0, width_mm, height_mm, 0) if up == 1 else (0, width_mm, 0, height_mm)
  origin = 'upper' if up == 1 else 'lower'
  panel.imshow(
    scan.hu.take(point[normal], axis=normal).T,
    cmap='gray',
    vmin=window.level_hu - window.width_hu / 2,
    vmax=window.level_hu + window.width_hu / 2,
    extent=extent,
    origin=origin,
    interpolation='bilinear',
  )
  # Contours take coordinates of voxel centres, not an extent: it would shift them.
  x, y = ((np.arange(scan.grid.shape[a]) + 0.5) * spacing[a] for a in (across, up))
  for name, mask in masks.items():
    plane = mask.take(point[normal], axis=normal).T
    if plane.any():
      thin = 0.6 if name == 'lungs' else 1.1
      panel.contour(x, y, plane, [0.5], colors=_COLOURS[name], linewidths=thin)
  corners = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.97), (0.5, 0.03))
  for letter, (a, b) in zip(letters, corners, strict=True):
    panel.text(
      a,
      b,
      letter,
      transform=panel.transAxes,
      color='white',
      ha='center',
      va='center',
      fontsize=11,
      path_effects=[withStroke(linewidth=3, foreground='black')],
    )
  panel.set_axis_off()


def training_curves(
  path: Path, figures: Mapping[str, list[Mapping[str, float]]]
) -> None:
  """Loss and Dice per epoch of each view.

  Args:
    path: of the PNG.
    figures: per view, one row per epoch with `epoch`, `loss`, `dice` and
      `validation_dice`.
  """
  figure = Figure(figsize=(9, 3.6), layout='constrained')
  left, right = figure.subplots(1, 2)
  for number, (view, rows) in enumerate(figures.items()):
    epochs, colour = [r['epoch'] for r in rows], f'C{number}'
    left.plot(epochs, [r['loss'] for r in rows], color=colour, label=view)
    right.plot(epochs, [r['dice'] for r in rows], ':', color=colour)
    held_out = [r['validation_dice'] for r in rows]
    right.plot(epochs, held_out, color=colour, label=view)
  left.set(xlabel='epoch', ylabel='training loss (cross-entropy + 1 - Dice)')
  right.set(xlabel='epoch', ylabel='Dice', ylim=(0, 1))
  right.set_title('dotted: training batches, solid: validation slices', fontsize=9)
  for panel in (left, right):
    panel.legend(title='view', frameon=False)
    panel.grid(alpha=0.3)
  figure.savefig(path, dpi=110)
