"""The scores of a cross-validation, by run: what tables and plots are made of."""

import collections
import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from covid3way.evaluation.results import Row
from covid3way.evaluation.tables import Cell
from covid3way.networks.registry import METHODS

OURS = 'three_way'
FAILURE_DICE = 0.2  # Below it, a method has failed on a scan.
STAGES = ('early', 'progressive', 'severe')


@dataclasses.dataclass(frozen=True)
class Scores:
  """The rows of `results.csv`, asked by run.

  Attributes:
    rows: of all evaluations.
    folds: the scans that each fold tests.
    evaluation: whose rows count.
    ratio_percent: of simulated scans, in tables that show one.
  """

  rows: Sequence[Row]
  folds: Sequence[Sequence[str]]
  evaluation: str = 'native'
  ratio_percent: float = 200.0

  @functools.cached_property
  def tested(self) -> dict[str, Row]:
    """One row of every scan that any fold tests; {} for one that no row tells of."""
    about = {row['scan_id']: row for row in self.rows}
    return {scan: about.get(scan, {}) for fold in self.folds for scan in fold}

  @functools.cached_property
  def methods(self) -> list[str]:
    """Whose runs there are, ours first."""
    return in_order(row['method'] for row in self.rows)

  @functools.cached_property
  def ratios(self) -> list[float]:
    """Augmentation ratios of the methods as they are, percent."""
    return sorted({r['ratio_percent'] for r in self.rows if not r['ablation']})

  @functools.cached_property
  def _by_run(self) -> dict[tuple[str, float, str], list[Row]]:
    runs = collections.defaultdict(list)
    for row in self.rows:
      if row['evaluation'] == self.evaluation and row['status'] == 'ok':
        runs[row['method'], row['ratio_percent'], row['ablation']].append(row)
    return runs

  def of(
    self, method: str, ratio_percent: float | None = None, ablation: str = ''
  ) -> list[Row]:
    """The scans of a run that have figures; none if it was not run."""
    ratio = self.ratio_percent if ratio_percent is None else ratio_percent
    return self._by_run.get((method, ratio, ablation), [])

  def remark(self, rows: Sequence[Row], tested: int | None = None) -> str:
    """'38 of 40 scans' if some are missing."""
    tested = len(self.tested) if tested is None else tested
    return f'{len(rows)} of {tested} scans' if 0 < len(rows) < tested else ''

  @functools.cached_property
  def most_frequent_scanner(self) -> str:
    """That of most tested scans, '' if none is known."""
    counts = collections.Counter(a.get('scanner', '') for a in self.tested.values())
    del counts['']
    return min(counts, key=lambda name: (-counts[name], name), default='')

  def representative(self, count: int) -> list[str]:
    """Scans of which the Dice is near the median of their stage.

    That of the three-way method, or else of the first one that has any.

    Args:
      count: how many, one of each stage in turn; fewer if there are no more.
    """
    scored = next((rows for m in self.methods if (rows := self.of(m))), [])
    waiting = []
    for stage in stage_order(row['stage'] for row in scored):
      rows = [row for row in scored if row['stage'] == stage]
      middle = statistics.median(row['dice'] for row in rows)
      rows.sort(key=lambda row: (abs(row['dice'] - middle), row['scan_id']))
      waiting.append([row['scan_id'] for row in rows])
    turns = itertools.zip_longest(*waiting)
    return [scan for turn in turns for scan in turn if scan is not None][:count]

  @property
  def said(self) -> str:
    """What a title says of the evaluation and of augmentation."""
    return f'{self.evaluation} evaluation, {self.ratio_percent:g} % augmentation'


def in_order(methods: Iterable[str]) -> list[str]:
  """Methods, each once: the paper's in its order, then others by name."""
  known = list(METHODS)
  return sorted(set(methods), key=lambda m: (m not in METHODS, *_place(m, known)))


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
  return (known.index(name) if name in known else len(known), name)


def label(method: str) -> str:
  """A method's name as shown."""
  return METHODS[method].title if method in METHODS else method


def stage_order(stages: Iterable[str]) -> list[str]:
  """Stages, each once: early to severe, then others by name, the unknown last."""
  return sorted(set(stages), key=lambda s: (not s, *_place(s, STAGES)))


def known(rows: Iterable[Row], field: str) -> list[float]:
  """A field's numbers, without those that are undefined."""
  return [row[field] for row in rows if not math.isnan(row[field])]


def mean_sd(rows: Sequence[Row], field: str) -> Cell:
  """Mean and standard deviation (n - 1) over scans; NaN where there are too few."""
  if not rows:
    return None
  values = known(rows, field)
  mean = statistics.fmean(values) if values else math.nan
  return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def mean(rows: Sequence[Row], field: str) -> Cell:
  """Mean over scans."""
  found = mean_sd(rows, field)
  return found and found[:1]


def shares(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
  """Infected percent of the lungs, (n,) reference and (n,) predicted."""
  fields = 'infected_percent_reference', 'infected_percent_predicted'
  return tuple(np.array([row[field] for row in rows], float) for field in fields)
