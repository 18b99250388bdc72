"""Types that every room shares: grids, scans, windows, errors, typed warnings.

Arrays are indexed `[x, y, z]`; x grows to the patient's left, y to the back, z to
the head (LPS, as DICOM). Readers convert on entry, writers on exit, nothing in
between flips.
"""

import dataclasses
import enum
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

AIR_HU = -1024.0
LEFT, RIGHT = 1, 2  # Labels of lung masks.


class Covid3wayError(Exception):
  """A mistake in the input, told in one line: who, what was found, what to do."""

  def __init__(self, subject: str, found: str, remedy: str):
    super().__init__(f'{subject}: {found}; {remedy}')
    self.subject, self.found, self.remedy = subject, found, remedy

  def __reduce__(self):
    return type(self), (self.subject, self.found, self.remedy)


class ConfigError(Covid3wayError):
  """A config field or flag that is missing, unknown or out of range."""


class InputError(Covid3wayError):
  """A path that is not a scan, an archive, a folder of scans or a manifest."""


class ManifestError(Covid3wayError):
  """A cohort manifest that cannot be understood."""


class NoCtError(Covid3wayError):
  """No CT image where one was expected."""


class MixedPatientsError(Covid3wayError):
  """Files of several patients where one scan was expected."""


class MissingSliceError(Covid3wayError):
  """A gap in a series."""


class DuplicateSliceError(Covid3wayError):
  """Two different slices at one position."""


class GeometryError(Covid3wayError):
  """A geometry that no even grid with right angles can be made of."""


class DamagedFileError(Covid3wayError):
  """A file that is truncated or cannot be decoded."""


class NonFiniteError(Covid3wayError):
  """NaN or infinity among the signal values."""


class SignalError(Covid3wayError):
  """Values that are no Hounsfield units: windowed already, or of another unit."""


class NoLungError(Covid3wayError):
  """No lung in the scan."""


class MaskGridError(Covid3wayError):
  """A mask that is not on its scan's grid."""


class ModelError(Covid3wayError):
  """A model directory that is damaged, foreign or incomplete."""


class ParameterError(Covid3wayError):
  """A parameter W of the simulator that is not finite or outside its bounds."""


class SerialError(Covid3wayError):
  """Serial scans that no progression can be fitted to: days, masks or voxel counts."""


class LeakError(Covid3wayError):
  """Scans of a patient, real or simulated, that would end on both sides of a split."""


class TrainingError(Covid3wayError):
  """A training whose numbers are no longer finite."""


class StorageError(Covid3wayError):
  """The disk refused a write."""


class WarningKind(enum.StrEnum):
  """What was assumed about a scan; the words that appear in outputs."""

  DUPLICATE_FILE_DROPPED = 'duplicate_file_dropped'
  FILES_IGNORED = 'files_ignored'
  GRID_NOT_STORED = 'grid_not_stored'
  INFECTION_OUTSIDE_LUNGS = 'infection_outside_lungs'
  LUNG_OUTSIDE_BOX = 'lung_outside_box'
  LUNGS_NOT_SEPARATED = 'lungs_not_separated'
  OBLIQUE = 'oblique'
  ORIENTATION_ASSUMED = 'orientation_assumed'
  PADDING_CLIPPED = 'padding_clipped'
  PADDING_REPLACED = 'padding_replaced'
  SERIES_CHOSEN = 'series_chosen'
  SLICES_IGNORED = 'slices_ignored'
  SPACING_EVENED = 'spacing_evened'
  TILT_CORRECTED = 'tilt_corrected'
  VIEWS_DISAGREE = 'views_disagree'
  WINDOW_ASSUMED = 'window_assumed'
  WINDOW_ESTIMATED = 'window_estimated'
  WINDOW_UNLIKE_TRAINING = 'window_unlike_training'


@dataclasses.dataclass(frozen=True)
class ScanWarning:
  """An assumption made for one scan, carried into every output."""

  kind: WarningKind
  message: str


