"""Writes a phantom cohort as a hospital would send it: DICOM, masks and a manifest."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, Grid
from covid3way.jobs.batch import claim
from covid3way.phantom.acquire import Acquisition, acquire
from covid3way.phantom.cohort import Member, draw_cohort
from covid3way.phantom.patient import make_patient
from covid3way.phantom.protocols import MEDIASTINAL_WINDOW_HU, Protocol
from covid3way.scans import nifti
from covid3way.scans.dicom_writer import write_series
from covid3way.scans.files import whole, write_json
from covid3way.scans.manifest import ManifestRow, write_manifest
from covid3way.simulator import parameters


def run(config: ConfigDict, workdir: Path) -> None:
  """Writes `<patient_id>/` per patient, and `manifest.csv`.

  Each holds `truth.json` and, per time point, `dayNN/` with `ct/` (a DICOM series),
  `infection.nii.gz` and `lungs.nii.gz` (1 left, 2 right). The same seed gives the same
  bytes.
  """
  settings = config.phantom
  if settings.patients < 1:
    raise ConfigError(
      'config.phantom.patients', f'{settings.patients}', 'use 1 or more'
    )
  seeded = {k: v for k, v in settings.to_dict().items() if k != 'processes'}
  claim(workdir, 'phantom', seeded)
  members = draw_cohort(
    settings.seed, settings.patients, time_points=tuple(settings.time_points)
  )
  todo = [m for m in members if not (workdir / m.patient_id).exists()]
  plain = settings.matrix, settings.anatomy_spacing_mm
  # Fresh processes: a fork would inherit the threads of JAX.
  with ProcessPoolExecutor(settings.processes, mp_context=get_context('spawn')) as pool:
    futures = [pool.submit(_write_patient, m, workdir, *plain) for m in todo]
    for future, member in zip(
      progress.track(futures, what='phantom'), todo, strict=True
    ):
      future.result()
      progress.say(f'phantom: {member.patient_id} ({len(member.days)} scans) done')
  write_manifest(
    workdir / 'manifest.csv', [r for m in members for r in _rows(m, workdir)]
  )
  progress.say(f'{len(members)} phantom patients under {workdir}')


def _write_patient(
  member: Member, workdir: Path, matrix: int, anatomy_spacing_mm: float
) -> None:
  patients = make_patient(
    member.seed,
    stage=member.stage,
    protocol=member.protocol,
    days=member.days,
    spacing_mm=anatomy_spacing_mm,
  )
  truth = {}
  with whole(workdir / member.patient_id) as folder:
    for number, patient in enumerate(patients):
      rng = np.random.default_rng([member.seed, number + 1])
      scan = acquire(patient, member.protocol, matrix=matrix, rng=rng)
      _write_scan(folder / _day(patient.day), member, patient.day, scan)
      truth[_scan_id(member, patient.day)] = {
        'day': patient.day,
        'stage': patient.stage,
        'infected_percent': round(100 * patient.share, 4),
      }
    w = parameters.as_dict(patient.w)
    write_json(folder / 'truth.json', {'W': w, 'scans': truth})


def _write_scan(folder: Path, member: Member, day: float, scan: Acquisition) -> None:
  (folder / 'ct').mkdir(parents=True)
  grid = Grid(scan.hu.shape, scan.affine)
  write_series(
    folder / 'ct',
    scan.hu,
    grid,
    header=_header(member),
    seed_uid=f'{_scan_id(member, day)} {member.seed}',
  )
  for name, mask in (('infection', scan.infection), ('lungs', scan.lungs)):
    nifti.write_volume(folder / f'{name}.nii.gz', mask, grid, dtype=np.uint8)


def _day(day: float) -> str:
  return f'day{day:02.0f}'


def _scan_id(member: Member, day: float) -> str:
  return f'{member.patient_id}-{_day(day)}'


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


def _rows(member: Member, workdir: Path) -> list[ManifestRow]:
  folder = workdir / member.patient_id
  truth = json.loads((folder / 'truth.json').read_text())['scans']
  return [
    ManifestRow(
      patient_id=member.patient_id,
      scan_id=scan_id,
      image=folder / _day(known['day']) / 'ct',
      day=known['day'],
      infection_mask=folder / _day(known['day']) / 'infection.nii.gz',
      lung_mask=folder / _day(known['day']) / 'lungs.nii.gz',
      stage=known['stage'],
      scanner=member.protocol.protocol_id,
      site=member.protocol.hospital,
    )
    for scan_id, known in truth.items()
  ]
