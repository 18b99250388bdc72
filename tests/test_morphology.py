"""Morphology, against scipy's general filters and transforms."""

import numpy as np
import pytest
from scipy import ndimage

from covid3way.standard import morphology

MM = np.array([0.9, 2.0, 3.1])


def blobs(shape=(31, 27, 22), share=0.5, seed=0):
  noise = np.random.default_rng(seed).normal(size=shape)
  smooth = ndimage.gaussian_filter(noise, 1.5)
  return smooth > np.quantile(smooth, 1 - share)


@pytest.mark.parametrize('factors', [(1, 1, 1), (2, 3, 1), (3, 1, 4), (40, 5, 7)])
@pytest.mark.parametrize('dtype', [np.int16, np.float32, bool])
def test_block_means_are_those_of_each_block(factors, dtype):
  volume = np.random.default_rng(0).uniform(-900, 99, (31, 27, 22)).astype(dtype)
  means = morphology.block_mean(volume, factors)
  assert means.dtype == np.float32
  for index in np.ndindex(means.shape):
    block = volume[
      tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
    ]
    assert means[index] == pytest.approx(block.mean(dtype=float), abs=1e-3)


@pytest.mark.parametrize('radius_mm', [0, 1, 4, 90])
@pytest.mark.parametrize('mm', [MM, np.array([1.5, 1.5, np.inf])])
def test_growth_is_a_maximum_in_a_box(radius_mm, mm):
  labels, _ = ndimage.label(blobs(share=0.1))
  box = [2 * round(radius_mm / s) + 1 for s in mm]
  for volume in (labels, labels > 0):
    before = volume.copy()
    grown = morphology.grow(volume, radius_mm, mm)
    expected = ndimage.maximum_filter(volume, box, mode='nearest')
    np.testing.assert_array_equal(grown, expected)
    np.testing.assert_array_equal(volume, before)


@pytest.mark.parametrize('share', [0.02, 0.5, 0.98])
@pytest.mark.parametrize('inside', [False, True])
def test_depth_is_the_distance_to_what_lies_outside(share, inside):
  mask = blobs(share=share)
  if inside:  # All of it away from the border.
    mask = np.pad(mask, ((9, 4), (3, 8), (5, 6)))
  expected = ndimage.distance_transform_edt(mask, MM)
  np.testing.assert_array_equal(morphology.depth(mask, MM), expected)


def test_components_have_their_sizes():
  labels, sizes = morphology.components(blobs(share=0.1))
  assert sizes[0] == 0 and len(sizes) == labels.max() + 1 > 3
  for label in range(1, len(sizes)):
    assert sizes[label] == np.count_nonzero(labels == label)
  nothing = morphology.components(np.zeros((3, 3, 3), bool))
  assert not nothing[0].any() and nothing[1].tolist() == [0]


def test_a_ball_closes_what_is_narrower_than_it():
  mask = np.zeros((60, 30, 30), bool)
  mask[5:55, 5:25, 5:25] = True
  slit = np.s_[20:26, 8:22, 10:12]
  hole = np.s_[38:47, 10:19, 10:19]
  mask[slit] = mask[hole] = False
  fine, wide = morphology.close_balls(mask, (2, 7), np.ones(3))
  assert fine[slit].all() and not fine[42, 14, 14]
  assert wide[slit].all() and wide[hole].all()
  assert (fine >= mask).all() and not wide[:5].any() and not wide[:, :5].any()


def test_bounds_hold_a_mask_and_a_margin_within_the_volume():
  mask = np.zeros((9, 9, 9), bool)
  mask[0, 3:5, 8] = True
  box = morphology.bounds(mask, margin=2)
  assert np.zeros((9, 9, 9))[box].shape == (3, 6, 3)
  assert mask[box].sum() == mask.sum()
  empty = np.zeros((4, 5, 6), bool)
  assert empty[morphology.bounds(empty, margin=1)].shape == (4, 5, 6)
