"""Who trains, validates and is tested in each training of a cross-validation."""

import functools
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from covid3way.evaluation import folds as folding
from covid3way.evaluation.folds import Fold
from covid3way.jobs.runs import Run, run_folder, store_folder
from covid3way.scans import nnunet, store
from covid3way.scans.files import read_json, write_json_once
from covid3way.scans.manifest import ManifestRow
from covid3way.scans.store import StoredScan
from covid3way.training.split import check_origin, named_split


def folds(
  section: ConfigDict, workdir: Path, rows: Mapping[str, ManifestRow]
) -> list[Fold]:
  """Those of `splits_final.json`, which is made, or copied, when it is not there.

  Args:
    section: `config.crossval`.
    workdir: of the job.
    rows: of the manifest, by scan.
  """
  path = workdir / 'splits_final.json'
  patients = {scan_id: row.patient_id for scan_id, row in rows.items()}
  if not path.exists():
    if section.splits:
      made = nnunet.read_splits(Path(section.splits), patients)
    else:
      usable = [row for row in rows.values() if row.infection_mask]
      made = folding.make_folds(
        usable, by=section.by, n=section.folds, seed=section.seed
      )
    nnunet.write_splits(path, made, patients)
  return nnunet.read_splits(path, patients)


class Splits:
  """Writes the split of each training, and makes sure that it does not leak."""

  def __init__(
    self, config: ConfigDict, workdir: Path, rows: Mapping[str, ManifestRow]
  ):
    self._seed = config.crossval.seed
    self._share = config.training.validation_share
    self._workdir = workdir
    self._patients = {scan_id: row.patient_id for scan_id, row in rows.items()}
    self._scans = functools.cache(_stored_scans)

  def write(self, run: Run, k: int, fold: Fold) -> None:
    """Writes `split.json` for a run's training on a fold, unless it is there.

    Raises:
      LeakError: a patient, a series or the same voxels on two sides.
    """
    scans = self._scans(store_folder(self._workdir, run))
    path = run_folder(self._workdir, run, k) / 'split.json'
    if not path.exists():
      write_json_once(path, self._sides(fold, k, run.ratio, scans))
    tested = {'test': [scan for scan in fold['val'] if scan in scans]}
    sides = read_json(path, remedy='remove it and run the same command again')
    named_split(list(scans.values()), sides | tested)

  def _sides(
    self, fold: Fold, k: int, ratio: float, scans: Mapping[str, StoredScan]
  ) -> dict[str, list[str]]:
    """Scan ids that train, real and simulated, validate and are tested.

    Scans that could not be cast, or have no reference, are left out last: who validates
    does not depend on them.
    """

    def usable(ids: list[str]) -> list[str]:
      return [i for i in ids if i in scans and 'infection' in scans[i].volumes]

    sides = folding.hold_out(
      fold['train'], self._patients, share=self._share, seed=self._seed + k
    )
    training, validation = map(usable, sides)
    made = {scan: [] for scan in training}
    for scan_id, scan in scans.items():
      target = scan.attributes.get('simulated', {}).get('to_scan')
      if target in made:
        made[target].append(scan_id)
    simulated = folding.choose_simulated(made, ratio, seed=self._seed)
    return {
      'training': training + simulated,
      'validation': validation,
      'test': usable(fold['val']),
    }


def _stored_scans(folder: Path) -> dict[str, StoredScan]:
  """The scans of a store, real and simulated, by name.

  Raises:
    LeakError: one of them is not what its attributes say.
  """
  groups = store.list_groups(folder)
  scans = {scan.scan_id: scan for scan in map(store.open_group, groups)}
  check_origin(list(scans.values()))
  return scans
