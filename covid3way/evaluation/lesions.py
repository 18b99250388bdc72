"""How a patient's lesions change between two scans (paper, Fig. 3)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from covid3way.simulator.law import RECOVERY, STAGE, TRANSITIONS_PER_DAY

MOST_LESIONS = 10
_EARLY, _LATE, _PREDICTED, _GREY = '#0072b2', '#d55e00', '#111111', '#8e8e93'
_STEP = 0.005  # Of the lesions' histograms, signal.
_SMOOTHING = 0.01  # Standard deviation of the Gaussian over all lines.
_RANGE = -0.3, 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
  """One of a patient's scans.

  Attributes:
    title: when it was made.
    signal: (x, y, z), window units.
    infection: (x, y, z) mask.
    voxel_ml: volume of a voxel.
    rendering: (h, w, 3) picture of its lungs and infection.
  """

  title: str
  signal: np.ndarray
  infection: np.ndarray
  voxel_ml: float
  rendering: np.ndarray


def progression(
  path: Path, patient_id: str, moments: tuple[Moment, Moment], pair: Mapping[str, Any]
) -> None:
  """Both scans in 3D, their lesions' signals, and what the fitted law foretells.

  Args:
    path: of the PNG.
    patient_id: whose.
    moments: the earlier and the later scan.
    pair: the fit's entry for them.
  """
  figure = Figure(figsize=(14, 8.6), layout='constrained')
  figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
  panels = figure.subplots(2, 3, width_ratios=(1, 1.1, 1.1))
  curves = [lesion_curves(moment.signal, moment.infection) for moment in moments]
  for (solid, single, _), moment, found, colour in zip(
    panels, moments, curves, (_EARLY, _LATE), strict=True
  ):
    solid.imshow(moment.rendering)
    solid.set_axis_off()
    solid.set_title(moment.title, color=colour, fontweight='bold')
    shades = colormaps['viridis'](np.linspace(0, 0.9, max(len(found), 2)))
    for (voxels, counts), shade in zip(found, shades, strict=False):
      _curve(single, counts, color=shade, label=f'{voxels * moment.voxel_ml:.3g} ml')
    single.set_title(f'{moment.title}: its {len(found)} largest lesions', fontsize=10)
    single.legend(frameon=False, fontsize=8, title='lesion', title_fontsize=8)
  overlay, law = panels[:, 2]
  for moment, found, colour in zip(moments, curves, (_EARLY, _LATE), strict=True):
    for number, (_, counts) in enumerate(found):
      _curve(overlay, counts, color=colour, label=None if number else moment.title)
  overlay.set_title('the lesions of both scans', fontsize=10)
  overlay.legend(frameon=False, fontsize=9)
  _foretold(law, moments, pair)
  for panel in panels[:, 1:].flat:
    _finish(panel)
  figure.suptitle(f'{patient_id}: signals of infected voxels')
  figure.savefig(path, dpi=110)


def lesion_curves(
  signal: np.ndarray, infection: np.ndarray
) -> list[tuple[int, np.ndarray]]:
  """Voxels and histogram of the largest lesions, the largest first.

  Args:
    signal: (x, y, z), window units.
    infection: (x, y, z) mask; a lesion is one connected region, corners included.

  Returns:
    At most `MOST_LESIONS` of (voxels, (n,) voxels per bin of 0.005).
  """
  box = ndimage.find_objects(infection.astype(np.int8))
  if not box:
    return []
  signal, infection = signal[box[0]], infection[box[0]]
  regions, count = ndimage.label(infection, np.ones((3, 3, 3)))
  sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
  largest = np.argsort(-sizes, kind='stable')[:MOST_LESIONS]
  inside = regions > 0
  labels, signals = regions[inside], np.asarray(signal)[inside]
  return [
    (int(sizes[i]), np.histogram(signals[labels == i + 1], _edges())[0])
    for i in largest
  ]


def _edges() -> np.ndarray:
  return np.linspace(*_RANGE, round((_RANGE[1] - _RANGE[0]) / _STEP) + 1)


def _curve(panel: Axes, counts: np.ndarray, **style: Any) -> None:
  middle = (_edges()[:-1] + _edges()[1:]) / 2
  smooth = ndimage.gaussian_filter1d(counts.astype(float), _SMOOTHING / _STEP)
  panel.plot(middle, smooth, linewidth=1.3, alpha=0.85, **style)


def _foretold(
  panel: Axes, moments: tuple[Moment, Moment], pair: Mapping[str, Any]
) -> None:
  """All infected voxels together: observed twice, and predicted for the later scan."""
  edges = np.asarray(pair['bin_edges'])
  middle = (edges[:-1] + edges[1:]) / 2
  per_step = _STEP / (edges[1] - edges[0])
  days = pair['transitions'] / TRANSITIONS_PER_DAY
  lines = (
    ('observed_from', moments[0].title, _EARLY, '-'),
    ('observed_to', moments[1].title, _LATE, '-'),
    ('predicted', f'law, {days:g} days later', _PREDICTED, '--'),
  )
  for field, label, colour, style in lines:
    # The outermost bins hold all that lies beyond.
    counts = np.asarray(pair[field], float)[1:-1] * per_step
    smooth = ndimage.gaussian_filter1d(counts, _SMOOTHING * per_step / _STEP)
    panel.plot(
      middle[1:-1], smooth, style, color=colour, label=label, linewidth=1.6, gid=field
    )
  panel.set_title(
    'all lesions, and what the fitted law foretells\n'
    f'(relative loss {pair["relative_loss"]:.3g})',
    fontsize=10,
  )
  panel.legend(frameon=False, fontsize=8)


def _finish(panel: Axes) -> None:
  # Room above the curves for the names of the thresholds.
  panel.set(xlim=_RANGE, ylim=(0, 1.2 * panel.dataLim.y1))
  for threshold, name in ((RECOVERY, 'recovery'), (STAGE, 'consolidation')):
    panel.axvline(threshold, color=_GREY, linewidth=0.8, linestyle='--', zorder=0)
    panel.annotate(
      f' {name}\n {threshold:g}',
      (threshold, 0.99),
      xycoords=('data', 'axes fraction'),
      va='top',
      fontsize=8,
      color=_GREY,
    )
  panel.set(xlabel='signal, window units', ylabel=f'infected voxels per {_STEP:g}')
  panel.spines[['top', 'right']].set_visible(False)
