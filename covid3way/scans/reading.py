"""What every reader does last: check the values, clip padding, turn to `[x, y, z]`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covid3way import base
from covid3way.base import WarningKind

OBLIQUE_DEGREES = 1.0


def assemble(
  native_hu: np.ndarray,
  grid: base.Grid,
  *,
  scan_id: str,
  provenance: Mapping[str, Any],
  windows: Sequence[base.Window] = (),
  warnings: Sequence[base.ScanWarning] = (),
) -> base.Scan:
  """A volume as stored -> a `Scan`.

  Args:
    native_hu: `grid.native_shape` float32, HU; clipped in place, so hand it over.
    grid: where its voxels lie.
    scan_id: names the scan.
    provenance: de-identified facts.
    windows: window candidates.
    warnings: what was assumed so far; padding and obliqueness are added here.

  Raises:
    NonFiniteError: NaN or infinity in `native_hu`.
  """
  lowest_hu = native_hu.min()
  if not np.isfinite([lowest_hu, native_hu.max()]).all():
    raise base.NonFiniteError(
      scan_id, 'NaN or infinity among the voxels', 'replace them, or convert it again'
    )
  warnings = [*warnings, *_oblique(grid)]
  if lowest_hu < base.AIR_HU:
    warnings.append(_clip_padding(native_hu))
  hu = np.ascontiguousarray(grid.to_lps(native_hu))
  return base.Scan(scan_id, hu, grid, tuple(windows), dict(provenance), tuple(warnings))


def _clip_padding(hu: np.ndarray) -> base.ScanWarning:
  # By value alone: PixelPaddingValue is 0 (water!) in files of some exporters.
  percent = 100 * np.count_nonzero(hu < base.AIR_HU) / hu.size
  np.maximum(hu, base.AIR_HU, out=hu)
  return base.ScanWarning(
    WarningKind.PADDING_CLIPPED,
    f'{percent:.3g}% of the voxels were below {base.AIR_HU:.0f} HU and set to it',
  )


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
