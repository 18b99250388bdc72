"""nnU-Net's `splits_final.json` and `summary.json`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covid3way.base import DamagedFileError, InputError, LeakError
from covid3way.scans import nifti
from covid3way.scans.files import whole, write_json

Fold = Mapping[str, Sequence[str]]  # 'train' and 'val': names of cases.
SIDES = ('train', 'val')


def write_splits(
  path: Path, folds: Sequence[Fold], patients: Mapping[str, str] | None = None
) -> None:
  """Writes folds as nnU-Net reads them; the inverse of `read_splits`.

  Args:
    path: `splits_final.json`.
    folds: the names of the cases that train and validate in each.
    patients: case to patient of all cases there are.

  Raises:
    InputError, LeakError: as `read_splits`.
    StorageError: the disk refused.
  """
  check_splits(path.name, folds, patients)
  plain = [{side: list(fold[side]) for side in SIDES} for fold in folds]
  with whole(path) as aside:
    aside.write_text(json.dumps(plain, indent=2) + '\n')


def read_splits(
  path: Path, patients: Mapping[str, str] | None = None
) -> list[dict[str, list[str]]]:
  """Folds: the names of the cases that train and that validate in each.

  Args:
    path: `splits_final.json`.
    patients: case to patient of all cases there are; not given: names are not checked,
      and every case is its own patient.

  Raises:
    InputError: it is not there, of another form, or names unknown cases.
    DamagedFileError: it is no JSON.
    LeakError: a case, or a patient, is on both sides of a fold.
  """
  folds = read_json(path)
  check_splits(path.name, folds, patients)
  return folds


def check_splits(
  subject: str, folds: Any, patients: Mapping[str, str] | None = None
) -> None:
  """Refuses what are no folds, or leak.

  Args:
    subject: for errors.
    folds: should be a list of {'train': [...], 'val': [...]}.
    patients: case to patient of all cases there are.

  Raises:
    InputError, LeakError: as `read_splits`.
  """
  if not isinstance(folds, Sequence) or isinstance(folds, str) or not folds:
    raise _malformed(subject, 'no list of folds')
  for number, fold in enumerate(folds):
    if not isinstance(fold, Mapping) or set(fold) != set(SIDES):
      raise _malformed(subject, f'fold {number} has not just train and val')
    for side in SIDES:
      _check_side(f'{subject}, fold {number}, {side}', fold[side], patients)
    _check_leak(f'{subject}, fold {number}', fold, patients)


def _malformed(subject: str, found: str) -> InputError:
  return InputError(subject, found, 'write [{"train": [...], "val": [...]}, ...]')


def _check_side(subject: str, cases: Any, patients: Mapping[str, str] | None) -> None:
  if (
    isinstance(cases, str)
    or not isinstance(cases, Sequence)
    or not cases
    or not all(isinstance(case, str) for case in cases)
  ):
    raise _malformed(subject, 'no list of names')
  if len(set(cases)) < len(cases):
    raise InputError(subject, 'names a case twice', 'name it once')
  unknown = [] if patients is None else [c for c in cases if c not in patients]
  if unknown:
    found = f'unknown cases {", ".join(unknown[:5])}'
    raise InputError(subject, found, 'correct the names, or add these scans')


def _check_leak(subject: str, fold: Fold, patients: Mapping[str, str] | None) -> None:
  if both := sorted(set(fold['train']) & set(fold['val'])):
    found = f'{", ".join(both[:5])} train and validate'
    raise LeakError(subject, found, 'leave them on one side')
  known = patients or {}
  train, val = ({known.get(case, case) for case in fold[side]} for side in SIDES)
  if both := sorted(train & val):
    found = f'patients {", ".join(both[:5])} train and validate'
    raise LeakError(subject, found, 'keep all scans of a patient on one side')


def write_summary(
  path: Path,
  rows: Iterable[tuple[Path, Path]],
  labels: Sequence[int] = (1,),
  *,
  merged: bool = False,
) -> None:
  """Writes nnU-Net's `summary.json` of predictions and their references.

  Dice and IoU are NaN where both masks are empty, and left out of the means, as
  nnU-Net does.

  Args:
    path: to write.
    rows: reference and predicted NIfTI file, per scan.
    labels: that are compared, each by itself.
    merged: whether all above 0 is label 1.

  Raises:
    InputError: no scan, or a file is missing.
    MaskGridError: a prediction is not on the grid of its reference.
    DamagedFileError, GeometryError: as `nifti.read_volume`.
    StorageError: the disk refused.
  """
  cases = [_compared(*files, labels, merged) for files in rows]
  if not cases:
    raise InputError(str(path), 'no scan to summarise', 'predict some first')
  means = {
    str(label): _mean([case['metrics'][str(label)] for case in cases])
    for label in labels
  }
  summary = {
    'foreground_mean': _mean(list(means.values())),
    'mean': means,
    'metric_per_case': cases,
  }
  write_json(path, summary)


def _compared(
  reference_file: Path, prediction_file: Path, labels: Sequence[int], merged: bool
) -> dict[str, Any]:
  name = prediction_file.name
  reference, grid = nifti.read_volume(reference_file, scan_id=reference_file.name)
  predicted = nifti.read_mask(prediction_file, grid, scan_id=name)
  if merged:
    reference, predicted = reference > 0, predicted > 0
  return {
    'metrics': {str(n): _agreement(reference == n, predicted == n) for n in labels},
    'prediction_file': str(prediction_file),
    'reference_file': str(reference_file),
  }


def _agreement(reference: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  """nnU-Net's figures of one label, of voxels."""
  both = int(np.count_nonzero(reference & predicted))
  n_ref, n_pred = int(reference.sum()), int(predicted.sum())
  either = n_ref + n_pred - both
  return {
    'Dice': 2 * both / (n_ref + n_pred) if either else float('nan'),
    'FN': n_ref - both,
    'FP': n_pred - both,
    'IoU': both / either if either else float('nan'),
    'TN': reference.size - either,
    'TP': both,
    'n_pred': n_pred,
    'n_ref': n_ref,
  }


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """By figure, of those that are not NaN; NaN if all are."""
  columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
  known = {name: column[~np.isnan(column)] for name, column in columns.items()}
  return {n: float(c.mean()) if c.size else float('nan') for n, c in known.items()}


def read_json(path: Path) -> Any:
  """What a JSON file holds.

  Raises:
    InputError: there is none.
    DamagedFileError: it is none.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise InputError(str(path), 'no such file', 'check the path') from None
  except ValueError as error:
    raise DamagedFileError(str(path), f'no JSON: {error}', 'write it again') from error