@dataclasses.dataclass(frozen=True)
class Window:
  """A CT window (paper, Section III-B.2): level and width in HU, and who says so."""

  level_hu: float
  width_hu: float
  source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Acquired:
  """Slices as stored, where they make no even grid with right angles.

  Only readers and writers know of it; everything else lives on the `Grid`.

  Attributes:
    shape: voxels per axis as stored: (columns, rows, slices) or (i, j, k).
    affine: (4, 4) float64, index as stored -> LPS world, mm; None where no affine
      says it, because the slices are unevenly spaced.
    places: (slices, 3) float64, voxel coordinates on the Grid, in its native order, of
      the first voxel of each stored slice.
    axis: of the axes as stored, the one from slice to slice.
  """

  shape: tuple[int, int, int]
  affine: np.ndarray | None
  places: np.ndarray
  axis: int = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
  """A scan's own voxel grid, even and with right angles, and its `[x, y, z]` reading.

  Attributes:
    native_shape: voxels per axis in the order of the file: (columns, rows, slices) of
      a DICOM series, (i, j, k) of a NIfTI file.
    native_affine: (4, 4) float64, index in that order -> LPS world, mm.
    acquired: the slices as stored, where they do not lie on this grid (tilted gantry,
      uneven spacing).
  """

  native_shape: tuple[int, int, int]
  native_affine: np.ndarray
  acquired: Acquired | None = None

  def to_json(self) -> dict[str, Any]:
    """All of it as JSON values; `from_json` reads it."""
    acquired = self.acquired and {
      'shape': list(self.acquired.shape),
      'affine_lps': None
      if self.acquired.affine is None
      else self.acquired.affine.tolist(),
      'places': self.acquired.places.tolist(),
      'axis': self.acquired.axis,
    }
    return {
      'native_shape': list(self.native_shape),
      'native_affine_lps': self.native_affine.tolist(),
      'acquired': acquired,
    }

  @classmethod
  def from_json(cls, facts: Mapping[str, Any]) -> 'Grid':
    """The grid of `to_json`, among other facts; one without `acquired` has none."""
    acquired = facts.get('acquired')
    if acquired:
      affine = acquired['affine_lps']
      acquired = Acquired(
        tuple(acquired['shape']),
        None if affine is None else np.array(affine, np.float64),
        np.array(acquired['places'], np.float64),
        acquired['axis'],
      )
    affine = np.array(facts['native_affine_lps'], np.float64)
    return cls(tuple(facts['native_shape']), affine, acquired or None)

  @functools.cached_property
  def axes(self) -> tuple[tuple[int, bool], ...]:
    """For x, y and z: the native axis nearest to it, and whether it runs backwards."""
    directions = self.native_affine[:3, :3] / np.linalg.norm(
      self.native_affine[:3, :3], axis=0
    )
    order = max(
      itertools.permutations(range(3)),
      key=lambda p: sum(abs(directions[i, a]) for i, a in enumerate(p)),
    )
    return tuple((a, bool(directions[i, a] < 0)) for i, a in enumerate(order))

  @property
  def shape(self) -> tuple[int, int, int]:
    """Voxels along x, y, z."""
    return tuple(self.native_shape[a] for a, _ in self.axes)

  @property
  def spacing_mm(self) -> tuple[float, float, float]:
    """Distance of neighbouring voxel centres along x, y, z."""
    lengths = np.linalg.norm(self.native_affine[:3, :3], axis=0)
    return tuple(float(lengths[a]) for a, _ in self.axes)

  @property
  def voxel_ml(self) -> float:
    """Volume of one voxel, ml."""
    return float(np.prod(self.spacing_mm)) / 1000

  @property
  def affine(self) -> np.ndarray:
    """(4, 4) float64, `[x, y, z]` index -> LPS world, mm."""
    result = np.eye(4)
    origin = self.native_affine[:3, 3].copy()
    for i, (a, backwards) in enumerate(self.axes):
      column = self.native_affine[:3, a]
      if backwards:
        origin += column * (self.native_shape[a] - 1)
      result[:3, i] = -column if backwards else column
    result[:3, 3] = origin
    return result

  def to_lps(self, native: np.ndarray) -> np.ndarray:
    """A volume as stored -> `[x, y, z]` (a view)."""
    volume = np.transpose(native, [a for a, _ in self.axes])
    return volume[tuple(slice(None, None, -1 if b else None) for _, b in self.axes)]

  def to_native(self, volume: np.ndarray) -> np.ndarray:
    """`[x, y, z]` -> the volume as stored (a view); the inverse of `to_lps`."""
    volume = volume[tuple(slice(None, None, -1 if b else None) for _, b in self.axes)]
    return np.transpose(volume, np.argsort([a for a, _ in self.axes]))


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
  """One CT as read.

  Attributes:
    scan_id: names the scan in outputs and errors; holds nothing that identifies.
    hu: (x, y, z) float32, Hounsfield units, not below -1024, C-contiguous.
    grid: the scan's own grid.
    windows: window candidates, in the order in which the file lists them.
    provenance: de-identified facts for the outputs (scanner, kernel, UIDs hashed...).
    warnings: every assumption made while reading.
  """

  scan_id: str
  hu: np.ndarray
  grid: Grid
  windows: tuple[Window, ...] = ()
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  warnings: tuple[ScanWarning, ...] = ()
