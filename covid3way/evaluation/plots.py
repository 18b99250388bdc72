"""Plots of a cross-validation's scores: agreement, Dice by volume, Dice by method."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from covid3way.evaluation.agreement import agreement
from covid3way.evaluation.inference import bootstrap_mean
from covid3way.evaluation.results import Row
from covid3way.evaluation.scores import FAILURE_DICE, Scores, label, shares, stage_order

# Colours that all kinds of colour vision tell apart (Okabe and Ito), and shapes.
_STYLES = (
  ('#0072b2', 'o'),
  ('#e69f00', '^'),
  ('#cc3311', 's'),
  ('#009e73', 'D'),
  ('#cc79a7', 'v'),
  ('#56b4e9', 'P'),
)
_GREY, _DARK = '#8e8e93', '#1d1d1f'
_DPI = 110


def bland_altman(path: Path, scores: Scores) -> None:
  """Infected share of the lungs: difference to the reference by their mean.

  Args:
    path: of the PNG.
    scores: of all runs.
  """
  figure, panels, stages = _by_method(scores)
  reach = [1e-6]
  for panel, _, rows in panels:
    reference, predicted = shares(rows)
    found = agreement(reference, predicted)
    for value, style in ((found.bias, '-'), (found.low, '--'), (found.high, '--')):
      if not math.isnan(value):
        panel.axhline(value, color=_DARK, linestyle=style, linewidth=1)
        reach.append(abs(value))
    panel.axhline(0, color=_GREY, linewidth=0.6, zorder=0)
    _scatter(panel, rows, stages, (reference + predicted) / 2, predicted - reference)
    reach += list(np.abs(predicted - reference)[~np.isnan(predicted - reference)])
    told = f'bias {_signed(found.bias)}, limits {_signed(found.low)} to '
    panel.set_title(f'{panel.get_title()}\n{told}{_signed(found.high)}', fontsize=10)
  for panel, _, _ in panels:
    panel.set_ylim(-1.1 * max(reach), 1.1 * max(reach))
  figure.supxlabel('mean of predicted and reference infected share, % of the lungs')
  figure.supylabel('predicted minus reference, percentage points', fontsize=10)
  lines = [
    Line2D([], [], color=_DARK, label='bias'),
    Line2D([], [], color=_DARK, linestyle='--', label='95 % limits of agreement'),
  ]
  _finish(figure, path, stages, lines)


def dice_by_volume(path: Path, scores: Scores) -> None:
  """Dice of each scan by its infected volume.

  Args:
    path: of the PNG.
    scores: of all runs.
  """
  figure, panels, stages = _by_method(scores)
  for panel, _, rows in panels:
    volumes = np.array([row['infection_ml_reference'] for row in rows], float)
    # A logarithmic axis has no place for a scan without infection.
    shown = np.where(volumes > 0, volumes, np.nan)
    _scatter(panel, rows, stages, shown, np.array([row['dice'] for row in rows]))
    panel.axhline(FAILURE_DICE, color=_GREY, linestyle='--', linewidth=1)
    panel.set(xscale='log', ylim=(-0.03, 1.03))
    if np.any(volumes == 0):
      told = f'{np.sum(volumes == 0)} scans of 0 ml not shown'
      panel.set_title(f'{panel.get_title()}\n{told}', fontsize=10)
    known = shown[~np.isnan(shown)]
    wide = known.size and known.max() / known.min() > 200
    panel.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda ml, _: f'{ml:g}'))
    panel.xaxis.set_minor_formatter(NullFormatter())
  figure.supxlabel('infected volume of the reference, ml')
  figure.supylabel('Dice')
  failure = Line2D(
    [], [], color=_GREY, linestyle='--', label=f'failure: Dice < {FAILURE_DICE:g}'
  )
  _finish(figure, path, stages, [failure])


def dice_by_method(path: Path, scores: Scores, *, seed: int) -> None:
  """Dice of every scan, and its mean with a 95 % interval, by method.

  Args:
    path: of the PNG.
    scores: of all runs.
    seed: of the bootstrap over patients, and of the dots' places.
  """
  methods = [method for method in scores.methods if scores.of(method)]
  names = [_named(scores, method, '\n') for method in methods]
  stages = _stages(scores)
  figure = Figure(figsize=(9, 1.5 + 0.75 * len(methods)), layout='constrained')
  panel = figure.subplots()
  rng = np.random.default_rng(seed)
  for place, method in enumerate(methods):
    rows = scores.of(method)
    values = np.array([row['dice'] for row in rows])
    heights = place + rng.uniform(-0.26, 0.08, len(rows))
    _scatter(panel, rows, stages, values, heights)
    found = bootstrap_mean(values, [row['patient_id'] for row in rows], seed=seed)
    where = place + 0.27
    panel.plot([found.low, found.high], [where, where], color=_DARK, linewidth=2.5)
    panel.plot(found.mean, where, 'o', color=_DARK, markersize=6, gid=f'mean {method}')
    panel.text(
      1.02,
      where,
      f'mean {found.mean:.3f}',
      va='center',
      fontsize=10,
      transform=panel.get_yaxis_transform(),
    )
  panel.axvline(FAILURE_DICE, color=_GREY, linestyle='--', linewidth=1)
  panel.set_yticks(range(len(methods)), names)
  panel.set(xlim=(-0.02, 1.02), ylim=(len(methods) - 0.5, -0.5), xlabel='Dice')
  panel.grid(axis='x', alpha=0.3)
  panel.spines[['top', 'right']].set_visible(False)
  lines = [
    Line2D([], [], color=_DARK, marker='o', label='mean, 95 % interval over patients'),
    Line2D([], [], color=_GREY, linestyle='--', label=f'failure: < {FAILURE_DICE:g}'),
  ]
  _finish(figure, path, stages, lines)


def _stages(scores: Scores) -> dict[str, tuple[str, str]]:
  """Colour and shape per stage."""
  order = stage_order(about.get('stage', '') for about in scores.tested.values())
  return {stage: _STYLES[i % len(_STYLES)] for i, stage in enumerate(order)}


def _by_method(
  scores: Scores,
) -> tuple[Figure, list[tuple[Axes, str, list[Row]]], dict[str, tuple[str, str]]]:
  """A figure with a panel per method that has scores, all on the same axes."""
  methods = [method for method in scores.methods if scores.of(method)]
  columns = min(len(methods), 3)
  lines = -(-len(methods) // columns)
  figure = Figure(figsize=(3.3 * columns + 1, 2.9 * lines + 1), layout='constrained')
  panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
  for panel in panels.flat[len(methods) :]:
    panel.set_visible(False)
  result = []
  for panel, method in zip(panels.flat, methods, strict=False):
    rows = scores.of(method)
    panel.set_title(_named(scores, method, ' '), fontsize=11)
    panel.grid(alpha=0.25)
    panel.tick_params(labelbottom=True)
    result.append((panel, method, rows))
  return figure, result, _stages(scores)


def _named(scores: Scores, method: str, space: str) -> str:
  """A method's name, and what its scores lack."""
  remark = scores.remark(scores.of(method))
  return f'{label(method)}{space}({remark})' if remark else label(method)


