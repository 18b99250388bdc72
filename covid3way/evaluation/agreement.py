"""Agreement of infected shares over scans (paper, Section III-E, Eqs. (9) and (10)).

A share is the infected part of the lungs in percent, one per scan. Scans where either
share is NaN are left out. What cannot be said of the scans that remain is NaN: all of
none, correlation, limits and ICC of one, correlation and ICC where nothing varies.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How predicted shares agree with the reference; percent points but where said.

  Attributes:
    scans: how many both shares are known of.
    rmse: root mean squared error, Eq. (10).
    pearson: correlation, Eq. (9), in [-1, 1].
    worst: the greatest absolute error; the paper's worst root of a squared error.
    bias: mean of prediction minus reference (Bland and Altman, Lancet 1986).
    low: lower limit of agreement, which 95 % of differences are expected above ...
    high: ... and upper, below: bias -+ 1.96 standard deviations of the differences.
    icc: intraclass correlation of single measurements, two-way random effects,
      absolute agreement: ICC(2,1) of Shrout and Fleiss, Psychol Bull 1979.
  """

  scans: int
  rmse: float
  pearson: float
  worst: float
  bias: float
  low: float
  high: float
  icc: float


def agreement(reference: np.ndarray, predicted: np.ndarray) -> Agreement:
  """Agreement of shares (n,), one per scan, in the same order."""
  reference, predicted = np.asarray(reference, float), np.asarray(predicted, float)
  known = ~np.isnan(reference) & ~np.isnan(predicted)
  reference, predicted = reference[known], predicted[known]
  difference = predicted - reference
  nan, n = float('nan'), difference.size
  bias = float(difference.mean()) if n else nan
  reach = 1.96 * float(difference.std(ddof=1)) if n > 1 else nan
  return Agreement(
    scans=n,
    rmse=float(np.sqrt(np.mean(difference**2))) if n else nan,
    pearson=pearson(reference, predicted),
    worst=float(np.abs(difference).max()) if n else nan,
    bias=bias,
    low=bias - reach,
    high=bias + reach,
    icc=icc(reference, predicted),
  )


def pearson(reference: np.ndarray, predicted: np.ndarray) -> float:
  """Correlation of two (n,), Eq. (9), in [-1, 1]; NaN where one does not vary."""
  if not all(np.ptp(shares) if len(shares) else 0 for shares in (reference, predicted)):
    return float('nan')
  return float(np.corrcoef(reference, predicted)[0, 1])


def icc(*raters: np.ndarray) -> float:
  """ICC(2,1) of two or more raters (n,); NaN of less than two scans or no variance."""
  ratings = np.stack(raters, axis=1)
  n, k = ratings.shape
  if n < 2 or not np.ptp(ratings):
    return float('nan')
  by_scan = ratings.mean(axis=1, keepdims=True) - ratings.mean()
  by_rater = ratings.mean(axis=0, keepdims=True) - ratings.mean()
  residual = ratings - ratings.mean() - by_scan - by_rater
  scans = k * np.sum(by_scan**2) / (n - 1)
  rater = n * np.sum(by_rater**2) / (k - 1)
  error = np.sum(residual**2) / ((n - 1) * (k - 1))
  return float((scans - error) / (scans + (k - 1) * error + k * (rater - error) / n))
