"""Convolutions for training: values and gradients are those of the plain sum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covid3way.networks import trained

FORM = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}


def plain(x, kernel):
  return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', **FORM)


def own(x, kernel):
  return trained.convolved(x, kernel, (1, 1), 'SAME', **FORM)


def drawn(shape, c, width, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  shapes = (*shape, c), (3, 3, c, width), (*shape, width)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@partial(jax.jit, static_argnums=0)
def pulled(function, x, kernel, dy):
  y, pull = jax.vjp(function, x, kernel)
  return y, *pull(dy)


@pytest.mark.parametrize(
  'shape, c, width',
  [
    ((2, 9, 8), 4, 8),  # Plain.
    ((2, 9, 7), 5, 16),  # In columns, some beyond the plane ...
    ((1, 8, 9), 16, 32),
    ((4, 6, 5), 16, 16),  # ... and the same for the gradient.
    ((3, 9, 14), 64, 32),  # In tiles, some beyond the plane.
    ((2, 3, 2), 32, 64),
    ((8, 128, 128), 32, 32),  # Not all planes at once.
  ],
)
def test_values_and_gradients_are_those_of_lax(shape, c, width):
  drawn_ = drawn(shape, c, width)
  for got, wanted in zip(pulled(own, *drawn_), pulled(plain, *drawn_), strict=True):
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize('c, width', [(16, 16), (32, 32)])
def test_gradients_are_differences(c, width):
  x, kernel, dy = drawn((1, 5, 6), c, width)
  _, dx, dkernel = pulled(own, x, kernel, dy)
  step_x, step_kernel = x[:, ::-1], kernel[:, ::-1]
  # The sum is linear in either, so that differences are as exact as it is.
  by_x = ((plain(x + step_x, kernel) - plain(x, kernel)) * dy).sum()
  by_kernel = ((plain(x, kernel + step_kernel) - plain(x, kernel)) * dy).sum()
  assert float((dx * step_x).sum()) == pytest.approx(float(by_x), rel=1e-3)
  assert float((dkernel * step_kernel).sum()) == pytest.approx(
    float(by_kernel), rel=1e-3
  )


@pytest.mark.parametrize('dtype, c', [(jnp.bfloat16, 32), (jnp.float32, 8)])
def test_half_precision_and_few_channels_stay_as_they_are(dtype, c):
  x, kernel, _ = drawn((1, 8, 8), c, c, dtype)
  np.testing.assert_array_equal(own(x, kernel), plain(x, kernel))


def test_planes_too_large_for_the_cache_stay_as_they_are(monkeypatch):
  monkeypatch.setattr(trained, '_AT_ONCE', 1)
  monkeypatch.setattr(trained, '_tiled', None)
  x, kernel, _ = drawn((1, 8, 8), 32, 32)
  np.testing.assert_allclose(own(x, kernel), plain(x, kernel), atol=1e-3)


def test_divisors():
  found = {
    (n, limit): trained._divisor(n, limit) for n in (1, 7, 8) for limit in (0, 3)
  }
  assert found == {(1, 0): 1, (1, 3): 1, (7, 0): 1, (7, 3): 1, (8, 0): 1, (8, 3): 2}
