"""Importers of single slices: folders of PNG files, and MedSeg's hundred slices."""

import csv
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from covid3way.base import DamagedFileError, Grid, InputError, MaskGridError
from covid3way.scans import nifti
from covid3way.scans.manifest import ManifestRow, file_name
from covid3way.scans.public import (
  BYTE_WINDOW,
  EQUALISED,
  Convert,
  Imported,
  from_bytes,
  is_bytes,
  place_at,
  unmatched,
  volumes,
  write_mask,
)
from covid3way.scans.public_collections import MEDSEG_INFECTION, find_medseg_volumes

# Not recorded with the PNG files: 512 pixels of some 0.7 mm were halved.
PNG_SPACING_MM = (1.4, 1.4, 1.0)
_PNG_KINDS = ('ct', 'infection', 'lungs')
_SPACING = ('patient', 'x_mm', 'y_mm', 'z_mm')
Spacing = tuple[float, float, float]

# A slice alone becomes a thin scan, of planes that are all the same.
SINGLE = 'single-slices'
SINGLE_PLANES, SINGLE_APART_MM = 3, 5.0


def find_png_folders(
  folder: Path, spacing_mm: Mapping[str, Spacing] | None = None
) -> dict[str, Convert]:
  """Patients as `<patient>/{ct,infection,lungs}/*.png`, slices in order of number.

  Slices are numbered from the feet; a row of pixels runs from the patient's right to
  the left and rows follow each other to the back, as radiologists look at them.

  Args:
    folder: that holds the patients' folders.
    spacing_mm: of patients of whom it is known; of the others it is assumed.

  Raises:
    InputError: no folder is laid out like that, or a patient has none.
  """
  known = spacing_mm or {}
  patients = [
    path
    for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
    if all(any((path / kind).glob('*.png')) for kind in _PNG_KINDS)
  ]
  if not patients:
    kinds = ','.join(_PNG_KINDS)
    raise unmatched(folder, 'slice folders', [f'PATIENT/{{{kinds}}}/*.png'])
  if unknown := sorted(set(known) - {p.name for p in patients}):
    found = f'a spacing of {", ".join(unknown)}, of whom there is no folder'
    raise InputError(str(folder), found, 'correct the table')
  return {
    file_name(p.name, 'scan'): functools.partial(
      _convert_png, source=p, known_mm=known.get(p.name)
    )
    for p in patients
  }


def read_spacing(path: Path) -> dict[str, Spacing]:
  """Reads a CSV file with the columns `patient,x_mm,y_mm,z_mm`.

  Raises:
    InputError: there is none, or it is of another form.
  """
  remedy = f'write the columns {",".join(_SPACING)}, with sizes above 0'
  try:
    with path.open(newline='', encoding='utf-8-sig') as stream:
      lines = list(csv.DictReader(stream))
    found = {p['patient']: tuple(float(p[c]) for c in _SPACING[1:]) for p in lines}
  except FileNotFoundError:
    raise InputError(str(path), 'no such file', 'check the path') from None
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(str(path), f'no table of spacings: {error}', remedy) from error
  if not all(mm > 0 and math.isfinite(mm) for row in found.values() for mm in row):
    raise InputError(str(path), 'a size that is none', remedy)
  return found


def _convert_png(folder: Path, source: Path, known_mm: Spacing | None) -> Imported:
  scan_id = file_name(source.name, 'scan')
  ct, infection, lungs = (_stack(source / kind, scan_id) for kind in _PNG_KINDS)
  names = [[path.name for path in _slices(source / kind)] for kind in _PNG_KINDS]
  if not ct.shape == infection.shape == lungs.shape or names != 3 * names[:1]:
    shapes = ', '.join(str(v.shape) for v in (ct, infection, lungs))
    raise MaskGridError(
      scan_id,
      f'CT, infection and lungs differ in names or size of slices, {shapes}',
      'give every slice its two masks, of its name and size',
    )
  spacing_mm, own = known_mm or PNG_SPACING_MM, folder / scan_id
  grid = place_at(spacing_mm, ct.shape)
  nifti.write_volume(own / 'ct.nii.gz', from_bytes(ct), grid, dtype=np.float32)
  write_mask(own / 'infection.nii.gz', infection > 0, grid)
  write_mask(own / 'lungs.nii.gz', lungs > 0, grid)
  row = ManifestRow(
    source.name,
    scan_id,
    own / 'ct.nii.gz',
    infection_mask=own / 'infection.nii.gz',
    lung_mask=own / 'lungs.nii.gz',
    window=BYTE_WINDOW,
    domain=EQUALISED,
  )
  told = 'given as' if known_mm else 'not recorded, assumed'
  size = ' x '.join(f'{s:g}' for s in spacing_mm)
  return Imported(row, (f'8-bit values, not HU; spacing {told} {size} mm',))


