"""The figures of a results folder: which scans, read, and drawn."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from covid3way.evaluation import comparison, lesions, plots
from covid3way.evaluation.comparison import VIEW_COLOURS
from covid3way.evaluation.figures import look_at
from covid3way.evaluation.rendering import Surface, render
from covid3way.evaluation.results import PADDED, Row
from covid3way.evaluation.scores import OURS, Scores, label
from covid3way.jobs.results_folder import ResultsFolder, volume
from covid3way.scans.store import StoredScan
from covid3way.standard.space import StandardSpace

_MARGIN_MM = 8.0  # Around the lungs.
_INFECTION = '#ff5a36'
_ALL = 'all parts'


class NotMade(Exception):
  """A figure that these results cannot fill; says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
  """What figures are drawn from.

  Attributes:
    folder: the results folder.
    scores: of its runs.
    examples: scans to show.
    seed: of intervals.
  """

  folder: ResultsFolder
  scores: Scores
  examples: Sequence[str]
  seed: int


def progression(path: Path, sources: Sources) -> None:
  """Fig. 3: the patient whose infection changes most between two scans."""
  folder = sources.folder
  pairs = [
    (fits['patient_id'], pair)
    for fits in folder.fits()
    for pair in fits['pairs']
    if pair['from_scan'] in folder.patients and pair['to_scan'] in folder.patients
  ]
  if not pairs:
    raise NotMade('no patient has two scans and a fit of the law to them')
  patient, pair = max(pairs, key=lambda known: _change(known[1]))
  moments = []
  for name in ('from_scan', 'to_scan'):
    scan = folder.scan(pair[name])
    infection = volume(scan, 'infection') > 0
    picture = render(
      volume(scan, 'lungs'), [Surface(infection, _INFECTION)], spacing_mm(scan)
    )
    day = scan.attributes['day']
    title = pair[name] if day is None else f'day {day:g}'
    voxel_ml = float(np.prod(spacing_mm(scan))) / 1000
    signal = volume(scan, 'signal')
    moments.append(lesions.Moment(title, signal, infection, voxel_ml, picture))
  lesions.progression(path, patient, tuple(moments), pair)


def _change(pair) -> float:
  return abs(sum(pair['observed_to']) - sum(pair['observed_from']))


def methods(path: Path, sources: Sources) -> None:
  """Fig. 4."""
  scores = sources.scores
  runs = {label(method): scores.of(method) for method in scores.methods}
  rows = [_row(sources, scan, runs) for scan in sources.examples]
  columns = [name for name in runs if any(name in row.masks for row in rows)]
  if not columns:
    raise NotMade('no predictions were kept')
  comparison.methods(path, rows, columns)


def views(path: Path, sources: Sources) -> None:
  """Fig. 5."""
  ours = {row['scan_id']: row for row in sources.scores.of(OURS)}
  rows = []
  names = [f'probability_{view}' for view in VIEW_COLOURS]
  for scan_id in (scan for scan in sources.examples if scan in ours):
    found = sources.folder.prediction(ours[scan_id])
    if found is None or not set(names) <= set(found.volumes):
      continue
    plain = _row(sources, scan_id, {label(OURS): [ours[scan_id]]})
    scan = sources.folder.scan(scan_id)
    where = _where(scan)
    # Beyond the lungs nothing was learned, and nothing counts.
    inside = np.asarray(scan.volumes['lungs'][where].read().result()) > 0
    maps = {
      view: np.asarray(found.volumes[name][where].read().result()) / 255 * inside
      for view, name in zip(VIEW_COLOURS, names, strict=True)
    }
    picture = _outcomes_3d(scan, volume(found, 'infection'))
    rows.append(dataclasses.replace(plain, maps=maps, rendering=picture))
  if not rows:
    raise NotMade('no predictions with the maps of three views were kept')
  comparison.views(path, rows, label(OURS))


def _outcomes_3d(scan: StoredScan, predicted: np.ndarray) -> np.ndarray:
  """Lesions that are found, missed and false, as surfaces."""
  found = comparison.lesion_outcomes(volume(scan, 'infection') > 0, predicted > 0)
  surfaces = [Surface(mask, colour) for colour, mask in found.items()]
  return render(volume(scan, 'lungs'), surfaces, spacing_mm(scan), azimuth_degrees=0)


