"""Which scans train and which validate: by patient, with no way around it."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from covid3way.base import ConfigError, InputError, LeakError
from covid3way.scans.store import StoredScan


def split(
  scans: Sequence[StoredScan],
  *,
  validation_share: float,
  fold: tuple[int, int] | None = None,
  simulated: bool,
  seed: int,
) -> tuple[list[StoredScan], list[StoredScan]]:
  """Training and validation scans: no patient, real or simulated, is on both sides.

  Only real scans validate. Simulated scans of patients that validate are used nowhere,
  and simulated scans do not change which patients these are.

  Args:
    scans: of a store.
    validation_share: of the patients, unless folds are given.
    fold: which of how many folds validates, (0, 5) the first of five: every patient
      does so in one of them.
    simulated: whether simulated scans are trained on.
    seed: of the draw.

  Raises:
    LeakError: a group is not what its attributes say, so its patient is in doubt.
    ConfigError: no patient is left to train on, or a fold is empty.
  """
  check_origin(scans)
  real = [s for s in scans if 'simulated' not in s.attributes]
  patients = sorted({s.attributes['patient_id'] for s in real})
  order = np.random.default_rng(seed).permutation(len(patients))
  if fold and not 2 <= fold[1] <= len(patients):
    raise ConfigError(
      'config.training.fold',
      f'{fold[1]} folds of {len(patients)} patients',
      'use 2 folds or more, and at most as many as patients',
    )
  n = round(validation_share * len(patients))
  held_out = {patients[i] for i in (order[fold[0] :: fold[1]] if fold else order[:n])}
  if len(held_out) == len(patients):
    raise ConfigError(
      'config.training.validation_share',
      f'{len(held_out)} of {len(patients)} patients validate: none is left to train',
      'lower it or add patients',
    )
  usable = scans if simulated else real
  training = [s for s in usable if s.attributes['patient_id'] not in held_out]
  validation = [s for s in real if s.attributes['patient_id'] in held_out]
  check_apart({'training': training, 'validation': validation})
  return training, validation


def named_split(
  scans: Sequence[StoredScan], names: Mapping[str, Sequence[str]]
) -> dict[str, list[StoredScan]]:
  """The scans of each side of a split that somebody else made.

  Args:
    scans: of a store.
    names: scan ids per side: `training`, `validation` and `test`.

  Raises:
    LeakError: a patient, a series or the same voxels are on two sides; a simulated scan
      validates or tests.
    InputError: a scan is not in the store.
  """
  check_origin(scans)
  known, sides = {scan.scan_id: scan for scan in scans}, {}
  for side, ids in names.items():
    for scan_id in ids:
      if scan_id not in known:
        found = f'the {side} side of the split names it, the store does not hold it'
        raise InputError(scan_id, found, 'preprocess it, or make the split anew')
    sides[side] = [known[scan_id] for scan_id in ids]
    simulated = [s.scan_id for s in sides[side] if 'simulated' in s.attributes]
    if simulated and side != 'training':
      found = f'a simulated scan on the {side} side of a split'
      raise LeakError(simulated[0], found, 'simulated scans are for training alone')
  check_apart(sides)
  return sides


def identities(scans: Sequence[StoredScan]) -> dict[str, list[str]]:
  """By what scans can be known again: patients, hashes of series and of voxels."""
  found = {'patients': set(), 'series': set(), 'voxels': set()}
  for scan in scans:
    known = scan.attributes
    found['patients'].add(known['patient_id'])
    found['series'].add(known.get('provenance', {}).get('series_sha256'))
    found['voxels'].add(known.get('voxels_sha256'))
  return {kind: sorted(values - {None}) for kind, values in found.items()}


def check_apart(sides: Mapping[str, Sequence[StoredScan]]) -> None:
  """Refuses a split of which two sides have something in common.

  Raises:
    LeakError: a patient, a series or the same voxels.
  """
  each = {side: identities(scans) for side, scans in sides.items()}
  for (one, seen), (other, held_out) in itertools.combinations(each.items(), 2):
    check_unseen(seen, held_out, f'{one} and {other}')


def check_unseen(
  seen: Mapping[str, Sequence[str]], held_out: Mapping[str, Sequence[str]], what: str
) -> None:
  """Refuses what was seen before.

  Args:
    seen: `identities` of some scans.
    held_out: of others.
    what: both are, for the error.

  Raises:
    LeakError: they have a patient, a series or voxels in common.
  """
  for kind, values in held_out.items():
    common = sorted(set(values) & set(seen.get(kind, ())))
    if common:
      raise LeakError(
        what,
        f'the same {kind} on both sides: {", ".join(common[:3])}',
        'put all scans of a patient on one side, and every scan into a cohort once',
      )


def check_origin(scans: Sequence[StoredScan]) -> None:
  """Every group is the scan it says, every simulated one of its parent's patient.

  Raises:
    LeakError: a group was renamed, copied in from another store, or altered.
  """
  real = {s.scan_id: s for s in scans if 'simulated' not in s.attributes}
  for scan in scans:
    known = scan.attributes
    if known.get('scan_id') != scan.scan_id:
      raise LeakError(
        scan.scan_id,
        f'its attributes are those of scan {known.get("scan_id")!r}',
        'a group cannot be renamed: remove it and preprocess again',
      )
    if not known.get('patient_id'):
      remedy = 'remove it and preprocess again'
      raise LeakError(scan.scan_id, 'it belongs to no patient', remedy)
    if scan.scan_id not in real:
      _check_parent(scan, real)


def _check_parent(scan: StoredScan, real: dict[str, StoredScan]) -> None:
  parent_id = dict(scan.attributes['simulated'] or {}).get('parent_scan')
  if parent_id not in real:
    raise LeakError(
      scan.scan_id,
      f'simulated from {parent_id!r}, which is no real scan of this store',
      'keep simulated scans in the store of their parents, or remove them',
    )
  patient, own = real[parent_id].attributes['patient_id'], scan.attributes['patient_id']
  if own != patient:
    raise LeakError(
      scan.scan_id,
      f'it says patient {own}, but was simulated from {parent_id} of patient {patient}',
      'remove it and run augment again',
    )