def _stack(folder: Path, scan_id: str) -> np.ndarray:
  """(x, y, z) uint8."""
  slices = [_pixels(path, scan_id) for path in _slices(folder)]
  if len({s.shape for s in slices}) > 1:
    found = f'slices of several sizes in {folder.name}'
    raise DamagedFileError(scan_id, found, 'give slices of one size')
  return np.stack(slices).transpose(2, 1, 0)


def _slices(folder: Path) -> list[Path]:
  """By number, whether or not it is padded with zeros."""
  return sorted(folder.glob('*.png'), key=lambda path: (len(path.stem), path.stem))


def _pixels(path: Path, scan_id: str) -> np.ndarray:
  """(row, column) uint8."""
  try:
    with Image.open(path) as image:
      if image.mode not in ('L', '1'):
        found = f'{path.name} holds pixels of mode {image.mode}'
        raise DamagedFileError(scan_id, found, 'save it as 8-bit grey')
      return np.asarray(image.convert('L'))
  except (OSError, SyntaxError) as error:
    raise DamagedFileError(
      scan_id, f'{path.name} is cut short, or no PNG', 'copy it again'
    ) from error


def find_medseg(folder: Path) -> dict[str, Convert]:
  """MedSeg: its 9 volumes, its 100 unrelated slices, or both.

  Whom the slices belong to is not told, of more than 40 patients: all count as one, so
  that none can be on both sides of a split.

  Raises:
    InputError: the folder holds neither, or parts of them.
  """
  found = find_medseg_volumes(folder)
  if 'tr_im' in dict(volumes(folder)):
    stack = _medseg_stack(folder)
    for k in range(stack[0].shape[2]):
      single = functools.partial(_convert_single, source=folder, k=k)
      found[_single_id(k)] = single
  if not found:
    wanted = ['tr_im.nii.gz, tr_mask.nii.gz', 'rp_im/1.nii.gz, rp_msk/1.nii.gz']
    raise unmatched(folder, 'MedSeg', wanted)
  return found


def _single_id(k: int) -> str:
  return f'medseg-slice-{k:03}'


@functools.lru_cache(maxsize=1)
def _medseg_stack(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, Grid]:
  """Signal in HU, classes, lungs (all 0 if there are none), and their grid."""
  files = dict(volumes(folder))
  values, grid = nifti.read_volume(files['tr_im'], scan_id='tr_im')
  if is_bytes(values):
    raise InputError('tr_im', 'windowed to 0-255', 'it is distributed in HU')
  if 'tr_mask' not in files:
    raise InputError('tr_im', 'no tr_mask beside it', 'download it, too')
  classes = nifti.read_mask(files['tr_mask'], grid, scan_id='tr_mask')
  masks = [name for name in files if name.startswith('tr_lungmasks')]
  lungs = np.zeros(grid.shape, np.uint8)
  if masks:
    lungs = nifti.read_mask(files[masks[-1]], grid, scan_id=masks[-1])
  return values, classes, lungs, grid


def _convert_single(folder: Path, source: Path, k: int) -> Imported:
  values, classes, lungs, stack = _medseg_stack(source)
  scan_id, shape = _single_id(k), (*stack.shape[:2], SINGLE_PLANES)
  grid = place_at((*stack.spacing_mm[:2], SINGLE_APART_MM), shape)
  own = folder / scan_id

  def repeated(volume: np.ndarray) -> np.ndarray:
    return np.repeat(volume[:, :, k : k + 1], SINGLE_PLANES, axis=2)

  infection = np.isin(repeated(classes), MEDSEG_INFECTION)
  nifti.write_volume(own / 'ct.nii.gz', repeated(values), grid, dtype=np.float32)
  write_mask(own / 'infection.nii.gz', infection, grid)
  has_lungs = lungs[:, :, k].any()
  if has_lungs:
    write_mask(own / 'lungs.nii.gz', repeated(lungs > 0), grid)
  row = ManifestRow(
    'medseg-slices',
    scan_id,
    own / 'ct.nii.gz',
    infection_mask=own / 'infection.nii.gz',
    lung_mask=own / 'lungs.nii.gz' if has_lungs else None,
    domain=SINGLE,
  )
  note = (
    f'a slice alone: repeated in {SINGLE_PLANES} planes {SINGLE_APART_MM:g} mm apart; '
    'its HU are an estimate of the distributors'
  )
  return Imported(row, (note,))
