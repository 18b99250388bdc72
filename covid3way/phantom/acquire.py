"""From a patient to a scan: blur, slice profile, sampling, noise, whole HU."""

import dataclasses

import numpy as np
import scipy.sparse

from covid3way.phantom import fields
from covid3way.phantom.patient import Patient
from covid3way.phantom.protocols import Protocol

# A Gaussian narrower than this samples the patient's own voxels unevenly.
_LEAST_SIGMA = 0.55


@dataclasses.dataclass(frozen=True, eq=False)
class Acquisition:
  """A scan on the scanner's grid with its reference masks.

  Attributes:
    hu: (x, y, z) int16.
    infection: (x, y, z) uint8, 0 or 1.
    lungs: (x, y, z) uint8, 1 left, 2 right.
    affine: (4, 4) float64, index -> LPS world, mm.
  """

  hu: np.ndarray
  infection: np.ndarray
  lungs: np.ndarray
  affine: np.ndarray


def acquire(
  patient: Patient,
  protocol: Protocol,
  *,
  matrix: int = 512,
  rng: np.random.Generator,
  noise_hu: float | None = None,
) -> Acquisition:
  """Scans a patient.

  Args:
    patient: the patient.
    protocol: the scanner.
    matrix: voxels along x and y; the field of view does not depend on it.
    rng: draws field of view, slice positions and noise.
    noise_hu: standard deviation of the noise; None takes the scanner's.

  Returns:
    Slices at the scanner's increment over the whole height of the patient.
  """
  pixel_mm = float(np.round(rng.uniform(*protocol.field_of_view_mm))) / matrix
  steps = np.array([pixel_mm, pixel_mm, protocol.increment_mm])
  shape, first = _place(patient, steps, matrix)
  targets = [
    (f - o + np.arange(n) * step) / patient.spacing_mm
    for f, o, n, step in zip(first, patient.origin_mm, shape, steps, strict=True)
  ]
  blur = (protocol.blur_mm, protocol.blur_mm, protocol.thickness_mm)
  hu = fields.sample(patient.hu, _weights(patient, targets, blur))
  sd = protocol.noise_hu if noise_hu is None else noise_hu
  hu += np.float32(sd) * _noise(rng, shape, protocol.blur_mm / pixel_mm)
  # A voxel of the scan belongs to what fills most of it.
  owner = _weights(patient, targets, steps)
  infection, left, right = (
    fields.sample(mask.astype(np.float32), owner)
    for mask in (patient.infection, patient.lungs == 1, patient.lungs == 2)
  )
  lungs = np.where(left + right >= 0.5, np.where(left >= right, 1, 2), 0)
  return Acquisition(
    np.clip(np.round(hu), -1024, 3071).astype(np.int16),
    ((infection >= 0.5) & (lungs > 0)).astype(np.uint8),
    lungs.astype(np.uint8),
    np.block([[np.diag(steps), first[:, None]], [np.zeros((1, 3)), 1.0]]),
  )


def _place(patient: Patient, steps: np.ndarray, matrix: int):
  """Voxels of the scan, and the world position of the first one, mm."""
  height = patient.hu.shape[2] * patient.spacing_mm
  middle = patient.origin_mm[2] + (height - patient.spacing_mm) / 2
  shape = (matrix, matrix, int(height // steps[2]))
  # On the gantry in x and y (the middle of the chest lies 8 mm behind the model's
  # origin), on the patient in z.
  return shape, np.array([0.0, 8.0, middle]) - (np.array(shape) - 1) / 2 * steps


def _weights(patient: Patient, targets, fwhm_mm) -> list:
  """Gaussian sampling of the given widths, one matrix per axis."""
  return [
    fields.gaussian_weights(
      t, n, max(w / patient.spacing_mm / fields.FWHM_PER_SIGMA, _LEAST_SIGMA), norm=1
    )
    for t, n, w in zip(targets, patient.hu.shape, fwhm_mm, strict=True)
  ]


def _noise(rng, shape, fwhm_voxels: float) -> np.ndarray:
  """Unit noise, correlated within a slice like the blur, fresh in every slice."""
  sigma = max(fwhm_voxels, 1.2) / fields.FWHM_PER_SIGMA
  white = rng.standard_normal(shape, dtype=np.float32)
  lines = [fields.gaussian_weights(np.arange(n), n, sigma, norm=2) for n in shape[:2]]
  return fields.sample(white, [*lines, scipy.sparse.eye_array(shape[2], dtype='f4')])
