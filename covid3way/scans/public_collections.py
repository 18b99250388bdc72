"""Importers of COVID-19-CT-Seg-20, MosMedData, COVID-19-20 and MedSeg's volumes.

Each takes the folder into which the files were unpacked, under the names under which
they are distributed. Scans of one patient are recognised where the names tell.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from covid3way.base import InputError, Window
from covid3way.scans.manifest import ManifestRow, is_scan_id
from covid3way.scans.public import Convert, convert_volume, unmatched, volumes

# [-1250, 250] HU became 0 to 255 in COVID-19-CT-Seg-20, says its description.
RADIOPAEDIA_WINDOW = Window(-500.0, 1500.0, 'manifest')
# MedSeg: 1 ground glass, 2 consolidation, 3 pleural effusion, which is not in the lung.
MEDSEG_INFECTION = (1, 2)


def find_covid_seg_20(folder: Path) -> dict[str, Convert]:
  """COVID-19-CT-Seg-20 (Zenodo 3757476): ten scans in HU, ten windowed to 8 bits.

  Two of the Radiopaedia cases come with two scans each: 18 patients.

  Raises:
    InputError: the folder holds something else, or a scan lacks a mask.
  """
  names = ('COVID-19-CT-Seg_20cases', 'Infection_Mask', 'Lung_Mask')
  scans, infections, lungs = (_by_id(folder / name) for name in names)
  if not (scans and infections and lungs):
    raise unmatched(
      folder, 'COVID-19-CT-Seg-20', [f'{n}/coronacases_001.nii.gz' for n in names]
    )
  found = {}
  for scan_id, image in scans.items():
    source = scan_id.split('_')[0]
    row = ManifestRow(
      # radiopaedia_10_85902_1 and radiopaedia_10_85902_3 are of case 10.
      '_'.join(scan_id.split('_')[:2]),
      scan_id,
      image,
      infection_mask=_belonging(infections, scan_id, names[1]),
      lung_mask=_belonging(lungs, scan_id, names[2]),
      site=source,
    )
    window = RADIOPAEDIA_WINDOW if source == 'radiopaedia' else None
    found[scan_id] = functools.partial(convert_volume, row=row, bytes_window=window)
  return found


def _by_id(folder: Path) -> dict[str, Path]:
  """Scan to file; copies of the collection write the names in several ways."""
  found = {}
  for name, path in volumes(folder):
    if digits := re.search(r'coronacases\D*(\d+)$', name):
      found[f'coronacases_{int(digits[1]):03}'] = path
    elif digits := re.search(r'radiopaedia.*?(\d+_\d+_\d+)', name):
      found[f'radiopaedia_{digits[1]}'] = path
  return found


def find_mosmed(folder: Path) -> dict[str, Convert]:
  """MosMedData: 1110 studies of as many patients, 50 with an infection mask.

  The stage is the class, CT-0 (no sign of pneumonia) to CT-4.

  Raises:
    InputError: the folder holds something else.
  """
  masks = dict(volumes(folder / 'masks'))
  found = {}
  for stage in sorted((folder / 'studies').glob('CT-[0-4]')):
    for name, image in volumes(stage):
      row = ManifestRow(
        name,
        name,
        image,
        infection_mask=masks.get(f'{name}_mask'),
        stage=stage.name,
        site='moscow',
      )
      _add(found, row)
  if not found:
    raise unmatched(folder, 'MosMedData', ['studies/CT-0/study_0001.nii.gz'])
  return found


def find_covid_19_20(folder: Path) -> dict[str, Convert]:
  """COVID-19-20: training scans with an infection mask, validation scans without.

  Raises:
    InputError: the folder holds something else, or a training scan lacks its mask.
  """
  found = {}
  for part in ('Train', 'Validation'):
    files = dict(volumes(folder / part))
    for name, image in _images(files):
      mask = _belonging(files, f'{name}_seg', part) if part == 'Train' else None
      patient = re.match(r'.*?-A-\d+', name)
      patient_id = patient[0] if patient else name
      _add(found, ManifestRow(patient_id, name, image, infection_mask=mask))
  if not found:
    wanted = [f'{p}/volume-covid19-A-0000_ct.nii.gz' for p in ('Train', 'Validation')]
    raise unmatched(folder, 'COVID-19-20', wanted)
  return found


def _images(files: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
  for name, path in files.items():
    if name.endswith('_ct'):
      yield name.removesuffix('_ct'), path


def find_medseg_volumes(folder: Path) -> dict[str, Convert]:
  """MedSeg's 9 volumes from Radiopaedia; none if the folder does not hold them.

  Some may be of patients who are in COVID-19-CT-Seg-20, too.

  Raises:
    InputError: a scan lacks its infection mask.
  """
  names = ('rp_im', 'rp_msk', 'rp_lung_msk')
  scans, infections, lungs = (dict(volumes(folder / name)) for name in names)
  found = {}
  for name, image in scans.items():
    row = ManifestRow(
      f'medseg-{name}',
      f'medseg-{name}',
      image,
      infection_mask=_belonging(infections, name, names[1]),
      lung_mask=lungs.get(name),
      site='radiopaedia',
    )
    _add(found, row, classes=MEDSEG_INFECTION)
  return found


def _add(found: dict[str, Convert], row: ManifestRow, **options) -> None:
  if row.scan_id in found or not is_scan_id(row.scan_id):
    found = 'the name of another scan, or unfit for one'
    raise InputError(row.scan_id, found, 'remove copies, keep the names as distributed')
  found[row.scan_id] = functools.partial(convert_volume, row=row, **options)


def _belonging(masks: Mapping[str, Path], name: str, place: str) -> Path:
  if name not in masks:
    raise InputError(name, f'no mask of this name in {place}', 'unpack all files again')
  return masks[name]
