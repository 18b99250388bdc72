"""What tests of DICOM objects share: a source series, and readers that are not ours."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import foreign
import numpy as np
import series
from pydicom.dataset import Dataset

from covid3way import base
from covid3way.scans import dicom_source

TURNED = (0.8, 0.6, 0, -0.6, 0.8, 0)
DECUBITUS = (0, 1, 0, -1, 0, 0)
HEAD_DOWN = (1, 0, 0, 0, -1, 0)
FROM_BEHIND = (-1, 0, 0, 0, 0, 1)
ORIENTATIONS = {
  'supine': series.SUPINE,
  'prone': series.PRONE,
  'feet first': series.FEET_FIRST,
  'head down': HEAD_DOWN,
  'decubitus': DECUBITUS,
  'coronal': series.CORONAL,
  'coronal from behind': FROM_BEHIND,
  'sagittal': series.SAGITTAL,
  'oblique': TURNED,
}


def grid_of(slices: list[Dataset]) -> base.Grid:
  """PS3.3 equation C.7.6.2.1-1, of slices an even step apart."""
  first, second = (np.array(s.ImagePositionPatient, float) for s in slices[:2])
  row, column = np.reshape(np.array(slices[0].ImageOrientationPatient, float), (2, 3))
  between_rows, between_columns = (float(v) for v in slices[0].PixelSpacing)
  affine = np.eye(4)
  affine[:3] = np.c_[
    row * between_columns, column * between_rows, second - first, first
  ]
  shape = int(slices[0].Columns), int(slices[0].Rows), len(slices)
  return base.Grid(shape, affine)


def source_of(slices, grid=None, *, identified=False, scan_id='scan-7'):
  return dicom_source.describe(
    [(each, 0) for each in slices],
    grid or grid_of(slices),
    scan_id=scan_id,
    identified=identified,
  )


def enhanced(slices: list[Dataset], order) -> Dataset:
  """Slices as the frames of one multi-frame CT, stored in `order`."""
  image = series.ct_slice(
    0, np.zeros((slices[0].Rows, slices[0].Columns)), signed=False
  )
  image.SOPClassUID = '1.2.840.10008.5.1.4.1.1.2.1'
  image.NumberOfFrames = len(slices)
  image.PixelData = b''.join(slices[k].PixelData for k in order)
  image.RescaleSlope, image.RescaleIntercept = 1, -1024
  measures, orientation = Dataset(), Dataset()
  measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, 3
  orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
  shared = Dataset()
  shared.PixelMeasuresSequence = [measures]
  shared.PlaneOrientationSequence = [orientation]
  image.SharedFunctionalGroupsSequence = [shared]
  image.PerFrameFunctionalGroupsSequence = []
  for k in order:
    position, frame = Dataset(), Dataset()
    position.ImagePositionPatient = slices[k].ImagePositionPatient
    frame.PlanePositionSequence = [position]
    image.PerFrameFunctionalGroupsSequence.append(frame)
  return image


def masks(grid: base.Grid, seed=0) -> tuple[np.ndarray, np.ndarray]:
  """Infection and lungs, (x, y, z), with no symmetry."""
  random = np.random.default_rng(seed)
  lungs = random.integers(0, 3, grid.shape).astype(np.uint8)
  return (random.random(grid.shape) > 0.6) & (lungs > 0), lungs


def on_grid(made: Dataset, frames: np.ndarray, grid: base.Grid, segment: int):
  """(x, y, z) float, what the frames of a segment say at the voxels of `grid`; 0 else.

  Out of the tags alone: position, orientation and spacing of each frame.
  """
  shared = made.SharedFunctionalGroupsSequence[0]
  spacing = shared.PixelMeasuresSequence[0].PixelSpacing
  directions = shared.PlaneOrientationSequence[0].ImageOrientationPatient
  row, column = np.reshape(np.array(directions, float), (2, 3))
  result = np.zeros(grid.shape)
  for frame, values in zip(made.PerFrameFunctionalGroupsSequence, frames, strict=True):
    own = frame if 'SegmentIdentificationSequence' in frame else shared
    if own.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
      continue
    j, i = np.mgrid[: made.Rows, : made.Columns]
    position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    world = position + np.multiply.outer(i * float(spacing[1]), row)
    put(result, grid, world + np.multiply.outer(j * float(spacing[0]), column), values)
  return result


def put(volume: np.ndarray, grid: base.Grid, world: np.ndarray, values) -> None:
  """Values at LPS places, which must be voxels, into (x, y, z)."""
  inverse = np.linalg.inv(grid.affine)
  voxels = world @ inverse[:3, :3].T + inverse[:3, 3]
  np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-3)
  volume[tuple(np.moveaxis(np.rint(voxels).astype(int), -1, 0))] = values


def texts(dataset: Dataset) -> Iterator[str]:
  """Every value of every element, those of sequences and of the file's header, too."""
  for element in [*getattr(dataset, 'file_meta', []), *dataset.iterall()]:
    if element.VR not in ('SQ', 'OB', 'OW'):
      yield f'{element.keyword}={element.value}'


def errors_of(path: Path) -> list[str]:
  """What David Clunie's validator calls an error."""
  program = shutil.which('dciodvfy')
  if not program:
    foreign.absent('dciodvfy', 'install the Debian package dicom3tools')
  run = subprocess.run([program, str(path)], capture_output=True, text=True)
  told = (run.stdout + run.stderr).splitlines()
  assert any('Segmentation' in line or 'SR' in line for line in told), told
  return [line for line in told if line.startswith('Error')]
