"""Writes a phantom cohort as a hospital would send it: DICOM, masks and a manifest."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, Grid
from covid3way.jobs.batch import claim
from covid3way.phantom.acquire import acquire
from covid3way.phantom.cohort import Member, draw_cohort
from covid3way.phantom.patient import make_patient
from covid3way.phantom.protocols import MEDIASTINAL_WINDOW_HU, Protocol
from covid3way.scans import nifti
from covid3way.scans.dicom_writer import write_series
from covid3way.scans.files import whole
from covid3way.scans.manifest import ManifestRow, write_manifest


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `<patient_id>/` per patient, and `manifest.csv`.

  Each holds `ct/` (a DICOM series), `infection.nii.gz` and `lungs.nii.gz` (1 left, 2
  right). The same seed gives the same bytes.
  """
  settings = config.phantom
  if settings.patients < 1:
    raise ConfigError(
      'config.phantom.patients', f'{settings.patients}', 'use 1 or more'
    )
  seeded = {k: v for k, v in settings.to_dict().items() if k != 'processes'}
  claim(workdir, 'phantom', seeded)
  members = draw_cohort(settings.seed, settings.patients)
  todo = [m for m in members if not (workdir / m.patient_id).exists()]
  plain = settings.matrix, settings.anatomy_spacing_mm
  # Fresh processes: a fork would inherit the threads of JAX.
  with ProcessPoolExecutor(settings.processes, mp_context=get_context('spawn')) as pool:
    futures = [pool.submit(_write_patient, m, workdir, *plain) for m in todo]
    for future, member in zip(
      progress.track(futures, what='phantom'), todo, strict=True
    ):
      future.result()
      progress.say(f'phantom: {member.patient_id} ({member.stage}) done')
  write_manifest(workdir / 'manifest.csv', [_row(m, workdir) for m in members])
  progress.say(f'{len(members)} phantom patients under {workdir}')


def _write_patient(
  member: Member, workdir: Path, matrix: int, anatomy_spacing_mm: float
) -> None:
  protocol = member.protocol
  patient = make_patient(
    member.seed, stage=member.stage, protocol=protocol, spacing_mm=anatomy_spacing_mm
  )
  rng = np.random.default_rng([member.seed, 1])
  scan = acquire(patient, protocol, matrix=matrix, rng=rng)
  grid = Grid(scan.hu.shape, scan.affine)
  with whole(workdir / member.patient_id) as folder:
    (folder / 'ct').mkdir(parents=True)
    write_series(
      folder / 'ct',
      scan.hu,
      grid,
      header=_header(member),
      seed_uid=f'{member.patient_id} {member.seed}',
    )
    for name, mask in (('infection', scan.infection), ('lungs', scan.lungs)):
      nifti.write_volume(folder / f'{name}.nii.gz', mask, grid, dtype=np.uint8)


def _header(member: Member) -> dict[str, Any]:
  protocol = member.protocol
  return {
    'PatientID': member.patient_id,
    'PatientName': f'Phantom^{member.patient_id}',
    'Manufacturer': protocol.manufacturer,
    'ManufacturerModelName': protocol.model,
    'KVP': protocol.kvp,
    'SliceThickness': protocol.thickness_mm,
    **_window_tags(protocol),
  }


def _window_tags(protocol: Protocol) -> dict[str, Any]:
  """What this scanner leaves in the window tags: rarely just the lung window."""
  lung = (protocol.level_hu, protocol.width_hu)
  windows = {
    'lung': [lung],
    'mediastinal': [MEDIASTINAL_WINDOW_HU],
    'two-valued': [MEDIASTINAL_WINDOW_HU, lung],
    'absent': [],
  }[protocol.window_tags]
  if not windows:
    return {}
  levels, widths = zip(*windows, strict=True)
  return {'WindowCenter': list(levels), 'WindowWidth': list(widths)}


def _row(member: Member, workdir: Path) -> ManifestRow:
  folder = workdir / member.patient_id
  return ManifestRow(
    patient_id=member.patient_id,
    scan_id=member.patient_id,
    image=folder / 'ct',
    day=0.0,
    infection_mask=folder / 'infection.nii.gz',
    lung_mask=folder / 'lungs.nii.gz',
    stage=member.stage,
    scanner=member.protocol.protocol_id,
    site=member.protocol.hospital,
  )
