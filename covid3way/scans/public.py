"""What importers of public collections share: 8-bit signals, classes, mirrored lungs.

An importer finds the scans of a folder and hands out one `Convert` for each. Whatever
is assumed about a scan is a note that the user reads; files that need no change are
referred to, not copied.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from covid3way.base import LEFT, RIGHT, Grid, InputError, Window
from covid3way.scans import nifti
from covid3way.scans.manifest import ManifestRow

# 8-bit values of an unknown window are a domain of their own. They are stored so that
# black is air and one linear window takes them to [-0.5, 0.5].
BYTE_WINDOW = Window(-424.0, 1200.0, 'manifest')
EQUALISED = 'equalised-8bit'
WINDOWED = 'windowed-8bit'


@dataclasses.dataclass(frozen=True)
class Imported:
  """A scan that is ready for the manifest.

  Attributes:
    row: of the manifest.
    notes: what was assumed, found or lost.
  """

  row: ManifestRow
  notes: tuple[str, ...] = ()


# Converts one scan; what has to be written goes into the folder that it is given.
Convert = Callable[[Path], Imported]


def from_bytes(values: np.ndarray, window: Window = BYTE_WINDOW) -> np.ndarray:
  """0 to 255 -> HU, as far as the window reached; float32."""
  lowest_hu = window.level_hu - window.width_hu / 2
  return (lowest_hu + values * (window.width_hu / 255)).astype(np.float32)


def is_bytes(values: np.ndarray) -> bool:
  """Whether a signal was windowed to 8 bits: whole numbers from 0 to 255.

  A CT in HU has air in it, far below 0.
  """
  low, high = values.min(), values.max()
  return bool(low >= 0 and high <= 255 and np.array_equal(values, np.rint(values)))


def convert_volume(
  folder: Path,
  row: ManifestRow,
  *,
  bytes_window: Window | None = None,
  classes: Collection[int] | None = None,
) -> Imported:
  """Takes a NIfTI scan as it is distributed, and writes only what has to change.

  Args:
    folder: to write into: `<scan_id>/ct.nii.gz`, `infection.nii.gz`, `lungs.nii.gz`.
    row: with the distributed files; if it names no domain they should be in HU.
    bytes_window: that the scan was windowed with if it holds 8-bit values; when it is
      not known these become a domain of their own.
    classes: labels of the infection mask that are infection; not given: all.

  Raises:
    InputError: a signal that can be neither HU nor 8 bits.
    Covid3wayError: a file is missing, damaged or on another grid.
  """
  own = folder / row.scan_id
  values, grid = nifti.read_volume(row.image, scan_id=row.scan_id)
  changed, notes = {}, []
  if not row.domain and values.min() >= 0:
    if not is_bytes(values):
      found = f'nothing below 0 in {row.image.name}: there is no air in it'
      raise InputError(row.scan_id, found, 'give a CT in HU, or in 8 bits')
    changed, note = _signal(own / 'ct.nii.gz', values, grid, bytes_window)
    notes.append(note)
  if row.infection_mask and classes is not None:
    mask = nifti.read_mask(row.infection_mask, grid, scan_id=row.scan_id)
    if others := sorted(set(np.unique(mask).tolist()) - {0, *classes}):
      changed['infection_mask'] = own / 'infection.nii.gz'
      write_mask(changed['infection_mask'], np.isin(mask, list(classes)), grid)
      notes.append(f'labels {others} of {row.infection_mask.name} are no infection')
  if row.lung_mask:
    lungs = nifti.read_mask(row.lung_mask, grid, scan_id=row.scan_id)
    if is_mirrored(lungs):
      changed['lung_mask'] = own / 'lungs.nii.gz'
      write_mask(changed['lung_mask'], _swapped(lungs), grid)
      notes.append(
        f'{row.lung_mask.name} calls left the lung that lies on the right by the '
        "file's header; labelled by the header"
      )
  return Imported(dataclasses.replace(row, **changed), tuple(notes))


def _signal(
  path: Path, values: np.ndarray, grid: Grid, window: Window | None
) -> tuple[dict, str]:
  """Writes 8-bit values as a signal; what changes in the row, and the note."""
  signal = from_bytes(values, window or BYTE_WINDOW)
  nifti.write_volume(path, signal, grid, dtype=np.float32)
  if window is None:
    note = 'already windowed to 0-255, and nobody says how: a domain of its own'
    return {'image': path, 'window': BYTE_WINDOW, 'domain': WINDOWED}, note
  low, high = (window.level_hu + side * window.width_hu / 2 for side in (-1, 1))
  lost = 100 * np.count_nonzero((values == 0) | (values == 255)) / values.size
  note = (
    f'already windowed to 0-255: mapped back to HU by its window [{low:g}, {high:g}]; '
    f'what lay beyond is lost, {lost:.1f}% of the voxels lie on its ends'
  )
  return {'image': path, 'window': window}, note


def is_mirrored(lungs: np.ndarray) -> bool:
  """Whether what is labelled left lies further right than what is labelled right."""
  if not set(np.unique(lungs)) >= {LEFT, RIGHT}:
    return False
  x = np.arange(lungs.shape[0])
  left, right = (np.average(x, weights=_profile(lungs == s)) for s in (LEFT, RIGHT))
  return bool(left < right)


def _profile(mask: np.ndarray) -> np.ndarray:
  return np.count_nonzero(mask, axis=(1, 2))


def _swapped(lungs: np.ndarray) -> np.ndarray:
  table = np.arange(256, dtype=np.uint8)
  table[[LEFT, RIGHT]] = RIGHT, LEFT
  return table[lungs]


def write_mask(path: Path, mask: np.ndarray, grid: Grid) -> None:
  """Writes labels, (x, y, z), as uint8."""
  nifti.write_volume(path, mask, grid, dtype=np.uint8)


def place_at(spacing_mm: Sequence[float], shape: Sequence[int]) -> Grid:
  """A grid along x, y, z that begins at 0 mm."""
  return Grid(tuple(shape), np.diag([*spacing_mm, 1.0]))


def volumes(folder: Path) -> Iterator[tuple[str, Path]]:
  """The NIfTI files of a folder: name without suffix, and path, in order of name."""
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    for suffix in nifti.SUFFIXES:
      if path.name.endswith(suffix) and not path.name.startswith('.'):
        yield path.name.removesuffix(suffix), path


def unmatched(folder: Path, collection: str, looked_for: Iterable[str]) -> InputError:
  """The error that a folder is not laid out as a collection is distributed."""
  wanted = ' and '.join(looked_for)
  found = sorted(p.name for p in folder.iterdir())[:5] if folder.is_dir() else None
  there = 'no such folder' if found is None else f'found {found or "nothing"}'
  return InputError(
    str(folder),
    f'not {collection} as it is distributed: looked for {wanted}, {there}',
    'give the folder that holds these',
  )
