"""Chests of some thousand voxels as DICOM series, with their masks and a manifest."""

import dataclasses
from pathlib import Path

import numpy as np

from covid3way.base import Grid
from covid3way.scans import dicom_writer, nifti
from covid3way.scans.manifest import ManifestRow, write_manifest

PATIENT = 'Zebedee^Quirin'  # And QXZ4711, in DICOM; the manifest has the name, too.
SHAPE, SPACING_MM = (30, 28, 40), (11.0, 12.0, 10.0)
GRID = Grid(SHAPE, np.diag([*SPACING_MM, 1.0]))


def chest(seed: int) -> tuple[np.ndarray, ...]:
  """(x, y, z) HU, lungs, lobes and infection: one lesion in the right lung."""
  lungs = np.zeros(SHAPE, np.uint8)
  lungs[17:26, 6:22, 6:34], lungs[4:13, 6:22, 6:34] = 1, 2
  upper, lower = lungs.copy(), lungs.copy()
  upper[:, :, :20], lower[:, :, 20:] = 0, 0
  lobes = 1 * (upper == 1) + 2 * (lower == 1) + 3 * (upper == 2) + 5 * (lower == 2)
  infection = np.zeros(SHAPE, bool)
  infection[5:10, 8:14, 9 : 12 + 3 * seed] = True
  hu = np.where(lungs > 0, -850.0, 40.0)
  hu[:2], hu[-2:] = -1000, -1000
  hu[infection] = -400
  hu += np.random.default_rng(seed).normal(0, 20, SHAPE)
  return np.rint(hu), lungs, lobes.astype(np.uint8), infection


def write_cohort(folder: Path) -> Path:
  """Writes two scans of one patient, one of another; `manifest.csv` has all of them.

  The last has no lobe mask.
  """
  scans = (PATIENT, 'a-1', 0.0), (PATIENT, 'a-2', 4.5), ('b', 'b-1', 0.0)
  rows = [
    _write_scan(folder, patient, scan, day, seed)
    for seed, (patient, scan, day) in enumerate(scans, 1)
  ]
  rows[2] = dataclasses.replace(rows[2], lobe_mask=None)
  write_manifest(folder / 'manifest.csv', rows)
  return folder


def _write_scan(
  folder: Path, patient: str, scan: str, day: float, seed: int
) -> ManifestRow:
  hu, *masks = chest(seed)
  image = folder / scan
  image.mkdir()
  names = {'PatientName': PATIENT, 'PatientID': 'QXZ4711'}
  dicom_writer.write_series(image, hu, GRID, header=names, seed_uid=scan)
  paths = {}
  for kind, mask in zip(('lung', 'lobe', 'infection'), masks, strict=True):
    paths[f'{kind}_mask'] = folder / f'{scan}-{kind}.nii.gz'
    nifti.write_volume(paths[f'{kind}_mask'], mask, GRID, dtype=np.uint8)
  return ManifestRow(patient, scan, image, day=day, stage='early', **paths)
