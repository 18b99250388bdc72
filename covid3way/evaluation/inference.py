"""How sure a mean over scans is, and whether two methods differ.

Scans of one patient are not independent, so patients are what is resampled and ranked.
NaN is a scan of which a metric says nothing; it is left out. Of fewer than two patients
no interval, p or effect is told: they are NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from covid3way.base import ConfigError


class Estimate(NamedTuple):
  """A mean over scans and its confidence interval."""

  mean: float
  low: float
  high: float


def bootstrap_mean(
  values: Sequence[float],
  patients: Sequence[str],
  *,
  seed: int,
  draws: int = 10000,
  level: float = 0.95,
) -> Estimate:
  """Mean over scans with a percentile bootstrap interval over patients.

  Patients are drawn with replacement, each with all its scans (Field and Welsh, J R
  Stat Soc B 2007). Of few patients (under ten, say) such an interval is too narrow. For
  a paired difference of two methods, give each scan's difference.

  Args:
    values: one per scan.
    patients: whose scan it is.
    seed: of the draws.
    draws: how many cohorts to draw.
    level: of confidence.
  """
  sums, counts = _by_patient(values, patients)
  n = len(counts)
  mean = float(sums.sum() / counts.sum()) if n else float('nan')
  if n < 2:
    return Estimate(mean, float('nan'), float('nan'))
  times_drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws)
  means = (times_drawn @ sums) / (times_drawn @ counts)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return Estimate(mean, float(low), float(high))


def signed_rank(
  differences: Sequence[float], patients: Sequence[str]
) -> tuple[float, float]:
  """Wilcoxon's signed-rank test of paired differences, a patient's mean being one.

  Args:
    differences: one per scan.
    patients: whose scan it is.

  Returns:
    Two-sided p, and the matched-pairs rank-biserial correlation (Kerby, Compr Psychol
    2014): from -1, no patient's difference is positive, to 1, every one is. Patients
    without a difference take no part; where none has one, p is 1 and the effect 0.
  """
  sums, counts = _by_patient(differences, patients)
  if len(counts) < 2:
    return float('nan'), float('nan')
  # Equal differences are ties, zeros are zero, whatever their last digit says.
  means = (sums / counts).round(12)
  means = means[means != 0]
  if not means.size:
    return 1.0, 0.0
  ranks = stats.rankdata(np.abs(means))
  effect = np.sum(ranks * np.sign(means)) / np.sum(ranks)
  return float(stats.wilcoxon(means).pvalue), float(effect)


def holm(p: Sequence[float]) -> np.ndarray:
  """Corrects p (n,) for n comparisons (Holm, Scand J Stat 1979); NaN is none."""
  p = np.asarray(p, float)
  order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
  steps = p[order] * np.arange(len(order), 0, -1)
  adjusted = np.full(p.shape, np.nan)
  adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return adjusted


def compare(
  values_by_method: Mapping[str, Mapping[str, float]],
  patients: Mapping[str, str],
  *,
  reference: str,
  seed: int,
) -> list[dict[str, Any]]:
  """The reference method against each other one, on the scans that both have.

  Args:
    values_by_method: a metric of each scan, by method and scan_id.
    patients: patient_id by scan_id.
    reference: the method to compare with.
    seed: of the bootstrap.

  Returns:
    A row per other method, in their order: `method`, `n_scans`, `n_patients`;
    `difference`, the mean over scans of reference minus method, with the interval from
    `low` to `high` of `bootstrap_mean`; `p` and `effect` of `signed_rank`, and
    `p_holm`, corrected for the number of rows.

  Raises:
    ConfigError: there is no such reference method.
  """
  if reference not in values_by_method:
    found = f'no values of this method, only of {", ".join(values_by_method)}'
    raise ConfigError(reference, found, 'compare with a method that was evaluated')
  own = values_by_method[reference]
  rows = []
  for method, values in values_by_method.items():
    if method == reference:
      continue
    paired = {scan: own[scan] - values[scan] for scan in own if scan in values}
    differences = [value for value in paired.values() if not np.isnan(value)]
    whose = [patients[scan] for scan, value in paired.items() if not np.isnan(value)]
    mean, low, high = bootstrap_mean(differences, whose, seed=seed)
    p, effect = signed_rank(differences, whose)
    row = {'method': method, 'n_scans': len(whose), 'n_patients': len(set(whose))}
    rows.append(row | dict(difference=mean, low=low, high=high, p=p, effect=effect))
  for row, p_holm in zip(rows, holm([row['p'] for row in rows]), strict=True):
    row['p_holm'] = float(p_holm)
  return rows


def _by_patient(
  values: Sequence[float], patients: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """(p,) each: the sum of a patient's values and how many; NaN is left out."""
  values = np.asarray(values, float)
  known = ~np.isnan(values)
  names, number = np.unique(np.asarray(patients, str)[known], return_inverse=True)
  sums = np.bincount(number, values[known], minlength=len(names))
  return sums, np.bincount(number, minlength=len(names))
