"""Who is tested in which fold, and which simulated scans a fold trains on."""

from collections.abc import Mapping, Sequence

import numpy as np

from covid3way.base import ConfigError
from covid3way.scans.manifest import ManifestRow

BY = ('patient', 'site', 'scanner')

Fold = dict[str, list[str]]


def make_folds(
  rows: Sequence[ManifestRow], *, by: str, n: int, seed: int
) -> list[Fold]:
  """Folds of scans, as nnU-Net has them: `val` is what a fold tests.

  Args:
    rows: of real scans with an infection mask.
    by: `patient`: n folds of patients, drawn at random, all scans of a patient in one;
      `site` or `scanner`: one fold for each that there is. A patient who was scanned at
      several sites trains in no fold that tests a scan of theirs.
    n: folds of patients.
    seed: of the draw.

  Returns:
    Per fold the scan ids of `train` and `val`; every scan is tested once.

  Raises:
    ConfigError: too few patients, sites or scanners, an unknown `by`, or a fold in
      which every patient is tested.
  """
  if by not in BY:
    raise ConfigError('config.crossval.by', repr(by), f'use one of {", ".join(BY)}')
  groups = _of_patients(rows, n, seed) if by == 'patient' else _of_field(rows, by)
  if len(groups) < 2:
    found = f'{len(groups)} fold by {by}, of {len(rows)} scans'
    raise ConfigError('config.crossval.by', found, 'two or more are needed')
  folds = [_fold(rows, tested) for tested in groups]
  for k, fold in enumerate(folds):
    if not fold['train']:
      found = f'fold {k} has nobody to train: all patients are tested there, too'
      raise ConfigError('config.crossval.by', found, "use by='patient'")
  return folds


def _of_patients(rows: Sequence[ManifestRow], n: int, seed: int) -> list[set[str]]:
  patients = sorted({row.patient_id for row in rows})
  if not 2 <= n <= len(patients):
    found = f'{n} of {len(patients)} patients'
    raise ConfigError('config.crossval.folds', found, 'use 2 to as many as patients')
  order = np.random.default_rng(seed).permutation(len(patients))
  fold_of = {patients[p]: i % n for i, p in enumerate(order)}
  return [{r.scan_id for r in rows if fold_of[r.patient_id] == k} for k in range(n)]


def _of_field(rows: Sequence[ManifestRow], field: str) -> list[set[str]]:
  values = {row.scan_id: getattr(row, field) for row in rows}
  unknown = [scan for scan, value in values.items() if not value]
  if unknown:
    raise ConfigError(
      'config.crossval.by',
      f'{field!r}, but the manifest does not give that of {", ".join(unknown[:3])}',
      f"fill in the column {field}, or use by='patient'",
    )
  return [
    {scan for scan, value in values.items() if value == one}
    for one in sorted(set(values.values()))
  ]


def _fold(rows: Sequence[ManifestRow], tested: set[str]) -> Fold:
  patients = {row.patient_id for row in rows if row.scan_id in tested}
  return {
    'train': [row.scan_id for row in rows if row.patient_id not in patients],
    'val': [row.scan_id for row in rows if row.scan_id in tested],
  }


def hold_out(
  scans: Sequence[str], patients: Mapping[str, str], *, share: float, seed: int
) -> tuple[list[str], list[str]]:
  """Parts the training side of a fold by patient: who trains, and who validates.

  Args:
    scans: ids.
    patients: scan -> patient.
    share: of the patients that validate, at least one.
    seed: of the draw.

  Raises:
    ConfigError: nobody is left to train.
  """
  known = sorted({patients[scan] for scan in scans})
  n = max(1, round(share * len(known)))
  if n >= len(known):
    found = f'{share} of {len(known)} patients validate'
    raise ConfigError('config.training.validation_share', found, 'lower it')
  order = np.random.default_rng(seed).permutation(len(known))
  chosen = {known[i] for i in order[:n]}
  training = [scan for scan in scans if patients[scan] not in chosen]
  return training, [scan for scan in scans if patients[scan] in chosen]


def choose_simulated(
  simulated: Mapping[str, Sequence[str]], ratio: float, *, seed: int
) -> list[str]:
  """Simulated scans for a ratio: 2 is two per real scan, 0.5 one with probability 1/2.

  Paper, Section IV-C. A smaller ratio takes a part of what a larger one takes. Real
  scans from which none was simulated, as no law could be fitted, go without.

  Args:
    simulated: real scan -> the simulated ones that stand for it.
    ratio: wanted per real scan.
    seed: of the draws.

  Raises:
    ConfigError: fewer were simulated, or none of any.
  """
  if ratio and not any(simulated.values()):
    found, remedy = f'{ratio:g}, but nothing was simulated', 'run fit and augment first'
    raise ConfigError('config.crossval.ratios', found, remedy)
  chosen = []
  for number, (scan, made) in enumerate(sorted(simulated.items())):
    rng = np.random.default_rng((seed, number))
    order, more = rng.permutation(len(made)), rng.random() < ratio % 1
    wanted = int(ratio) + more
    if made and wanted > len(made):
      found = f'{ratio:g} simulated scans per scan, but {scan} has {len(made)}'
      remedy = 'raise config.augmentation.ratio and run augment again'
      raise ConfigError('config.crossval.ratios', found, remedy)
    chosen += [made[i] for i in sorted(order[:wanted])]
  return chosen
