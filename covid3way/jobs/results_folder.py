"""What a cross-validation left in its workdir, read for tables and figures."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covid3way.evaluation import results
from covid3way.evaluation.results import Row
from covid3way.scans import nifti, nnunet, store
from covid3way.scans.files import read_json
from covid3way.scans.store import StoredScan
from covid3way.standard import space as spaces

Where = tuple[slice | int, ...]

_REMEDY = 'give the --workdir of a crossval job, after it gathered its runs'


@dataclasses.dataclass(frozen=True, eq=False)
class ResultsFolder:
  """A results folder.

  Attributes:
    path: the folder.
    settings: of the cross-validation, `crossval.json`.
    splits: per fold the scans to `train` on and to `val`, which are its tested ones.
    rows: of `results.csv`.
    costs: of `costs.csv`.
    aggregators: of `aggregators.csv`.
  """

  path: Path
  settings: Mapping[str, Any]
  splits: list[Mapping[str, list[str]]]
  rows: list[Row]
  costs: list[Row]
  aggregators: list[Row]

  @property
  def folds(self) -> list[list[str]]:
    """The scans that each fold tests."""
    return [split['val'] for split in self.splits]

  @property
  def planned(self) -> list[str]:
    """Names of the runs that were begun or have results."""
    begun = {path.name for path in (self.path / 'runs').glob('[!.]*') if path.is_dir()}
    return sorted(begun | {row['run'] for row in self.rows})

  def scan(self, scan_id: str) -> StoredScan:
    """A scan in standard space.

    Raises:
      InputError: it is not in the store.
    """
    return store.open_group(store.group_path(self.path / 'store', scan_id))

  def prediction(self, row: Row) -> StoredScan | None:
    """What a run found in a scan; None if it was not kept."""
    path = store.group_path(self._predictions(row), row['scan_id'])
    return store.open_group(path) if path.exists() else None

  def predicted(self, row: Row, scan: StoredScan, where: Where) -> np.ndarray | None:
    """Part of the mask that a run found in a scan, in its standard space.

    Args:
      row: of the run and the scan.
      scan: the scan.
      where: index of the part.

    Returns:
      Bool; None if the prediction was not kept.
    """
    found = self.prediction(row)
    if found is None:
      return None
    if row['ablation'] != results.PADDED:
      return np.asarray(found.volumes['infection'][where].read().result()) > 0
    # Its standard space is another one: what both share is the scan's own grid.
    path = self._predictions(row) / f'{scan.scan_id}.nii.gz'
    own = nifti.read_mask(path, scan.grid, scan_id=scan.scan_id) > 0
    placement = spaces.Placement.from_json(scan.attributes['placement'])
    return spaces.cast_mask(own, placement)[where]

  def _predictions(self, row: Row) -> Path:
    return self.path / 'runs' / row['run'] / f'fold{row["fold"]:.0f}' / 'predictions'

  @functools.cached_property
  def patients(self) -> dict[str, str]:
    """Whose each scan of the store is, by scan_id; simulated ones left out."""
    scans = map(store.open_group, store.finished_groups(self.path / 'store'))
    real = (scan for scan in scans if 'simulated' not in scan.attributes)
    return {scan.scan_id: scan.attributes['patient_id'] for scan in real}

  def fits(self) -> list[Mapping[str, Any]]:
    """Every patient's fits."""
    paths = sorted((self.path / 'fits').glob('[!.]*.json'))
    return [read_json(path, remedy='run the fit job again') for path in paths]


def read(path: Path) -> ResultsFolder:
  """Reads a results folder.

  Raises:
    InputError, DamagedFileError, LeakError: it is none, or lacks a file or a column.
  """
  return ResultsFolder(
    path,
    read_json(path / 'crossval.json', remedy=_REMEDY),
    nnunet.read_splits(path / 'splits_final.json'),
    results.read_rows(path / 'results.csv', results.RESULTS),
    results.read_rows(path / 'costs.csv', results.COSTS),
    results.read_rows(path / 'aggregators.csv', results.AGGREGATORS),
  )


def volume(scan: StoredScan, name: str) -> np.ndarray:
  """A volume, read as a whole."""
  return np.asarray(scan.volumes[name].read().result())