def _scatter(
  panel: Axes,
  rows: Sequence[Row],
  stages: Mapping[str, tuple[str, str]],
  x: np.ndarray,
  y: np.ndarray,
) -> None:
  for stage, chosen in _of_stages(rows, stages):
    colour, marker = stages[stage]
    style = {'s': 26, 'alpha': 0.75, 'linewidths': 0.4, 'edgecolors': 'white'}
    panel.scatter(x[chosen], y[chosen], color=colour, marker=marker, **style)


def _of_stages(
  rows: Sequence[Row], stages: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[str, np.ndarray]]:
  for stage in stages:
    yield stage, np.array([row['stage'] == stage for row in rows], bool)


def _signed(value: float) -> str:
  return 'n/a' if math.isnan(value) else f'{value:+.2f}'.replace('-', '\N{MINUS SIGN}')


def _finish(
  figure: Figure,
  path: Path,
  stages: Mapping[str, tuple[str, str]],
  lines: Sequence[Line2D],
) -> None:
  """Explains colours and lines above, and writes the picture."""
  dots = [
    Line2D([], [], color=c, marker=m, linestyle='', label=stage or 'stage unknown')
    for stage, (c, m) in stages.items()
  ]
  handles = [*dots, *lines]
  columns = min(len(handles), max(2, round(figure.get_figwidth() / 1.8)))
  figure.legend(
    handles=handles, loc='outside upper center', ncols=columns, frameon=False
  )
  figure.savefig(path, dpi=_DPI)
