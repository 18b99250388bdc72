"""Serial scans as small NIfTI files, whose progression and histograms are known."""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from covid3way.base import Grid, Window
from covid3way.scans import nifti
from covid3way.scans.manifest import ManifestRow, write_manifest
from covid3way.simulator import trajectory
from covid3way.simulator.parameters import Parameters
from covid3way.simulator.state import Anatomy, Settings, State
from covid3way.standard.space import StandardSpace

# The scans' own grid is that of the standard space: casting changes nothing.
SPACE = StandardSpace((32, 32, 48))
WINDOW = Window(-600.0, 1200.0, 'manifest')
TRUE_W = Parameters()


def lungs() -> np.ndarray:
  """(x, y, z) uint8: two boxes, centred; x grows to the left."""
  labels = np.zeros(SPACE.shape, np.uint8)
  labels[18:28, 6:26, 8:40], labels[4:14, 6:26, 8:40] = 1, 2
  return labels


def anatomy() -> Anatomy:
  """Both lungs are susceptible throughout."""
  return Anatomy(jnp.asarray(lungs() > 0), SPACE.spacing_mm)


@functools.cache
def course(days: tuple[float, ...], seed: int = 0) -> tuple[State, ...]:
  """States of one patient at these days, the first a lesion of 1,000 voxels."""
  rng = np.random.default_rng(seed)
  infection = np.zeros(SPACE.shape, bool)
  infection[5:13, 9:21, 12:24] = True
  signal = np.where(lungs() > 0, -0.22, 0.5) + rng.normal(0, 0.01, SPACE.shape)
  signal[infection] = rng.uniform(-0.12, 0.12, infection.sum())
  state = State(jnp.asarray(signal, jnp.float32), jnp.asarray(infection))
  states, key = [state], jax.random.key(seed)
  for before, after in itertools.pairwise(days):
    state = trajectory.run(
      key,
      state,
      TRUE_W,
      anatomy(),
      Settings(),
      steps=round(100 * (after - before)),
      start=round(100 * before),
    )
    states.append(state)
  return tuple(states)


def write_scan(folder: Path, row: ManifestRow, state: State) -> ManifestRow:
  """Writes a state as a scan with its masks; the row with their paths."""
  folder.mkdir(exist_ok=True, parents=True)
  grid = Grid(SPACE.shape, np.diag([*SPACE.spacing_mm, 1.0]))
  hu = np.asarray(state.signal) * WINDOW.width_hu + WINDOW.level_hu
  paths = {
    'image': (folder / f'{row.scan_id}.nii.gz', hu, np.float32),
    'infection_mask': (
      folder / f'{row.scan_id}-infection.nii.gz',
      np.asarray(state.infection),
      np.uint8,
    ),
    'lung_mask': (folder / f'{row.scan_id}-lungs.nii.gz', lungs(), np.uint8),
  }
  for path, volume, dtype in paths.values():
    nifti.write_volume(path, volume, grid, dtype=dtype)
  return dataclasses.replace(row, **{name: p for name, (p, _, _) in paths.items()})


def write_patient(
  folder: Path, patient_id: str, days: tuple[float, ...], seed: int = 0
) -> list[ManifestRow]:
  """Writes a patient's scans; returns their rows, the earliest first."""
  return [
    write_scan(
      folder,
      ManifestRow(patient_id, f'{patient_id}-{n}', folder, day=day, window=WINDOW),
      state,
    )
    for n, (day, state) in enumerate(zip(days, course(days, seed), strict=True), 1)
  ]


def write_cohort(folder: Path, **days: tuple[float, ...]) -> Path:
  """Writes patients by name, each scanned at these days; returns the manifest."""
  rows = [
    row
    for seed, (patient_id, at) in enumerate(days.items())
    for row in write_patient(folder, patient_id, at, seed)
  ]
  write_manifest(folder / 'manifest.csv', rows)
  return folder / 'manifest.csv'
