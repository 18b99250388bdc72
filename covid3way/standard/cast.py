"""A scan cast into the standard space, with all that the way back needs."""

import dataclasses
from typing import Any

import jax
import numpy as np

from covid3way.base import Scan, ScanWarning, WarningKind, Window
from covid3way.standard import space as spaces


@dataclasses.dataclass(frozen=True, eq=False)
class StandardScan:
  """A scan in the standard space.

  Attributes:
    placement: where the scan lies in the space.
    window: that normalised the signal.
    signal: (x', y', z') float32, window units.
    lungs: (x', y', z') uint8, 1 left, 2 right.
    warnings: of reading, windowing and casting together.
  """

  placement: spaces.Placement
  window: Window
  signal: jax.Array
  lungs: np.ndarray
  warnings: tuple[ScanWarning, ...]

  def facts(self) -> dict[str, Any]:
    """Window, placement and warnings as JSON values."""
    return {
      'window': dataclasses.asdict(self.window),
      'placement': dataclasses.asdict(self.placement),
      'warnings': [dataclasses.asdict(w) for w in self.warnings],
    }


def cast(
  scan: Scan,
  lungs: np.ndarray,
  window: Window,
  space: spaces.StandardSpace,
  warnings: tuple[ScanWarning, ...] = (),
  padded_mm: tuple[float, ...] = (),
) -> StandardScan:
  """Casts a scan (paper, Section III-B), centred on its lungs.

  Args:
    scan: to cast.
    lungs: (x, y, z) 1 left, 2 right, on the scan's grid; not empty.
    window: of Eq. (1).
    space: to cast into.
    warnings: found on the way here, besides the scan's own.
    padded_mm: not empty: the voxel size to take the scan for, whatever its own is.
  """
  spacing_mm = padded_mm or scan.grid.spacing_mm
  placement = spaces.place(scan.grid.shape, spacing_mm, space, lungs)
  if padded_mm:
    placement = _on_own_voxels(placement)
  # Its voxels keep their own volume, whatever size they are taken for.
  outside_ml = spaces.outside_ml(lungs > 0, placement)
  outside_ml *= scan.grid.voxel_ml * 1000 / np.prod(spacing_mm)
  if outside_ml > 0:
    message = f'{outside_ml:.1f} ml of lung lie outside the standard space'
    warnings += (ScanWarning(WarningKind.LUNG_OUTSIDE_BOX, message),)
  return StandardScan(
    placement,
    window,
    spaces.cast_signal(scan.hu, placement, window),
    spaces.cast_sides(lungs, placement),
    scan.warnings + warnings,
  )


def _on_own_voxels(placement: spaces.Placement) -> spaces.Placement:
  """Moved so that the first voxel of the space lies on one of the scan's grid.

  Voxels of one size then coincide: nothing is interpolated.
  """
  first = [placement.to_own(axis, 0) for axis in range(3)]
  centre = zip(placement.centre_voxel, first, strict=True)
  moved = tuple(float(c + np.rint(f) - f) for c, f in centre)
  return dataclasses.replace(placement, centre_voxel=moved)
