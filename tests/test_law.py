"""What one voxel does, and the table of W."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from covid3way.base import ParameterError
from covid3way.simulator import law, parameters
from covid3way.simulator.parameters import BOUNDS, Parameters

W = Parameters()
NAMES = tuple(BOUNDS)


def moved(signal, z=0.0, u=1.0, w=W):
  """One transition of some voxels; u = 1 never passes 0, u = 0 always does."""
  signal = jnp.asarray(signal, jnp.float32)
  return law.step(signal, jnp.full_like(signal, z), jnp.full_like(signal, u), w)


@pytest.mark.parametrize(
  'low, high, known', [(-0.14, -1e-6, -0.025), (1e-6, 0.5, 0.156)]
)
def test_drift_vanishes_at_the_fixed_points(low, high, known):
  root = brentq(lambda x: float(law.drift(jnp.float32(x), W)), low, high, xtol=1e-6)
  assert root == pytest.approx(known, abs=5e-4)


def test_drift_follows_its_formula():
  x = np.linspace(-0.2, 0.5, 701).astype(np.float32)
  ggo = W.ggo_gain * (1 - np.exp(np.minimum(x, 0) / W.ggo_scale))
  dense = W.consolidation_gain * np.exp(-np.maximum(x, 0) / W.consolidation_scale)
  expected = np.where(x < 0, ggo, dense) - W.absorption
  np.testing.assert_allclose(law.drift(x, W), expected, atol=1e-9)


def test_ground_glass_waits_below_0_or_passes():
  assert moved(-0.001, z=2, u=0.99)[0] == np.float32(law.HELD)
  assert moved(-0.001, z=2, u=0.0)[0] > 0
  # The chance is W's: u is compared with it.
  below, above = W.conversion - 1e-3, W.conversion + 1e-3
  assert moved(-0.001, z=2, u=below)[0] > 0 > moved(-0.001, z=2, u=above)[0]


def test_consolidation_below_0_is_ground_glass_again():
  fallen, infected = moved(0.001, z=-2)
  assert fallen < 0 and infected
  # Above 0, nothing holds it, whatever the chance.
  assert moved(0.001, z=2, u=1.0)[0] > 0.005


def test_recovery_is_below_the_threshold():
  _, infected = moved([-0.14, -0.152, -0.15], z=0.0, w=W.replace(absorption=0.0014))
  np.testing.assert_array_equal(infected, [True, False, False])
  assert law.survives(jnp.float32(law.RECOVERY))
  assert law.survives(jnp.float32(law.NEWBORN))


def test_extreme_signals_and_parameters_stay_finite():
  x = jnp.array([-1e4, -10.0, -0.15, -1e-7, 0.0, 1e-7, 10.0, 1e4])
  for share in (0.0, 1.0):
    ends = {n: b.low + share * (b.high - b.low) for n, b in BOUNDS.items()}
    w = Parameters(**jax.tree.map(jnp.float32, ends))
    speed, slopes = jax.jvp(lambda w: law.drift(x, w), (w,), (w,))
    assert np.isfinite(speed).all() and np.isfinite(slopes).all()
    assert np.isfinite(jax.vmap(jax.grad(law.drift), (0, None))(x, w)).all()


def test_free_form_and_back():
  w = jax.tree.map(jnp.float32, W.replace(conversion=0.6, noise=0.011))
  again = parameters.from_free(parameters.to_free(w))
  for name in NAMES:
    np.testing.assert_allclose(getattr(again, name), getattr(w, name), rtol=1e-5)


@pytest.mark.parametrize('free', [-40.0, 40.0])
def test_free_form_never_leaves_the_bounds(free):
  w = parameters.from_free(jnp.full(len(NAMES), free))
  for name, bound in BOUNDS.items():
    end = bound.low if free < 0 else bound.high
    np.testing.assert_allclose(getattr(w, name), end, rtol=1e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -1.0, 1.0])
def test_bad_parameters_are_named(name, bad):
  if bad == BOUNDS[name].high:
    pytest.skip('1 is allowed here')
  with pytest.raises(ParameterError, match=f'patient 7: {name} = '):
    parameters.check(W.replace(**{name: bad}), subject='patient 7')


def test_good_parameters_pass_as_float32():
  checked = parameters.check(W, subject='defaults')
  assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(checked))
  assert list(parameters.as_dict(checked)) == list(NAMES)
