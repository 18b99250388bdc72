"""What fit and augment share: a cohort's serial scans, read one by one."""

import dataclasses
import hashlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from covid3way import progress
from covid3way.base import InputError, ScanWarning, SerialError
from covid3way.scans.manifest import ManifestRow
from covid3way.scans.store import StoredScan
from covid3way.simulator.fit import LEAST_VOXELS
from covid3way.simulator.prior import Location, location_prior
from covid3way.simulator.serial import Pair, adjacent_pairs, take_infection
from covid3way.simulator.state import Anatomy
from covid3way.simulator.susceptible import find_susceptible
from covid3way.standard.space import StandardSpace


@dataclasses.dataclass(frozen=True)
class Series:
  """The scans of one patient that have an infection mask, in the manifest's order."""

  patient_id: str
  rows: tuple[ManifestRow, ...]

  def pairs(self) -> tuple[Pair, ...]:
    """Their pairs; see `adjacent_pairs` for what it raises."""
    ids, days = [r.scan_id for r in self.rows], [r.day for r in self.rows]
    return adjacent_pairs(self.patient_id, ids, days)

  def row(self, scan_id: str) -> ManifestRow:
    """The row of one of its scans."""
    return next(r for r in self.rows if r.scan_id == scan_id)


def by_patient(rows: Sequence[ManifestRow]) -> dict[str, Series]:
  """Serial scans by patient; simulated ones and those without a mask are left out.

  Raises:
    InputError: no scan has an infection mask.
  """
  grouped = {row.patient_id: [] for row in rows}
  for row in rows:
    if row.infection_mask and not row.is_simulated:
      grouped[row.patient_id].append(row)
  if not any(grouped.values()):
    found = 'no scan has an infection mask'
    raise InputError('config.input', found, 'give infection_mask in a manifest')
  for patient_id, known in grouped.items():
    if not known:
      progress.say(f'patient {patient_id}: no infection mask, left out')
  return {p: Series(p, tuple(known)) for p, known in grouped.items() if known}


@dataclasses.dataclass(frozen=True, eq=False)
class SerialScan:
  """One scan of a series in the standard space.

  Attributes:
    stored: its group.
    signal: (x, y, z) float32, window units.
    lungs: (x, y, z) uint8.
    infection: (x, y, z) bool, within the lungs.
    warnings: what was dropped of the mask.
  """

  stored: StoredScan
  signal: np.ndarray
  lungs: np.ndarray
  infection: np.ndarray
  warnings: tuple[ScanWarning, ...]


def read(stored: StoredScan, pair: Pair) -> SerialScan:
  """Reads a scan of a pair from the store.

  Raises:
    InputError: it was cast without its infection mask.
    SerialError: see `take_infection`.
  """
  if 'infection' not in stored.volumes:
    raise InputError(
      stored.scan_id,
      'it was cast without an infection mask, and now has one',
      f'remove {stored.scan_id}.zarr from the store and run fit again',
    )
  volumes = {n: v.read() for n, v in stored.volumes.items()}
  lungs = volumes['lungs'].result()
  try:
    infection, warnings = take_infection(
      volumes['infection'].result(),
      lungs,
      subject=pair.subject,
      scan_id=stored.scan_id,
      least=LEAST_VOXELS,
    )
  except SerialError as error:
    again = f'{error.remedy}; remove {stored.scan_id}.zarr from the store if you do'
    raise SerialError(error.subject, error.found, again) from error
  signal = volumes['signal'].result().astype(np.float32)
  return SerialScan(stored, signal, lungs, infection, warnings)


def anatomy(scan: SerialScan, location: Location) -> Anatomy:
  """Where the infection of a scan may spread; see `anatomy_of`."""
  given = None
  if 'susceptible' in scan.stored.volumes:
    given = scan.stored.volumes['susceptible'].read().result() > 0
  return anatomy_of(scan.signal, scan.lungs, scan.infection, given, location)


def anatomy_of(
  signal: np.ndarray,
  lungs: np.ndarray,
  infection: np.ndarray,
  given: np.ndarray | None,
  location: Location,
) -> Anatomy:
  """Where infection may spread in standard space, and where it rather does.

  Args:
    signal: (x, y, z), window units.
    lungs: (x, y, z), 0 outside the lungs.
    infection: (x, y, z) bool.
    given: (x, y, z) bool, the susceptible mask; None: it is computed.
    location: of births.
  """
  spacing_mm = StandardSpace(signal.shape).spacing_mm
  if given is None:
    susceptible = find_susceptible(signal, lungs, infection, spacing_mm)
  else:
    # What is infected was susceptible; nothing outside the lungs is.
    susceptible = (given & (lungs > 0)) | infection
  prior = location_prior(lungs, spacing_mm, location)
  return Anatomy(
    jnp.asarray(susceptible), spacing_mm, None if prior is None else jnp.asarray(prior)
  )


def seed_of(*names: object) -> int:
  """32 bits that depend on these names alone, in whatever order work is done."""
  told = '\n'.join(str(name) for name in names)
  return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], 'big')
