"""Who is in the phantom cohort: stages and scanners as quotas, not as luck."""

import dataclasses

import numpy as np

from covid3way.phantom.protocols import PROTOCOLS, Protocol

# The Harbin data set: 73, 19 and 8 % of the scans.
STAGE_MIX = (('early', 0.73), ('progressive', 0.19), ('severe', 0.08))


@dataclasses.dataclass(frozen=True)
class Member:
  """One patient to be made: pass `seed`, `stage` and `protocol` to `make_patient`."""

  patient_id: str
  seed: int
  stage: str
  protocol: Protocol


def draw_cohort(
  seed: int,
  patients: int,
  *,
  stage_mix=STAGE_MIX,
  protocols: tuple[Protocol, ...] = PROTOCOLS,
) -> tuple[Member, ...]:
  """Stage and scanner of every patient of a cohort.

  Args:
    seed: of the cohort.
    patients: how many.
    stage_mix: (stage, weight) pairs.
    protocols: the scanners; their Table I patient counts are the weights.
  """
  root = np.random.SeedSequence(seed)
  rng = np.random.default_rng(root.spawn(1)[0])
  stages = quotas(patients, [w for _, w in stage_mix])
  stages = rng.permutation(np.repeat(np.arange(len(stage_mix)), stages))
  scanners = quotas(patients, [p.patients for p in protocols])
  scanners = rng.permutation(np.repeat(np.arange(len(protocols)), scanners))
  seeds = root.generate_state(patients, np.uint64)
  return tuple(
    Member(f'phantom-{i + 1:04d}', int(s), stage_mix[stage][0], protocols[scanner])
    for i, (s, stage, scanner) in enumerate(zip(seeds, stages, scanners, strict=True))
  )


def quotas(total: int, weights) -> np.ndarray:
  """`total` shared out by weight with the largest-remainder rule, (n,) int."""
  exact = total * np.asarray(weights, float) / np.sum(weights)
  counts = np.floor(exact).astype(int)
  order = np.argsort(counts - exact, kind='stable')
  counts[order[: total - counts.sum()]] += 1
  return counts
