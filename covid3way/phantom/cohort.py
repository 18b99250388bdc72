"""Who is in the phantom cohort: stages and scanners as quotas, not as luck."""

import dataclasses

import numpy as np

from covid3way.phantom.protocols import PROTOCOLS, Protocol

# The Harbin data set: 73, 19 and 8 % of the scans.
STAGE_MIX = (('early', 0.73), ('progressive', 0.19), ('severe', 0.08))

DAYS_BETWEEN = (1, 3)  # Two scans of a patient, whole days.


@dataclasses.dataclass(frozen=True)
class Member:
  """One patient to be made: all but the name goes to `make_patient`."""

  patient_id: str
  seed: int
  stage: str
  protocol: Protocol
  days: tuple[float, ...] = (0.0,)


def draw_cohort(
  seed: int,
  patients: int,
  *,
  stage_mix=STAGE_MIX,
  protocols: tuple[Protocol, ...] = PROTOCOLS,
  time_points: tuple[int, int] = (1, 5),
) -> tuple[Member, ...]:
  """Stage on the first day, scanner and days of the scans of every patient.

  Args:
    seed: of the cohort.
    patients: how many.
    stage_mix: (stage, weight) pairs.
    protocols: the scanners; their Table I patient counts are the weights.
    time_points: fewest and most scans of a patient, as even quotas; they lie
      `DAYS_BETWEEN` apart.
  """
  root = np.random.SeedSequence(seed)
  rng = np.random.default_rng(root.spawn(1)[0])
  stages = quotas(patients, [w for _, w in stage_mix])
  stages = rng.permutation(np.repeat(np.arange(len(stage_mix)), stages))
  scanners = quotas(patients, [p.patients for p in protocols])
  scanners = rng.permutation(np.repeat(np.arange(len(protocols)), scanners))
  seeds = root.generate_state(patients, np.uint64)
  low, high = time_points
  counts = low + rng.permutation(np.arange(patients) % (high - low + 1))
  return tuple(
    Member(
      f'phantom-{i + 1:04d}',
      int(seeds[i]),
      stage_mix[stages[i]][0],
      protocols[scanners[i]],
      _draw_days(rng, counts[i]),
    )
    for i in range(patients)
  )


def _draw_days(rng: np.random.Generator, count: int) -> tuple[float, ...]:
  low, high = DAYS_BETWEEN
  steps = rng.integers(low, high + 1, count - 1)
  return tuple(float(d) for d in np.concatenate([[0], np.cumsum(steps)]))


def quotas(total: int, weights) -> np.ndarray:
  """`total` shared out by weight with the largest-remainder rule, (n,) int."""
  exact = total * np.asarray(weights, float) / np.sum(weights)
  counts = np.floor(exact).astype(int)
  order = np.argsort(counts - exact, kind='stable')
  counts[order[: total - counts.sum()]] += 1
  return counts
