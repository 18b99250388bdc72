"""Serial scans of one patient: their time line, their pairs, what is kept of a pair.

The rules are those of the paper, Section III-C, "Data augmentation through simulation".
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from covid3way.base import ScanWarning, SerialError, WarningKind
from covid3way.simulator.law import RECOVERY, TRANSITIONS_PER_DAY
from covid3way.simulator.state import State

# "we define 100 transitions as per 24 hours of time and assume that the first CT scan
# happens 3 days after" the invented start, which is t = 0.
FIRST_TRANSITION = 300
# "randomly selecting 10 % of the infection voxels" of the first scan.
INVENTED_SHARE = 0.1
# Of an infection mask, outside the lungs. Masks drawn within drawn lungs have none; the
# lungs we find may leave out a consolidation on the chest wall, never most of a mask.
MOST_OUTSIDE = 0.2


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two adjacent time points of a patient, Y(t_i-1) and Y(t_i), with one W between.

  Attributes:
    patient_id: whose.
    from_scan: the earlier scan; None is the invented start.
    to_scan: the later scan.
    start: t_i-1, on the patient's time line in transitions.
    transitions: t_i - t_i-1.
  """

  patient_id: str
  from_scan: str | None
  to_scan: str
  start: int
  transitions: int

  @property
  def subject(self) -> str:
    """Names patient and pair in errors."""
    return _subject(self.patient_id, self.from_scan, self.to_scan)


def _subject(patient_id: str, from_scan: str | None, to_scan: str) -> str:
  return f'patient {patient_id}, pair {from_scan or "invented start"} -> {to_scan}'


def adjacent_pairs(
  patient_id: str, scan_ids: Sequence[str], days: Sequence[float | None]
) -> tuple[Pair, ...]:
  """Pairs of a patient's scans: t_1 = 300, t_i = 300 + 100 (d_i - d_1), whole numbers.

  Args:
    patient_id: whose.
    scan_ids: at least one, the earliest first.
    days: of the scans; a single scan needs none.

  Returns:
    One pair per scan, each ending at it; the first begins at the invented start.

  Raises:
    SerialError: a day is missing, or does not follow the one before it.
  """
  pairs = [Pair(patient_id, None, scan_ids[0], 0, FIRST_TRANSITION)]
  remedy = 'give every scan of a patient its day, the earliest first'
  for number, scan_id in enumerate(scan_ids[1:], start=1):
    before, after = days[number - 1], days[number]
    subject = _subject(patient_id, scan_ids[number - 1], scan_id)
    if before is None or after is None:
      lacking = scan_ids[number - 1] if before is None else scan_id
      raise SerialError(subject, f'scan {lacking} has no day', remedy)
    start = pairs[-1].start + pairs[-1].transitions
    elapsed = round(TRANSITIONS_PER_DAY * (after - days[0]))
    transitions = FIRST_TRANSITION + elapsed - start
    if transitions < 1:
      order = 'out of order' if after < before else 'equal'
      raise SerialError(subject, f'days {before:g} and {after:g} are {order}', remedy)
    pairs.append(Pair(patient_id, scan_ids[number - 1], scan_id, start, transitions))
  return tuple(pairs)


def take_infection(
  infection: np.ndarray, lungs: np.ndarray, *, subject: str, scan_id: str, least: int
) -> tuple[np.ndarray, tuple[ScanWarning, ...]]:
  """The infected voxels that can be simulated: those within the lungs.

  Args:
    infection: (x, y, z) mask of a scan.
    lungs: (x, y, z) its lungs, above 0.
    subject: patient and pair for which it is taken, for the message.
    scan_id: the scan.
    least: infected voxels needed.

  Returns:
    (x, y, z) bool, and a warning when up to `MOST_OUTSIDE` of the mask was dropped.

  Raises:
    SerialError: the mask is empty, too small, or lies elsewhere than in the lungs.
  """
  mask, lungs = infection > 0, lungs > 0
  total = np.count_nonzero(mask)
  if not total:
    raise SerialError(
      subject,
      f'the infection mask of scan {scan_id} is empty',
      'correct it, or leave the scan out of the manifest',
    )
  outside = total - np.count_nonzero(mask & lungs)
  told = f'{outside} of {total} infected voxels of scan {scan_id} lie outside the lungs'
  if outside > MOST_OUTSIDE * total:
    raise SerialError(
      subject,
      told,
      f'up to {MOST_OUTSIDE:.0%} are dropped; correct the mask or give a lung_mask',
    )
  if total - outside < least:
    raise SerialError(
      subject,
      f'{total - outside} infected voxels in the lungs of scan {scan_id}',
      f'at least {least} are needed: leave the scan out, or use a finer config.space',
    )
  if not outside:
    return mask, ()
  warning = ScanWarning(WarningKind.INFECTION_OUTSIDE_LUNGS, f'{told}; dropped')
  return mask & lungs, (warning,)


def invented_start(key: jax.Array, signal: jax.Array, infection: np.ndarray) -> State:
  """Y(t_0 = 0), three days before the earliest scan.

  "S_t0 is gained by setting all infection voxels of the earliest scan S_t1 to -0.15 and
  M_t0 is gained by randomly selecting 10 % of the infection voxels of M_t1."

  Args:
    key: which voxels.
    signal: of the earliest scan, any shape.
    infection: its mask, bool, same shape; not empty.
  """
  infected = np.flatnonzero(infection)
  n = max(round(INVENTED_SHARE * len(infected)), 1)
  chosen = jax.random.choice(key, infected, (n,), replace=False)
  mask = np.zeros(infection.shape, bool)
  mask.flat[np.asarray(chosen)] = True
  return State(jnp.where(infection, jnp.float32(RECOVERY), signal), jnp.asarray(mask))


def kept_transitions(
  rng: np.random.Generator, ratio: float, steps: int = 200
) -> np.ndarray:
  """After which of `steps` transitions a simulated scan is kept.

  "We then randomly select 1 % of the simulated scans as the augmented data. Thus, the
  training samples are augmented by 200 %"; "50 % means that for each CT scan, we
  simulated one scan and gave it 50 % probability to be included" (Section IV-C).

  Args:
    rng: of the draw; with the same one a higher whole ratio keeps these and more.
    ratio: expected number of kept scans, from 0 to `steps`; 2 is the paper's 200 %.
    steps: transitions simulated.

  Returns:
    (n,) distinct, from 1 to `steps`, ascending.
  """
  order = 1 + rng.permutation(steps)
  n = int(ratio) + (rng.random() < ratio % 1)
  return np.sort(order[:n])