def ablations(path: Path, sources: Sources) -> None:
  """Fig. 6."""
  scores = sources.scores
  runs = {
    'no normalisation': scores.of(OURS, ablation=PADDED),
    'no augmentation': scores.of(OURS, 0.0) if scores.ratio_percent else [],
    _ALL: scores.of(OURS),
  }
  rows = [_row(sources, scan, runs) for scan in sources.examples]
  columns = [name for name in runs if any(name in row.masks for row in rows)]
  if len(columns) < 2 or _ALL not in columns:
    raise NotMade('no run without normalisation or augmentation kept its predictions')
  comparison.ablations(path, rows, columns)


def _row(sources: Sources, scan_id: str, runs: dict[str, list[Row]]) -> comparison.Row:
  """A scan's plane, and what each run found there, if it was kept."""
  scan = sources.folder.scan(scan_id)
  where, masks, scan_dice = _where(scan), {}, {}
  for name, rows in runs.items():
    mine = [row for row in rows if row['scan_id'] == scan_id]
    mask = sources.folder.predicted(mine[0], scan, where) if mine else None
    if mask is not None:
      masks[name] = mask
      scan_dice[name] = mine[0]['dice']
  stage = scan.attributes['stage']
  return comparison.Row(
    f'{stage}\n{scan_id}' if stage else scan_id,
    np.asarray(scan.volumes['signal'][where].read().result(), np.float32),
    np.asarray(scan.volumes['infection'][where].read().result()) > 0,
    spacing_mm(scan)[:2],
    masks,
    scan_dice,
  )


def _where(scan: StoredScan) -> tuple[slice, slice, int]:
  """The axial plane through the largest lesion, cut to the lungs and a margin."""
  lungs, reference = volume(scan, 'lungs') > 0, volume(scan, 'infection') > 0
  box = ndimage.find_objects(lungs.astype(np.int8))[0]
  cut = []
  for part, spacing, n in zip(box[:2], spacing_mm(scan), scan.shape, strict=False):
    margin = round(_MARGIN_MM / spacing)
    cut.append(slice(max(part.start - margin, 0), min(part.stop + margin, n)))
  return *cut, look_at(reference if reference.any() else lungs)[2]


def spacing_mm(scan: StoredScan) -> tuple[float, float, float]:
  """Of a scan's standard space."""
  return StandardSpace(scan.shape).spacing_mm


_DICE = (
  'Dice of the scan ({evaluation} evaluation) is top left, that of the slice shown '
)
_DICE += '(standard space) top right.'
_PLANE = 'The axial plane through the largest lesion, cut to the lungs; signals of '
_PLANE += "-0.5 to 0.5; the patient's right is on the left. "
_CHOICE = 'Scans near the median Dice of their stage. '


@dataclasses.dataclass(frozen=True)
class Kind:
  """A figure: its file, number, title, what is seen, and what draws it."""

  name: str
  number: str
  title: str
  caption: str
  draw: Callable[[Path, Sources], None]


KINDS = (
  Kind(
    'figure_3',
    '3',
    'Lesions of a patient at two times',
    'Left: lungs (glass) and infection, seen from the front. Middle: signals of the '
    'largest lesions of either scan. Right: both overlaid, and all infected voxels '
    "with the fitted law's prediction from the first scan. The patient whose infected "
    'volume changes most. Lines are smoothed by 0.01.',
    progression,
  ),
  Kind(
    'figure_4',
    '4',
    'Methods side by side',
    _CHOICE + _PLANE + _DICE,
    methods,
  ),
  Kind(
    'figure_5',
    '5',
    'The three views and the final mask',
    _CHOICE
    + _PLANE
    + _DICE
    + " The views' probabilities are those within the lungs. In 3D whole lesions: "
    'predicted ones that meet the reference green, missed ones red, false ones blue; '
    'lungs as glass.',
    views,
  ),
  Kind(
    'figure_6',
    '6',
    'The method without its parts',
    _CHOICE + _PLANE + _DICE + ' Green: found, red: missed, blue: false.',
    ablations,
  ),
  Kind(
    'dice_by_method',
    '',
    'Dice by method',
    'One dot per scan ({evaluation} evaluation); means with 95 % intervals, '
    'bootstrapped over patients.',
    lambda path, sources: plots.dice_by_method(path, sources.scores, seed=sources.seed),
  ),
  Kind(
    'dice_by_volume',
    '',
    'Dice by infected volume',
    'One dot per scan ({evaluation} evaluation).',
    lambda path, sources: plots.dice_by_volume(path, sources.scores),
  ),
  Kind(
    'bland_altman',
    '',
    'Agreement of the infected share (Bland and Altman)',
    'One dot per scan ({evaluation} evaluation); points are percentage points of the '
    'lung volume.',
    lambda path, sources: plots.bland_altman(path, sources.scores),
  ),
)
