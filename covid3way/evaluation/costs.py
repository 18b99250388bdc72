"""What stages cost, against the size of the standard space."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

_COLOURS = ('#0072b2', '#e69f00', '#cc3311', '#009e73', '#cc79a7', '#56b4e9', '#8e8e93')
_MARKERS = 'o^sDvP'  # Fewer than colours: no two lines are alike.


def cost_by_size(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Warm seconds by voxels a side, a line per stage; slope 3 is cost per voxel.

  Args:
    path: of the PNG.
    rows: of a benchmark; those without `warm_s` are left out.
  """
  lines = collections.defaultdict(dict)
  for row in rows:
    side, _, variant = row['case'].partition('-')
    if 'warm_s' in row and side.isdecimal():
      name = row['stage']
      if name == 'simulate':
        name += f', {int(variant or 3)} % infected'
      lines[name][int(side)] = row['warm_s']
  figure = Figure(figsize=(7.5, 5), layout='constrained')
  panel = figure.subplots()
  sides = sorted({side for each in lines.values() for side in each})
  for number, (name, known) in enumerate(lines.items()):
    style = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    xs = sorted(known)
    panel.plot(xs, [known[x] for x in xs], color=style[0], marker=style[1], label=name)
  panel.set(xscale='log', yscale='log', ylabel='seconds, warm')
  panel.set_xlabel('voxels a side of the standard space')
  panel.xaxis.set_major_locator(FixedLocator(sides))
  panel.xaxis.set_minor_locator(NullLocator())
  panel.set_xticks(sides, [str(side) for side in sides])
  panel.grid(alpha=0.3)
  if lines:
    figure.legend(loc='outside right center', frameon=False)
  figure.savefig(path, dpi=110)
