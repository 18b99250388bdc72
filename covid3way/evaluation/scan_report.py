"""One page per scan: what was found, how far to trust it, and how it was made."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from covid3way.evaluation import pages
from covid3way.scans.files import whole
from covid3way.segmentation.quantify import RELIABLE_MEAN_DICE, RELIABLE_PERCENT

BAND_COLOURS = {
  'low_attenuation': '#56b4e9',
  'normal': '#009e73',
  'ground_glass': '#e69f00',
  'consolidation': '#cc3311',
}
_DARK = '#1d1d1f'
_MINUS = '\N{MINUS SIGN}'
# Key of a report -> what its parts are called together.
_PARTS = {'per_lung': 'Lungs', 'per_third': 'Thirds of height', 'per_lobe': 'Lobes'}


def write_page(path: Path, report: Mapping[str, Any], overview_png: Path) -> None:
  """Writes a scan's page: one HTML file that needs nothing but a browser.

  Args:
    path: of the page.
    report: what `quantification.json` of the scan holds. Sections whose keys are
      absent or None are left out.
    overview_png: of `figures.overview`.

  Raises:
    StorageError: the disk refused.
  """
  found = report.get('densities')
  page = pages.render(
    'scan_report.html.j2',
    title=f'Scan {report["scan_id"]}',
    report=report,
    about=_about(report),
    making=_making(report),
    overview=pages.address(overview_png.read_bytes()),
    shares=list(_shares(report)),
    histogram=pages.address(_histogram(found)) if found else None,
    outside_ml=_outside_ml(found) if found else None,
    colours=BAND_COLOURS,
    rule=(RELIABLE_MEAN_DICE, RELIABLE_PERCENT),
    signed=_signed,
    worded=_worded,
  )
  with whole(path) as aside:
    aside.write_text(page, encoding='utf-8')


def _about(report: Mapping[str, Any]) -> dict[str, str]:
  """What is known of the scan, to be shown first."""
  day, stage = report.get('day'), report.get('stage')
  known = {
    'Day': None if day is None else f'{day:g}',
    'Stage': stage,
    'Masks given, not found here': ', '.join(report.get('given', ())),
  }
  return {name: value for name, value in known.items() if value}


def _making(report: Mapping[str, Any]) -> dict[str, dict[str, str]]:
  """What is known of how the numbers came about, in the order of the page."""
  known = {'Model': 'model', 'Scan': 'provenance', 'Versions': 'versions'}
  return {
    name: pages.flat(report[key]) for name, key in known.items() if report.get(key)
  }


def _shares(
  report: Mapping[str, Any],
) -> Iterator[tuple[str, list[tuple[str, Mapping[str, float | None]]]]]:
  """Blocks of the table of infected shares."""
  yield '', [('both lungs', report)]
  for key, title in _PARTS.items():
    if parts := report.get(key):
      rows = [(_worded(name), part) for name, part in parts.items()]
      if key == 'per_lobe' and report['outside_lobes']['lung_ml']:
        rows.append(('in no lobe', report['outside_lobes']))
      yield title, rows


def _worded(name: str) -> str:
  return name.replace('_', ' ')


def _signed(hu: float) -> str:
  return f'{hu:.0f}'.replace('-', _MINUS)


def _outside_ml(densities: Mapping[str, Any]) -> tuple[float, float]:
  """Lung below the first and from the last edge of the histogram on."""
  counts = densities['lung_voxels']
  return tuple(counts[end] * densities['voxel_ml'] for end in (0, -1))


def _histogram(densities: Mapping[str, Any]) -> bytes:
  """HU of the lungs, and below of the infection if there is any, over the bands."""
  edges = np.array(densities['edges_hu'])
  volumes = {
    'lungs': np.array(densities['lung_voxels'][1:-1]) * densities['voxel_ml'],
    'infection': np.array(densities['infection_voxels'][1:-1]) * densities['voxel_ml'],
  }
  if not volumes['infection'].any():
    del volumes['infection']
  figure = Figure(figsize=(9, 0.9 + 1.9 * len(volumes)), layout='constrained')
  panels = figure.subplots(len(volumes), 1, sharex=True, squeeze=False)[:, 0]
  step = edges[1] - edges[0]
  for panel, (name, ml) in zip(panels, volumes.items(), strict=True):
    panel.stairs(ml, edges, fill=True, color='#8e8e93', alpha=0.55)
    panel.stairs(ml, edges, color=_DARK, linewidth=1)
    panel.set(ylabel=f'{name},\nml per {step:g} HU', ylim=(0, 1.06 * ml.max() or 1))
    panel.spines[['top', 'right']].set_visible(False)
    _shade(panel, densities['bands'], edges, named=panel is panels[0])
  panels[-1].set(xlabel='density, HU', xlim=(edges[0], edges[-1]))
  stream = io.BytesIO()
  figure.savefig(stream, format='png', dpi=150)
  return stream.getvalue()


def _shade(
  panel: Axes,
  bands: Mapping[str, Mapping[str, float | None]],
  edges: np.ndarray,
  *,
  named: bool,
) -> None:
  """Colours the bands behind a histogram, with their names above it."""
  for name, band in bands.items():
    low = edges[0] if band['from_hu'] is None else band['from_hu']
    high = edges[-1] if band['below_hu'] is None else band['below_hu']
    panel.axvspan(low, high, color=BAND_COLOURS[name], alpha=0.16, linewidth=0)
    if named:
      panel.text(
        (low + high) / 2,
        1.03,
        # The band of low attenuation is narrower than its name.
        _worded(name).replace(' attenuation', ''),
        transform=panel.get_xaxis_transform(),
        ha='center',
        va='bottom',
        fontsize=9,
      )
