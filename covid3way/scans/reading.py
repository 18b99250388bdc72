"""What every reader does last: check the values, clip padding, turn to `[x, y, z]`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covid3way import base
from covid3way.base import WarningKind

OBLIQUE_DEGREES = 1.0
# Lungs and the air around a patient lie below, any body above.
LUNG_OR_TISSUE_HU = -300.0
# 12 bits end at 3071 HU, the extended scale of metal at 30,710.
HIGHEST_HU = 32_000.0
_GIVE_CT = (
  'give the CT as the scanner stored it; scans of another signal need a manifest '
  'that names it in its column domain'
)


@dataclasses.dataclass(slots=True)
class Intake:
  """Takes the values of one scan as they are read, and remembers what they are like.

  Attributes:
    scan_id: names the scan.
    lowest, highest: of all values so far.
    clipped: how many voxels were below -1024 HU.
    lung: how many were not, and below -300 HU.
  """

  scan_id: str
  lowest: float = np.inf
  highest: float = -np.inf
  clipped: int = 0
  lung: int = 0

  def take(self, hu: np.ndarray) -> None:
    """Checks some slices, float32, and clips them in place.

    Raises:
      NonFiniteError: NaN or infinity among them.
    """
    lowest, highest = float(hu.min()), float(hu.max())
    if not np.isfinite([lowest, highest]).all():
      raise base.NonFiniteError(
        self.scan_id,
        'NaN or infinity among the voxels',
        'replace them, or convert it again',
      )
    self.lowest = min(self.lowest, lowest)
    self.highest = max(self.highest, highest)
    clipped = 0
    if lowest < base.AIR_HU:
      clipped = int(np.count_nonzero(hu < base.AIR_HU))
      np.maximum(hu, base.AIR_HU, out=hu)
    self.clipped += clipped
    self.lung += int(np.count_nonzero(hu < LUNG_OR_TISSUE_HU)) - clipped


def room(grid: base.Grid, scan_id: str) -> np.ndarray:
  """An empty volume, float32, native order; turned to [x, y, z] it is C-contiguous.

  Raises:
    GeometryError: so many voxels do not fit into the memory.
  """
  try:
    return grid.to_native(np.empty(grid.shape, np.float32))
  except (MemoryError, ValueError):  # The latter where they cannot be counted.
    size = ' x '.join(map(str, grid.shape))
    raise base.GeometryError(
      scan_id,
      f'{size} voxels are more than the memory holds',
      'look at the size in its header; use a machine with more memory if it is right',
    ) from None


def assemble(
  native_hu: np.ndarray,
  grid: base.Grid,
  intake: Intake,
  *,
  provenance: Mapping[str, Any],
  domain: str = '',
  windows: Sequence[base.Window] = (),
  warnings: Sequence[base.ScanWarning] = (),
) -> base.Scan:
  """A volume in native order -> a `Scan`.

  Args:
    native_hu: `grid.native_shape` float32; not copied if `grid.to_lps` of it is
      C-contiguous.
    grid: where its voxels lie.
    intake: took all of its values.
    provenance: de-identified facts.
    domain: of the signal, as in a manifest; '' is HU, and only that is checked.
    windows: window candidates.
    warnings: what was assumed so far; padding and obliqueness are added here.

  Raises:
    SignalError: the values are no HU of a chest.
  """
  if not domain:
    _check_hu(intake)
  stored = np.prod(grid.acquired.shape if grid.acquired else grid.native_shape)
  warnings = (*warnings, *_oblique(grid), *_clipped(intake.clipped / stored))
  hu = np.ascontiguousarray(grid.to_lps(native_hu))
  return base.Scan(intake.scan_id, hu, grid, tuple(windows), dict(provenance), warnings)


def _check_hu(intake: Intake) -> None:
  low, high = intake.lowest, intake.highest
  edge = LUNG_OR_TISSUE_HU
  wrong = {
    'a picture windowed already': low >= 0 and high <= 255,
    'a signal normalised already': low >= -1 and high <= 1,
    'negative numbers read as large ones, or another unit': high > HIGHEST_HU,
    f'nothing but air (nothing above {edge:.0f} HU); the rescale intercept may have '
    'been added twice': high <= edge,
    f'no air and no lung (nothing from -1024 to {edge:.0f} HU, padding aside); '
    'the rescale intercept may be missing': not intake.lung,
  }
  for what, is_so in wrong.items():
    if is_so:
      raise base.SignalError(
        intake.scan_id, f'values from {low:g} to {high:g} are no HU: {what}', _GIVE_CT
      )


def _clipped(share: float) -> list[base.ScanWarning]:
  # By value alone: PixelPaddingValue is 0 (water!) in files of some exporters.
  if not share:
    return []
  message = (
    f'{100 * share:.3g}% of the voxels were below {base.AIR_HU:.0f} HU and set to it'
  )
  return [base.ScanWarning(WarningKind.PADDING_CLIPPED, message)]


def _oblique(grid: base.Grid) -> list[base.ScanWarning]:
  directions = grid.native_affine[:3, :3] / np.linalg.norm(
    grid.native_affine[:3, :3], axis=0
  )
  cosines = [abs(directions[i, a]) for i, (a, _) in enumerate(grid.axes)]
  degrees = np.degrees(np.arccos(min(1.0, *cosines)))
  if degrees <= OBLIQUE_DEGREES:
    return []
  message = f'rotated by {degrees:.1f} degrees; processed along its own axes'
  return [base.ScanWarning(WarningKind.OBLIQUE, message)]
