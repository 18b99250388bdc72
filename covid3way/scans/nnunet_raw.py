"""Raw datasets of nnU-Net v2: `dataset.json`, `imagesTr`, `labelsTr`, `imagesTs`.

Names of cases carry no patient. A file `patients.csv` beside `dataset.json`, with the
columns `case` and `patient_id`, tells them, and is written with a dataset; without it
every case is its own patient.
"""

import csv
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covid3way import progress
from covid3way.base import DamagedFileError, InputError
from covid3way.scans import nifti, source
from covid3way.scans.files import whole, write_json
from covid3way.scans.manifest import ManifestRow, is_scan_id
from covid3way.scans.nnunet import read_json
from covid3way.scans.public import (
  BYTE_WINDOW,
  EQUALISED,
  WINDOWED,
  Convert,
  Imported,
  convert_volume,
  unmatched,
  volumes,
  write_mask,
)

ENDING = '.nii.gz'
CT = 'CT'  # The channel's name by which nnU-Net knows Hounsfield units.
LABELS = {'background': 0, 'infection': 1}
_PATIENTS = ('case', 'patient_id')


def find_dataset(folder: Path, infection: Sequence[str] = ()) -> dict[str, Convert]:
  """The scans of a raw dataset: `imagesTr` with their labels, `imagesTs` without.

  Args:
    folder: `DatasetNNN_NAME`.
    infection: names of the labels that are infection; not given: the one of that name,
      or the only one.

  Raises:
    InputError: no such dataset, several channels, or unclear labels.
    DamagedFileError: a file of it cannot be understood.
  """
  wanted = 'dataset.json', 'imagesTr/CASE_0000.nii.gz'
  if not (folder / 'dataset.json').is_file():
    raise unmatched(folder, 'an nnU-Net dataset', wanted)
  about = read_json(folder / 'dataset.json')
  domain, classes = _domain(about, folder), _classes(about, infection, folder)
  labels, patients = dict(volumes(folder / 'labelsTr')), _read_patients(folder)
  found = {}
  for part in ('imagesTr', 'imagesTs'):
    for name, image in volumes(folder / part):
      case = name.removesuffix('_0000')
      if case == name or not is_scan_id(case) or case in found:
        remedy = 'name one file CASE_0000.nii.gz, letters and digits, per case'
        raise InputError(str(folder), f'{part}/{image.name} is no new case', remedy)
      if part == 'imagesTr' and case not in labels:
        raise InputError(case, f'no labelsTr/{case}{ENDING}', 'add it')
      if patients and case not in patients:
        raise InputError(case, 'not in patients.csv', 'add its line')
      row = ManifestRow(
        patients.get(case, case),
        case,
        image,
        infection_mask=labels[case] if part == 'imagesTr' else None,
        window=BYTE_WINDOW if domain in (EQUALISED, WINDOWED) else None,
        domain=domain,
      )
      found[case] = functools.partial(convert_volume, row=row, classes=classes)
  if not found:
    raise unmatched(folder, 'an nnU-Net dataset', wanted)
  return found


def _domain(about: Mapping[str, Any], folder: Path) -> str:
  channels = about.get('channel_names')
  if not isinstance(channels, Mapping) or list(channels) != ['0']:
    raise InputError(
      str(folder),
      f'channel_names of dataset.json are {channels!r}',
      'give a v2 dataset of one channel, {"0": "CT"}',
    )
  return '' if channels['0'] == CT else str(channels['0'])


