"""Parenchyma told from tubes: known shapes, phantoms whose tubes are known, real CT."""

import numpy as np
import pytest
from scipy import ndimage

from configs.default import get_config
from covid3way.jobs.preprocess import read_and_cast
from covid3way.phantom import anatomy, protocols
from covid3way.scans import source
from covid3way.simulator.susceptible import find_susceptible
from covid3way.standard.space import StandardSpace

LUNG, BLOOD, AIR, GLASS = -0.2, 0.5, -0.33, -0.03
SIZE_MM = 72.0


def axes(spacing_mm):
  """World coordinates, mm from the middle of a cube, that broadcast to (x, y, z)."""
  lines = [(np.arange(n) + 0.5) * s - SIZE_MM / 2 for n, s in counts(spacing_mm)]
  return np.meshgrid(*lines, indexing='ij', sparse=True)


def counts(spacing_mm):
  return [(round(SIZE_MM / s), s) for s in spacing_mm]


def from_line(grid, point, direction):
  """Distance of each voxel from a line, mm."""
  direction = np.divide(direction, np.linalg.norm(direction))
  offset = [g - p for g, p in zip(grid, point, strict=True)]
  along = sum(o * d for o, d in zip(offset, direction, strict=True))
  return np.sqrt(np.maximum(sum(o**2 for o in offset) - along**2, 0))


def from_border(grid):
  """Depth of each voxel in a cube of 60 mm, negative outside."""
  return 30 - np.maximum.reduce(np.broadcast_arrays(*map(np.abs, grid)))


def block(spacing_mm, noise, blur_mm=0.4):
  """Noisy lung in soft tissue: vessel, bronchus, lesion with the vessel through it.

  Returns signal, lungs, infection, and distances from vessel and bronchus, mm.
  """
  grid = axes(spacing_mm)
  vessel = from_line(grid, (-14, 0, 0), (0.1, 0.3, 1))
  bronchus = from_line(grid, (14, -10, 0), (0.2, 1, 0.4))
  ball = sum((g - c) ** 2 for g, c in zip(grid, (-14, 0, 0), strict=True)) < 9**2
  lungs = from_border(grid) > 0
  signal = np.where(lungs, LUNG, BLOOD).astype(np.float32)
  signal[ball] = GLASS
  signal[(vessel < 1.8) | (bronchus < 3.6)] = BLOOD
  signal[bronchus < 2.4] = AIR
  signal = ndimage.gaussian_filter(signal, np.divide(blur_mm, spacing_mm))
  rng = np.random.default_rng(0)
  signal += np.float32(noise) * rng.standard_normal(signal.shape, dtype=np.float32)
  return signal, lungs.astype(np.uint8), ball, vessel, bronchus


@pytest.mark.parametrize(
  ('spacing_mm', 'noise'),
  [((0.65, 0.65, 1.0), noise) for noise in (0.0, 0.02, 0.05)]
  + [((1.3, 1.3, 1.3), noise) for noise in (0.0, 0.03)],
)
def test_tubes_are_left_out_and_parenchyma_stays(spacing_mm, noise):
  signal, lungs, infection, vessel, bronchus = block(spacing_mm, noise)
  found = find_susceptible(signal, lungs, infection, spacing_mm)
  assert found.dtype == bool
  assert not found[lungs == 0].any()
  assert found[infection].all()  # its vessel too: the mask has the last word
  in_lung = (lungs > 0) & ~infection
  assert found[in_lung & (vessel < 1.0)].mean() < 0.02
  assert found[in_lung & (bronchus < 1.7)].mean() < 0.02
  assert found[in_lung & (bronchus > 2.8) & (bronchus < 3.2)].mean() < 0.02
  inner = from_border(axes(spacing_mm)) > 3
  clear = in_lung & (vessel > 3.5) & (bronchus > 5.5) & inner
  assert found[clear].mean() > (0.999 if noise < 0.05 else 0.995)


def test_a_dark_tube_without_a_wall_stays():
  spacing_mm = (1.0, 1.0, 1.0)
  grid = axes(spacing_mm)
  signal = np.full([n for n, _ in counts(spacing_mm)], LUNG, np.float32)
  hollow = from_line(grid, (0, 0, 0), (1, 1, 1)) < 4
  signal[hollow] = -0.28  # emphysema
  lungs = np.ones(signal.shape, np.uint8)
  found = find_susceptible(signal, lungs, np.zeros_like(lungs), spacing_mm)
  assert found[hollow].all()


def test_beside_a_lesion_that_fades_out_the_lung_stays():
  spacing_mm = (0.8, 0.8, 1.0)
  grid = axes(spacing_mm)
  radius = np.sqrt(sum(g**2 for g in grid))
  fading = 1 / (1 + np.exp((radius - 15) / 1.2))  # half way at 15 mm
  signal = LUNG + (0.1 - LUNG) * fading
  signal += np.random.default_rng(0).normal(0, 0.02, signal.shape)
  lungs = np.ones(signal.shape, np.uint8)
  found = find_susceptible(signal.astype(np.float32), lungs, radius < 15, spacing_mm)
  assert found[radius < 22].mean() > 0.99
  # Without its mask the same tissue is dense, and no parenchyma.
  unmasked = find_susceptible(
    signal.astype(np.float32), lungs, np.zeros_like(lungs), spacing_mm
  )
  assert not unmasked[radius < 12].any()


