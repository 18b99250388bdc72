"""The fit of W: recovery, forecasts, noise, its door, and a study's own law."""

import dataclasses

import extension_law
import numpy as np
import pytest

from configs import default
from covid3way.base import SerialError
from covid3way.jobs import laws
from covid3way.simulator import fit, histogram, law, population
from covid3way.simulator.parameters import BOUNDS, Parameters

FAST = fit.FitSettings(restarts=0)
START = 10_000 * histogram.counts([law.RECOVERY])
TRUTHS = {
  'growing': Parameters(growth=0.008, noise=0.004),
  'converting': Parameters(conversion=0.3, consolidation_gain=0.003, noise=0.002),
  'healing': Parameters(
    growth=0.003, ggo_gain=0.002, absorption=0.0011, ggo_scale=0.05, noise=0.004
  ),
  'dense': Parameters(growth=0.006, ggo_gain=0.003, ggo_scale=0.02, conversion=0.15),
}


def evolve(w, counts, transitions, **kwargs):
  return np.asarray(population.evolve(w, counts, transitions, **kwargs), np.float64)


def forecast_is_better(w, last, later, transitions):
  """Whether W foretells a third histogram better than both trivial predictors."""
  predicted = evolve(w, last, transitions)
  trivial = last, last * later.sum() / last.sum()
  losses = [float(population.loss(p, later)) for p in (predicted, *trivial)]
  return losses[0] < min(losses[1:])


@pytest.mark.parametrize('name', TRUTHS)
def test_recovers_from_the_invented_start(name):
  observed = evolve(TRUTHS[name], START, 300)
  found = fit.fit(START, observed, 300, settings=FAST)
  assert found.relative_loss < 1e-3
  assert found.better
  later = evolve(TRUTHS[name], observed, 300)
  assert forecast_is_better(found.w, observed, later, 300)


@pytest.mark.parametrize('name', TRUTHS)
def test_recovers_between_two_scans(name):
  first = evolve(TRUTHS[name], START, 300)
  observed = evolve(TRUTHS[name], first, 500)
  found = fit.fit(first, observed, 500, settings=FAST)
  assert found.relative_loss < 1e-3
  assert found.better


@pytest.mark.parametrize('name', TRUTHS)
def test_two_scans_foretell_the_third(name):
  # Early, while the histogram still changes its shape: later on, scaling is perfect.
  first = evolve(TRUTHS[name], START, 100)
  second = evolve(TRUTHS[name], first, 200)
  found = fit.fit(first, second, 200, settings=FAST)
  third = evolve(TRUTHS[name], second, 300)
  assert forecast_is_better(found.w, second, third, 300)


@pytest.mark.parametrize('voxels', [2_000, 100_000])
def test_noise_of_few_voxels_does_not_mislead(voxels):
  """The fit is as close as the truth itself, and foretells what comes."""
  truth, rng = TRUTHS['converting'], np.random.default_rng(0)
  expected = evolve(truth, START, 300)
  start, expected = (voxels / expected.sum() * c for c in (START, expected))
  observed = rng.poisson(expected)
  found = fit.fit(start, observed, 300, settings=FAST)
  assert found.relative_loss < 1.05 * population.relative_loss(expected, observed)
  later = evolve(truth, expected, 300)
  assert forecast_is_better(found.w, observed, later, 300)


def test_losses_are_eq_3_and_history_ends_in_the_result():
  observed = evolve(TRUTHS['growing'], START, 300)
  seen = []
  found = fit.fit(
    START, observed, 300, settings=FAST, report=lambda *each: seen.append(each)
  )
  assert found.loss == pytest.approx(population.loss(found.predicted, observed))
  assert found.copy_last_loss == pytest.approx(population.loss(START, observed))
  scaled = START * observed.sum() / START.sum()
  assert found.scaled_loss == pytest.approx(population.loss(scaled, observed))
  assert [i for i, _ in seen] == list(range(len(found.history)))
  np.testing.assert_array_equal([value for _, value in seen], found.history)
  assert found.history[-1] == pytest.approx(found.relative_loss, rel=0.01, abs=1e-6)
  for name, bound in BOUNDS.items():
    assert bound.low < getattr(found.w, name) < bound.high


def search(*pair, **settings):
  """The fit of a pair, and how many iterations all of its starts took together."""
  seen = []
  settings = fit.FitSettings(**settings)
  found = fit.fit(*pair, settings=settings, report=lambda *each: seen.append(each))
  return found, len(seen)


def test_a_start_that_beats_the_trivial_predictors_is_the_only_one():
  observed = evolve(TRUTHS['growing'], START, 300)
  found, iterations = search(START, observed, 300, restarts=3)
  assert found.better and iterations == len(found.history)


def test_restarts_only_help_and_repeat():
  # Nothing beats the copy of what did not change.
  first = evolve(TRUTHS['dense'], START, 300)
  pair, brief = (first, first, 300), dict(iterations=8, seed=3)
  (one, alone), (several, all_), (again, _) = (
    search(*pair, restarts=n, **brief) for n in (0, 2, 2)
  )
  assert all_ > alone == len(one.history)
  assert one.copy_last_loss == 0 and not several.better
  assert several.loss <= one.loss
  assert several.w == again.w


def test_the_config_holds_the_default_settings():
  config = default.get_config()
  assert laws.fit_settings(config.fit) == fit.FitSettings()
  assert set(config.fit) == {f.name for f in dataclasses.fields(fit.FitSettings)}


@pytest.mark.parametrize(
  'spoil, found',
  [
    (lambda c: c * np.nan, 'not finite or negative'),
    (lambda c: c - 1, 'not finite or negative'),
    (lambda c: 0 * c, '0 infected voxels'),
    (lambda c: c * (fit.LEAST_VOXELS - 1) / c.sum(), '199 infected voxels'),
  ],
)
def test_bad_histograms_are_named(spoil, found):
  subject = 'patient 7, pair a -> b'
  with pytest.raises(SerialError, match=f'{subject}: .*{found}'):
    fit.fit(START, spoil(START), 300, subject=subject)


def test_bad_starts_and_days_are_named():
  with pytest.raises(SerialError, match='0 infected voxels'):
    fit.fit(0 * START, START, 300)
  with pytest.raises(SerialError, match='0 transitions'):
    fit.fit(START, START, 0)


def test_ninth_parameter_is_fitted_and_matters():
  """README, "Extending the simulator": another law without editing the package."""
  own = extension_law.LAW
  truth = extension_law.ClearingParameters(clearing=0.0012, conversion=0.3)
  first = evolve(truth, START, 300, law=own)
  observed = evolve(truth, first, 300, law=own)
  found = fit.fit(first, observed, 300, law=own, settings=FAST)
  assert isinstance(found.w, extension_law.ClearingParameters)
  assert found.relative_loss < 1e-3
  predicted = evolve(found.w, first, 300, law=own)
  np.testing.assert_allclose(found.predicted, predicted, rtol=1e-3, atol=1e-2)
  # Without it the same W gives another histogram.
  assert population.relative_loss(evolve(truth, first, 300), observed) > 1e-3
