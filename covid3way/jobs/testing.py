"""A model on scans that it never saw: masks, and the rows of the result tables."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from covid3way.base import Covid3wayError, MaskGridError
from covid3way.evaluation.metrics import scan_metrics
from covid3way.evaluation.results import EVALUATIONS, SCAN, Row
from covid3way.scans import nifti, store
from covid3way.scans.manifest import ManifestRow
from covid3way.scans.store import StoredScan
from covid3way.segmentation.maps import probability_map
from covid3way.segmentation.model import Model
from covid3way.segmentation.three_way import aggregate
from covid3way.standard import space as spaces
from covid3way.training.slices import TIMEOUT_S, naming
from covid3way.training.split import check_unseen, identities


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
  """What a model says of a stored scan.

  Attributes:
    maps: per part, (x', y', z') uint8 in the standard space.
    standard: (x', y', z') bool, the mask there.
    native: (x, y, z) bool, on the scan's own grid.
    lungs: (x, y, z) bool, on the own grid.
    seconds: from the stored scan to the mask on its own grid.
  """

  maps: Mapping[str, np.ndarray]
  standard: np.ndarray
  native: np.ndarray
  lungs: np.ndarray
  seconds: float


def predict(
  model: Model, scan: StoredScan, row: ManifestRow, *, batch_size: int
) -> Prediction:
  """Predicts a scan that the model's training must not have seen.

  Raises:
    LeakError: it did.
  """
  check_unseen(model.saw, identities([scan]), f'{scan.scan_id} and the model')
  start = time.monotonic()
  with naming(scan):
    signal, lungs = (
      scan.volumes[n].read().result(TIMEOUT_S) for n in ('signal', 'lungs')
    )
  signal = jnp.asarray(signal)
  maps = {
    part: probability_map(model, part, signal, lungs, batch_size=batch_size)
    for part in model.variables
  }
  _, mask = aggregate(maps, lungs, model.aggregator)
  placement = spaces.Placement.from_json(scan.attributes['placement'])
  if row.lung_mask:
    given = nifti.read_mask(row.lung_mask, scan.grid, scan_id=row.scan_id)
    own_lungs = given > 0
  else:
    own_lungs = spaces.return_mask(lungs > 0, placement)
  native = spaces.return_mask(mask, placement) & own_lungs
  return Prediction(maps, mask, native, own_lungs, time.monotonic() - start)


def write(folder: Path, scan: StoredScan, found: Prediction) -> None:
  """Writes `<scan_id>.nii.gz` on the own grid, `<scan_id>.zarr` in standard space."""
  path, mask = folder / f'{scan.scan_id}.nii.gz', found.native.astype(np.uint8)
  folder.mkdir(parents=True, exist_ok=True)
  nifti.write_volume(path, mask, scan.grid, dtype=np.uint8)
  volumes = {f'probability_{part}': each for part, each in found.maps.items()}
  store.write_group(
    store.group_path(folder, scan.scan_id),
    volumes | {'infection': found.standard},
    {'scan_id': scan.scan_id, 'spacing_mm': scan.attributes.get('spacing_mm')},
  )


def compare(found: Prediction, scan: StoredScan, row: ManifestRow) -> list[Row]:
  """A row per evaluation; where the reference cannot be read, its status says why."""
  about = about_scan(row)
  if row.infection_mask is None:
    return without_figures(about, 'no reference')
  try:
    given = nifti.read_mask(row.infection_mask, scan.grid, scan_id=row.scan_id)
  except MaskGridError:
    return without_figures(about, 'reference on another grid')
  except Covid3wayError as error:
    return without_figures(about, f'reference: {error.found}')
  with naming(scan):
    standard, lungs = (
      scan.volumes[n].read().result(TIMEOUT_S) > 0 for n in ('infection', 'lungs')
    )
  placement = spaces.Placement.from_json(scan.attributes['placement'])
  # Voxels of the standard space, in the scan's own mm, whatever it was taken to have.
  own_mm, taken_mm = scan.grid.spacing_mm, placement.own_spacing_mm
  standard_mm = np.multiply(placement.space.spacing_mm, np.divide(own_mm, taken_mm))
  return compared(
    about,
    (given > 0, found.native, found.lungs, own_mm),
    lambda: (standard, found.standard, lungs, tuple(standard_mm)),
  )


def compared(
  about: Mapping[str, Any],
  native: tuple[Any, ...],
  standard: Callable[[], tuple[Any, ...]],
  kinds: Sequence[str] = EVALUATIONS,
) -> list[Row]:
  """A row per evaluation.

  Args:
    about: the scan.
    native: reference, prediction, lungs (or None), spacing_mm, on the own grid.
    standard: gives the same in the standard space.
    kinds: of `EVALUATIONS`.
  """
  reference, predicted, *rest = native
  views = {
    'native': lambda: native,
    'standard': standard,
    'dilated': lambda: (*(_dilated(m) for m in (reference, predicted)), *rest),
  }
  return [
    {**about, 'evaluation': kind, 'status': 'ok', **scan_metrics(*views[kind]())}
    for kind in kinds
  ]


def _dilated(mask: np.ndarray) -> np.ndarray:
  """By 3 x 3 x 3 voxels, as the authors' released code compares masks."""
  return ndimage.binary_dilation(mask, np.ones((3, 3, 3), bool))


def about_scan(row: ManifestRow) -> Row:
  """What the tables say of a scan."""
  return {field: getattr(row, field) for field in SCAN}


def without_figures(
  about: Mapping[str, Any], status: str, kinds: Sequence[str] = EVALUATIONS
) -> list[Row]:
  """A row per evaluation that says why it is empty."""
  return [{**about, 'evaluation': name, 'status': status} for name in kinds]