def test_faint_ground_glass_without_a_mask_stays():
  spacing_mm = (1.0, 1.0, 1.0)
  x, y, z = axes(spacing_mm)
  glass = np.broadcast_to(x > 0, (72, 72, 72)) & (np.abs(y) < 25) & (np.abs(z) < 25)
  signal = np.where(glass, LUNG + 0.08, LUNG).astype(np.float32)
  lungs = np.ones(signal.shape, np.uint8)
  assert find_susceptible(signal, lungs, np.zeros_like(lungs), spacing_mm).all()


def test_the_dense_rim_of_the_lung_is_left_out():
  spacing_mm = (1.0, 1.0, 1.0)
  depth = from_border(axes(spacing_mm))
  share = np.clip(depth + 0.5, 0, 1)  # the border cuts the outermost voxels
  signal = (LUNG * share + BLOOD * (1 - share)).astype(np.float32)
  signal = ndimage.gaussian_filter(signal, 0.7)
  lungs = (depth > -0.6).astype(np.uint8)
  found = find_susceptible(signal, lungs, np.zeros_like(lungs), spacing_mm)
  assert not found[(lungs > 0) & (depth < 0)].any()
  assert found[depth > 2].all()


def test_what_is_given_stays_as_it_was():
  spacing_mm = (1.3, 1.3, 1.3)
  given = block(spacing_mm, 0.02)[:3]
  before = [a.copy() for a in given]
  found = find_susceptible(*given, spacing_mm)
  for a, b in zip(given, before, strict=True):
    np.testing.assert_array_equal(a, b)
  as_stored = given[0].astype(np.float16), given[1], given[2].astype(np.uint8)
  same = find_susceptible(*as_stored, spacing_mm) == found
  assert same.mean() > 0.999


@pytest.mark.parametrize('spacing_mm', [(0.65, 0.65, 1.0), (7.0, 7.0, 8.0)])
def test_nothing_to_find_and_nothing_to_tell_apart(spacing_mm):
  flat = np.full((24, 20, 16), LUNG, np.float32)
  none, every = np.zeros(flat.shape, np.uint8), np.ones(flat.shape, np.uint8)
  assert not find_susceptible(flat, none, none, spacing_mm).any()
  assert not find_susceptible(flat, none, every, spacing_mm).any()
  assert find_susceptible(flat, every, none, spacing_mm).all()
  assert find_susceptible(flat, every, every, spacing_mm).all()
  lungs = every.copy()
  lungs[:4] = 0
  np.testing.assert_array_equal(
    find_susceptible(flat, lungs, every, spacing_mm), lungs > 0
  )


@pytest.mark.parametrize(
  ('protocol_id', 'recall', 'kept'),
  [('siemens-scope-4', 0.9, 0.97), ('philips-brilliance-ict-1', 0.86, 0.98)],
)
def test_phantoms_whose_tubes_are_known(protocol_id, recall, kept):
  protocol = protocols.find_protocol(protocol_id)
  rng = np.random.default_rng(5)
  chest = anatomy.make_anatomy(rng, protocol, spacing_mm=2.0)
  noise = 25 * rng.standard_normal(chest.hu.shape, dtype=np.float32)
  signal, none = protocol.to_signal(chest.hu + noise), np.zeros(chest.hu.shape, bool)
  found = find_susceptible(signal, chest.lungs, none, (2.0, 2.0, 2.0))
  lungs, truth = chest.lungs > 0, chest.susceptible()
  assert not found[~lungs].any()
  assert 1 - found[lungs & ~truth].mean() > recall
  assert found[truth].mean() > kept


def test_real_lungs(real_data):
  (row,) = source.resolve(real_data / 'covid-ct-md' / 'normal001')
  space = StandardSpace((256, 256, 256))
  _, _, standard = read_and_cast(row, space, get_config().window)
  signal, lungs = np.asarray(standard.signal), standard.lungs > 0
  none = np.zeros(lungs.shape, bool)
  found = find_susceptible(signal, standard.lungs, none, space.spacing_mm)
  # Vessels, airways and walls fill about a tenth of healthy lungs.
  assert 0.84 < found[lungs].mean() < 0.95
  typical = np.median(signal[lungs])
  calm = ndimage.uniform_filter(signal, 5)
  spread = np.sqrt(np.maximum(ndimage.uniform_filter(signal**2, 5) - calm**2, 0))
  parenchyma = lungs & (np.abs(calm - typical) < 0.05) & (spread < 0.05)
  assert found[parenchyma].mean() > 0.995
  assert found[lungs & (signal > typical + 0.45)].mean() < 0.01
  # No pepper: what is left out hangs together.
  labels, _ = ndimage.label(lungs & ~found, np.ones((3, 3, 3)))
  sizes = np.bincount(labels.ravel())[1:]
  assert sizes[sizes < 4].sum() < 0.01 * sizes.sum()