def _classes(
  about: Mapping[str, Any], chosen: Sequence[str], folder: Path
) -> frozenset[int]:
  """Values of the labels that are infection."""
  labels = about.get('labels')
  if not isinstance(labels, Mapping) or labels.get('background') != 0:
    found = f'labels of dataset.json are {labels!r}'
    raise InputError(
      str(folder), found, 'write them as v2 does, {"background": 0, ...}'
    )
  names = [name for name in labels if name != 'background']
  if 'ignore' in names:
    found = 'partly annotated: it has the label ignore'
    raise InputError(str(folder), found, 'leave out the cases that are not annotated')
  by_name = ['infection'] if 'infection' in names else names
  wanted = list(chosen) or by_name
  if not chosen and len(by_name) != 1:
    found = f'several labels, {", ".join(names)}'
    remedy = 'name those that are infection, --config.infection_labels=...,...'
    raise InputError(str(folder), found, remedy)
  if unknown := [name for name in wanted if name not in names]:
    found = f'no label {", ".join(unknown)}'
    raise InputError(str(folder), found, f'choose among {", ".join(names)}')
  merged = [v for name in wanted for v in _values(labels[name])]
  if not all(isinstance(v, int) and 0 < v < 256 for v in merged):
    found = f'labels of dataset.json stand for {merged}'
    raise InputError(str(folder), found, 'number them from 1 on')
  if wanted != ['infection']:
    progress.say(f'taken for infection: {", ".join(wanted)}')
  return frozenset(merged)


def _values(label: Any) -> list:
  """Of a label; a region, as nnU-Net calls it, has several."""
  return label if isinstance(label, list) else [label]


def _read_patients(folder: Path) -> dict[str, str]:
  path = folder / 'patients.csv'
  if not path.exists():
    progress.say('no patients.csv: every case counts as a patient of its own')
    return {}
  with path.open(newline='', encoding='utf-8-sig') as stream:
    table = csv.DictReader(stream)
    if tuple(table.fieldnames or ()) != _PATIENTS:
      found = f'columns {table.fieldnames}'
      raise DamagedFileError(str(path), found, f'use {",".join(_PATIENTS)}')
    patients = {line['case']: line['patient_id'] for line in table}
  if not all(patients.values()):
    raise DamagedFileError(str(path), 'a case without patient_id', 'fill it in')
  return patients


def write_case(folder: Path, row: ManifestRow) -> Imported:
  """Adds a scan to a raw dataset, on its own grid: to `imagesTs` if it has no mask.

  Returns:
    Its row, with the files of the dataset.

  Raises:
    Covid3wayError: it cannot be read, or its mask is on another grid.
  """
  scan = source.read_scan(row)
  part = 'Tr' if row.infection_mask else 'Ts'
  image = folder / f'images{part}' / f'{row.scan_id}_0000{ENDING}'
  label = folder / f'labels{part}' / f'{row.scan_id}{ENDING}'
  if row.infection_mask:
    mask = nifti.read_mask(row.infection_mask, scan.grid, scan_id=row.scan_id)
    write_mask(label, mask > 0, scan.grid)
  nifti.write_volume(image, scan.hu, scan.grid, dtype=np.float32)
  notes = [warning.message for warning in scan.warnings]
  if scan.windows and row.window is None:
    found = ', '.join(f'{w.level_hu:g}/{w.width_hu:g}' for w in scan.windows)
    notes.append(f'its header has the windows {found}, which NIfTI cannot hold')
  row = dataclasses.replace(
    row, image=image, infection_mask=label if row.infection_mask else None
  )
  return Imported(row, tuple(notes))


def write_description(folder: Path, rows: Sequence[ManifestRow]) -> None:
  """Writes `dataset.json` and `patients.csv` of the cases in a raw dataset.

  Raises:
    StorageError: the disk refused.
  """
  (domain,) = {row.domain for row in rows}
  description = {
    'channel_names': {'0': domain or CT},
    'labels': LABELS,
    'numTraining': sum(row.infection_mask is not None for row in rows),
    'file_ending': ENDING,
  }
  write_json(folder / 'dataset.json', description)
  path = folder / 'patients.csv'
  with whole(path) as aside, aside.open('w', newline='', encoding='utf-8') as stream:
    table = csv.writer(stream, lineterminator='\n')
    table.writerow(_PATIENTS)
    table.writerows((row.scan_id, row.patient_id) for row in rows)
