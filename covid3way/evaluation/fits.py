"""Pictures of a fitted law: histograms of infected signals (paper, Fig. 3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from covid3way.simulator.law import RECOVERY, STAGE, TRANSITIONS_PER_DAY

_DARK, _GREY, _ACCENT = '#1d1d1f', '#8e8e93', '#d6006c'


def fit_picture(
  path: Path,
  patient_id: str,
  pairs: Sequence[Mapping[str, Any]],
  *,
  smoothing: float = 0.004,
) -> None:
  """Histograms of infected signals as observed and as the fitted law predicts them.

  Args:
    path: of the PNG.
    patient_id: whose.
    pairs: of the fit's report.
    smoothing: standard deviation, in signal units, of the Gaussian by which all lines
      are smoothed for the eye; the counts as such stay visible behind, faint. The
      picture says so. 0: not smoothed.
  """
  n = len(pairs)
  columns = 2 if n == 4 else min(n, 3)
  rows = -(-n // columns)
  # One panel alone must still hold the title.
  size = max(6.4 * columns, 7.5), 4.5 * rows + 0.5
  figure = Figure(figsize=size, layout='constrained')
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
  panels = figure.subplots(rows, columns, squeeze=False).ravel()
  for panel, pair in zip(panels, pairs, strict=False):
    _draw_pair(panel, pair, smoothing)
  for panel in panels[n:]:
    panel.set_axis_off()
  said = f' (smoothed by {smoothing:g}; faint: as counted)' if smoothing else ''
  figure.suptitle(f'{patient_id}: signals of infected voxels{said}', fontsize=11)
  figure.savefig(path, dpi=120)


def _draw_pair(panel: Axes, pair: Mapping[str, Any], smoothing: float) -> None:
  edges = np.asarray(pair['bin_edges'])
  width = edges[1] - edges[0]
  signal = (edges[:-1] + edges[1:]) / 2
  start, end = pair['from_scan'] or 'invented start', pair['to_scan']
  lines = {
    'observed_from': (start, _GREY),
    'observed_to': (end, _DARK),
    'predicted': (f'predicted for {end}', _ACCENT),
  }
  drawn = []
  for name, (label, colour) in lines.items():
    counts = np.asarray(pair[name], float)
    if name == 'observed_from' and pair['from_scan'] is None:
      # All of it lies at the threshold of recovery: a line that would hide the rest.
      label = f'{label}: {counts.sum():,.0f} voxels at {RECOVERY:g}'
      panel.axvline(RECOVERY, color=colour, linewidth=3, ymax=0.06, label=label)
      continue
    eye = counts
    if smoothing:
      panel.plot(signal, counts, color=colour, alpha=0.25, linewidth=0.6, gid=name)
      # The outermost bins hold all that lies beyond, which is no neighbour of theirs.
      eye = np.zeros_like(counts)
      eye[1:-1] = ndimage.gaussian_filter1d(counts[1:-1], smoothing / width)
    gid = f'{name} smoothed' if smoothing else name
    panel.plot(signal, eye, color=colour, linewidth=1.7, label=label, gid=gid)
    drawn.append((counts[1:-1].max(), eye[1:-1].max()))
  counted, smooth = np.max(drawn, axis=0)
  top = 1.1 * max(min(counted, 1.6 * smooth), 1e-9)
  panel.set(ylim=(0, top), xlim=_occupied(signal, pair))
  panel.set(xlabel='signal', ylabel=f'voxels per {width:.3g}')
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
  days = pair['transitions'] / TRANSITIONS_PER_DAY
  panel.set_title(
    f'{start} \N{RIGHTWARDS ARROW} {end}, '
    f'{pair["transitions"]} transitions ({days:g} days)\n{_losses(pair)}',
    fontsize=9.5,
  )
  told = [f'{name:<21} {value:8.5f}' for name, value in pair['W'].items()]
  for number, side in ((0, f'below {edges[0]:g}'), (-1, f'above {edges[-1]:g}')):
    if beyond := round(pair['observed_to'][number]):
      told.append(f'{f"not shown, {side}:":<21} {beyond:8}')
  panel.text(
    0.985,
    0.7,
    '\n'.join(told),
    transform=panel.transAxes,
    ha='right',
    va='top',
    family='monospace',
    fontsize=7.5,
    color=_DARK,
  )
  panel.legend(loc='upper right', frameon=False, fontsize=8, borderaxespad=0.8)
  panel.spines[['top', 'right']].set_visible(False)


def _losses(pair: Mapping[str, Any]) -> str:
  """The three losses, relative alike: Eq. (3) over the target's own integral."""
  edges, target = np.asarray(pair['bin_edges']), np.asarray(pair['observed_to'])
  own = float(np.sum(target**2 / np.diff(edges)))
  copied, scaled = (pair[f'{name}_loss'] / own for name in ('copy_last', 'scaled'))
  return (
    f'relative loss {pair["relative_loss"]:.3g} '
    f'(copy last: {copied:.3g}, scaled: {scaled:.3g})'
  )


def _occupied(signal: np.ndarray, pair: Mapping[str, Any]) -> tuple[float, float]:
  """Where there is anything to see, and room for W's table at the right."""
  inner = np.asarray(pair['observed_to'], float) + np.asarray(pair['predicted'])
  inner[[0, -1]] = 0
  total = np.cumsum(inner)
  if not total[-1]:
    return float(signal[0]), float(signal[-1])
  low, high = signal[np.searchsorted(total, np.array([0.002, 0.995]) * total[-1])]
  low, high = min(low, RECOVERY) - 0.015, max(high, 0.1)
  return float(low), float(min(high + 0.5 * (high - low), signal[-3]))
