"""The location prior of new lesions, and the blocks its depth is measured on."""

import numpy as np
import pytest

from covid3way.simulator.prior import Location, location_prior, peripheral_prior
from covid3way.standard.morphology import between_blocks, block_mean

EVEN = {'rim_mm': 6.0, 'posterior': 1.0, 'basal': 1.0}
SPACING_MM = (1.3, 1.0, 2.0)


@pytest.fixture(scope='module')
def lungs():
  """Two boxes of 39 x 60 x 80 mm, 1 left and 2 right, in a volume with a margin."""
  volume = np.zeros((80, 72, 50), np.uint8)
  volume[5:35, 6:66, 4:44] = 2
  volume[45:75, 6:66, 4:44] = 1
  return volume


def test_zero_outside_and_one_on_average_within(lungs):
  before = lungs.copy()
  prior = peripheral_prior(lungs, SPACING_MM, rim_mm=6, posterior=16, basal=5)
  assert prior.dtype == np.float32 and prior.shape == lungs.shape
  assert (prior[lungs == 0] == 0).all() and (prior[lungs > 0] > 0).all()
  assert prior[lungs > 0].mean() == pytest.approx(1, rel=1e-4)
  np.testing.assert_array_equal(lungs, before)


def test_the_rim_outweighs_the_core_as_it_should(lungs):
  prior = peripheral_prior(lungs, SPACING_MM, **EVEN)
  # Along z from the base, in the middle of a lung whose sides are further away.
  line = prior[20, 36, 4:11] / prior[20, 36, 4]
  depth_mm = (np.arange(7) + 0.5) * SPACING_MM[2]
  expected = np.exp(-depth_mm / 6) + 0.05
  np.testing.assert_allclose(line, expected / expected[0], rtol=0.12)


def test_back_and_base_outweigh_front_and_apex_by_the_factors_given(lungs):
  even = peripheral_prior(lungs, SPACING_MM, **EVEN)
  back = peripheral_prior(lungs, SPACING_MM, **EVEN | {'posterior': 16.0})
  base = peripheral_prior(lungs, SPACING_MM, **EVEN | {'basal': 5.0})
  inside = lungs > 0
  ratio = np.where(inside, back / np.where(inside, even, 1), np.nan)
  np.testing.assert_allclose(ratio[20, 65, :][4:44] / ratio[20, 6, 4:44], 16, rtol=1e-3)
  assert np.ptp(ratio[20, 30, 4:44]) < 1e-3  # nothing along z
  ratio = np.where(inside, base / np.where(inside, even, 1), np.nan)
  np.testing.assert_allclose(ratio[20, 6:66, 4] / ratio[20, 6:66, 43], 5, rtol=1e-3)


def test_without_a_rim_depth_does_not_matter(lungs):
  prior = peripheral_prior(lungs, SPACING_MM, rim_mm=0, posterior=4, basal=1)
  assert np.ptp(prior[5:35, 30, 4:44]) == 0
  assert prior[20, 65, 20] == pytest.approx(4 * prior[20, 6, 20], rel=1e-3)


def test_a_location_is_a_prior_of_at_most_one_and_by_default_none(lungs):
  assert location_prior(lungs, SPACING_MM, Location()) is None
  prior = location_prior(lungs, SPACING_MM, Location(rim_mm=6, posterior=3))
  known = peripheral_prior(lungs, SPACING_MM, rim_mm=6, posterior=3, basal=1)
  np.testing.assert_allclose(prior, known / known.max(), rtol=1e-6)
  assert prior.max() == 1


def test_resolution_hardly_matters(lungs):
  fine = lungs.repeat(2, 0).repeat(2, 1).repeat(2, 2)
  half = tuple(s / 2 for s in SPACING_MM)
  options = {'rim_mm': 8.0, 'posterior': 16.0, 'basal': 5.0}
  coarse = peripheral_prior(lungs, SPACING_MM, **options)
  fine = peripheral_prior(fine, half, **options)
  means = fine.reshape(80, 2, 72, 2, 50, 2).mean((1, 3, 5))
  inside = lungs > 0
  assert np.corrcoef(means[inside], coarse[inside])[0, 1] > 0.98


def test_no_lung_no_prior():
  none = np.zeros((8, 8, 8), np.uint8)
  assert not peripheral_prior(none, SPACING_MM, **EVEN).any()
  none[3, 3, 3] = 1
  prior = peripheral_prior(none, SPACING_MM, **EVEN)
  assert prior[3, 3, 3] == pytest.approx(1) and np.count_nonzero(prior) == 1


def test_between_blocks_a_ramp_is_itself_again():
  ramp = sum(np.ogrid[:12, :9, :8]).astype(np.float32)
  factors = (3, 1, 4)
  back = between_blocks(block_mean(ramp, factors), factors, ramp.shape)
  np.testing.assert_allclose(back[1:-1, :, 2:-2], ramp[1:-1, :, 2:-2], atol=1e-5)
  flat = np.full((5, 1, 7), 3, np.float32)  # short last blocks, a single block
  same = between_blocks(block_mean(flat, (2, 1, 7)), (2, 1, 7), flat.shape)
  np.testing.assert_array_equal(same, flat)
