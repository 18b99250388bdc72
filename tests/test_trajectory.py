"""T(W) on volumes: what must hold of it, whatever the law's numbers are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from conftest import hurried

from covid3way import base
from covid3way.simulator import (
  blocks,
  histogram,
  law,
  noise,
  population,
  spread,
  trajectory,
)
from covid3way.simulator.parameters import Parameters
from covid3way.simulator.state import Anatomy, Settings, State

SHAPE = (38, 35, 43)  # Not all of it whole blocks.
EVERY = int(np.prod(blocks.grid_of(SHAPE)))
KEY = jax.random.key(0)
# Voxels that neither die nor convert: only births happen.
BIRTHS_ONLY = Parameters(growth=0.02, absorption=1e-5, noise=7e-4, conversion=2e-4)


def ball(shape, centre, radius):
  offset = np.ogrid[tuple(slice(n) for n in shape)]
  square = sum((o - c) ** 2 for o, c in zip(offset, centre, strict=True))
  return square <= radius**2


def make(seed=0, shape=SHAPE, signal=-0.03, anatomy=None):
  """Two lesions in a lung with tubes that nothing may enter."""
  rng = np.random.default_rng(seed)
  lung = ball(shape, np.array(shape) / 2, 0.48 * min(shape))
  tubes = rng.random(shape) < 0.03
  infection = ball(shape, (16, 15, 20), 5) | ball(shape, (25, 22, 24), 3)
  susceptible = lung & ~tubes
  infection &= susceptible
  volume = rng.normal(-0.2, 0.03, shape).astype(np.float32)
  volume[infection] = rng.normal(signal, 0.05, infection.sum()).clip(-0.14, 0.3)
  state = State(jnp.asarray(volume), jnp.asarray(infection))
  return state, anatomy or Anatomy(jnp.asarray(susceptible), (1.0, 1.0, 1.0))


def float_scalars(w):
  return jax.tree.map(jnp.float32, w)


DEFAULT = float_scalars(Parameters())
PLAIN = Settings()
RICH = Settings(
  clustering=2.0, consolidation_clustering=1.0, seeding=0.02, noise_mm=3.0
)


def run(state, anatomy, *, w=DEFAULT, key=KEY, settings=PLAIN, **steps):
  return trajectory.run(key, state, float_scalars(w), anatomy, settings, **steps)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.partial(hurried, static_argnums=2)
def packed(state, anatomy, capacity):
  return blocks.pack(state, anatomy, blocks.needed_for(state.infection), capacity)


# The rules of the paper


@pytest.mark.parametrize(
  'settings', [Settings(), Settings(clustering=2.0, seeding=0.2, noise_mm=3.0)]
)
def test_normal_voxels_keep_their_bits_and_infection_stays_susceptible(settings):
  state, anatomy = make()
  outside = ~np.asarray(anatomy.susceptible)
  first = np.asarray(state.signal)
  for step in range(60):
    before = state
    state = run(before, anatomy, settings=settings, steps=1, start=step)
    normal = ~np.asarray(before.infection | state.infection)
    np.testing.assert_array_equal(
      np.asarray(state.signal)[normal], np.asarray(before.signal)[normal]
    )
    assert not np.asarray(state.infection)[outside].any()
  np.testing.assert_array_equal(np.asarray(state.signal)[outside], first[outside])
  assert (np.asarray(state.signal) != first).sum() > 500


def test_one_transition_by_hand():
  state, anatomy = make()
  after = run(state, anatomy, steps=1)
  infected, before = np.asarray(state.infection), np.asarray(state.signal)
  now, signal = np.asarray(after.infection), np.asarray(after.signal)
  # Normal voxels are invariant unless born; the newborn start where they should.
  born = now & ~infected
  np.testing.assert_array_equal(signal[~infected & ~born], before[~infected & ~born])
  assert born.any() and (signal[born] == np.float32(law.NEWBORN)).all()
  ggo = infected & (before < 0)
  beside = scipy.ndimage.binary_dilation(ggo, np.ones((3, 3, 3)))
  assert not (born & ~beside).any()
  # Infected voxels move by drift and noise, wait below 0 or pass, or recover.
  moved = signal[infected] - before[infected]
  expected = np.asarray(law.drift(before[infected], DEFAULT))
  held = signal[infected] == np.float32(law.HELD)
  z = (moved - expected)[~held] / 0.003
  assert abs(z.mean()) < 0.15 and z.std() == pytest.approx(1, abs=0.1)
  np.testing.assert_array_equal(now[infected], signal[infected] >= -0.15)
  assert (before[infected][held] < 0).all()


def test_recovered_voxels_are_invariant():
  state, anatomy = make(signal=-0.13)
  w = Parameters(growth=1e-5, ggo_gain=1e-5, absorption=0.01)
  after = run(state, anatomy, w=w, steps=20)
  assert not np.asarray(after.infection).any()
  later = run(after, anatomy, w=w, steps=20, start=20)
  assert_same(after, later)
  recovered = np.asarray(after.signal)[np.asarray(state.infection)]
  assert (recovered < -0.15).all() and (recovered > -0.2).all()


# Exactness


def test_only_active_blocks_give_the_same_bits_as_all_blocks():
  state, anatomy = make()
  outcomes = []
  for capacity in (EVERY, 500):
    after, reached, _ = trajectory.advance(
      KEY, state, DEFAULT, anatomy, PLAIN, 0, 80, capacity=capacity
    )
    assert reached == 80
    outcomes.append(after)
  active, _ = packed(state, anatomy, 500)
  assert active.used < 0.5 * EVERY  # There was something to save.
  assert_same(*outcomes)


def test_same_key_same_bits_alone_in_a_batch_and_in_pieces():
  states, anatomies = zip(*(make(seed) for seed in range(3)), strict=True)
  ws = [DEFAULT.replace(growth=jnp.float32(g)) for g in (0.004, 0.01, 0.002)]
  keys = jax.random.split(KEY, 3)
  alone = [
    trajectory.run(*each, RICH, steps=40)
    for each in zip(keys, states, ws, anatomies, strict=True)
  ]
  stack = lambda items: jax.tree.map(lambda *a: jnp.stack(a), *items)  # noqa: E731
  advance = functools.partial(
    trajectory.advance, settings=RICH, start=0, stop=40, capacity=600
  )
  batch, reached, _ = jax.vmap(lambda k, s, w, a: advance(k, s, w, a))(
    keys, stack(states), stack(ws), stack(anatomies)
  )
  assert (reached == 40).all()
  assert_same(stack(alone), batch)
  again = trajectory.run(keys[0], states[0], ws[0], anatomies[0], RICH, steps=17)
  again = trajectory.run(keys[0], again, ws[0], anatomies[0], RICH, steps=23, start=17)
  assert_same(alone[0], again)
  other = trajectory.run(keys[1], states[0], ws[0], anatomies[0], RICH, steps=40)
  assert (np.asarray(other.signal) != np.asarray(alone[0].signal)).any()


@pytest.mark.parametrize('enough', [EVERY, 140])
def test_running_out_of_blocks_changes_nothing(monkeypatch, enough):
  """Whether room is made little by little, or for all blocks from some number on."""
  state, anatomy = make()
  w = Parameters(growth=0.04)
  seen = lambda signal, infection: infection.sum()  # noqa: E731
  roomy, counts = trajectory.observe(
    KEY, state, float_scalars(w), anatomy, PLAIN, steps=60, what=seen
  )
  tight = lambda needed, _: needed + 80 if needed < enough else EVERY  # noqa: E731
  monkeypatch.setattr(trajectory, '_capacity', tight)
  tight, tight_counts = trajectory.observe(
    KEY, state, float_scalars(w), anatomy, PLAIN, steps=60, what=seen
  )
  assert_same(roomy, tight)
  np.testing.assert_array_equal(counts, tight_counts)
  assert counts.shape == (60,) and counts[-1] == np.asarray(roomy.infection).sum()


@pytest.mark.parametrize('what', ['empty mask', 'empty lung', 'both'])
def test_nothing_infected_or_nothing_susceptible(what):
  state, anatomy = make()
  if what != 'empty lung':
    state = state.replace(infection=jnp.zeros(SHAPE, bool))
  if what != 'empty mask':
    anatomy = anatomy.replace(susceptible=jnp.zeros(SHAPE, bool))
  after = run(state, anatomy, settings=Settings(seeding=0.3), steps=30)
  assert np.isfinite(after.signal).all()
  if what == 'empty lung':  # No birth, but what is infected goes on.
    assert not np.asarray(after.infection & ~state.infection).any()
  else:
    assert_same(state, after)


@pytest.mark.parametrize(
  'settings', [PLAIN, Settings(clustering=2, consolidation_clustering=1, noise_mm=3)]
)
def test_a_volume_follows_the_population_law(settings):
  n = 64
  rng = np.random.default_rng(0)
  mask = ball((n,) * 3, (n // 2,) * 3, 19)
  signal = rng.uniform(-0.14, 0.2, (n,) * 3).astype(np.float32)
  state = State(jnp.asarray(signal), jnp.asarray(mask))
  tissue = Anatomy(jnp.ones((n,) * 3, bool), (1.0, 1.0, 1.0))
  after = run(state, tissue, settings=settings, steps=300)
  start, end = (
    histogram.counts(np.asarray(s.signal)[np.asarray(s.infection)])
    for s in (state, after)
  )
  foretold = np.asarray(population.evolve(DEFAULT, start, 300))
  assert foretold.sum() == pytest.approx(end.sum(), rel=0.03)
  coarse = [h.reshape(-1, 10).sum(axis=1) / h.sum() for h in (foretold, end)]
  assert np.abs(coarse[0] - coarse[1]).sum() < 0.05


# Births


@pytest.mark.parametrize(
  'settings', [PLAIN, Settings(clustering=3), Settings(seeding=0.5)]
)
def test_as_many_births_as_growth_says(settings):
  state, anatomy = make()
  anatomy = anatomy.replace(susceptible=jnp.ones(SHAPE, bool))
  counts = lambda signal, infection: jnp.stack(  # noqa: E731
    [infection.sum(), (infection & (signal < 0)).sum()]
  )
  w = float_scalars(BIRTHS_ONLY)
  _, seen = trajectory.observe(KEY, state, w, anatomy, settings, steps=100, what=counts)
  infected = np.asarray(state.infection)
  start = infected.sum(), (infected & (np.asarray(state.signal) < 0)).sum()
  seen = np.concatenate([[start], seen])
  births, ggo = np.diff(seen[:, 0]), seen[:-1, 1]
  # None recovers here, so that the difference is births; their number is nearly
  # Poisson, less where chances are high.
  error = (births - 0.02 * ggo) / np.sqrt(0.02 * ggo)
  assert births.sum() > 1000
  assert abs(births.sum() - 0.02 * ggo.sum()) < 4 * np.sqrt(births.sum())
  assert error.std() < 1.3


@pytest.mark.parametrize('seeding', [0.3, 1.0])
def test_a_small_lesion_has_no_more_births_for_its_satellites(seeding):
  """Where less than one birth is expected, a satellite makes up for several others."""
  shape, runs = (20, 16, 16), 4000
  mask = np.zeros(shape, bool)
  mask[8:11, 7:9, 7:10] = True  # 18 voxels.
  state = State(jnp.full(shape, -0.03), jnp.asarray(mask))
  tissue = Anatomy(jnp.ones(shape, bool), (1.0, 1.0, 1.0))
  w = float_scalars(BIRTHS_ONLY)
  step = lambda key: trajectory.advance(  # noqa: E731
    key, state, w, tissue, Settings(seeding=seeding), 0, 1, capacity=100
  )
  after, _, _ = jax.vmap(step)(jax.random.split(KEY, runs))
  born = np.asarray(after.infection).sum() - runs * mask.sum()
  expected = runs * 0.02 * mask.sum()
  assert born == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_more_births_than_satellites_find_room_for_are_still_born():
  n = 64
  mask = ball((n,) * 3, (n // 2,) * 3, 29)
  state = State(jnp.full((n,) * 3, -0.03), jnp.asarray(mask))
  tissue = Anatomy(jnp.ones((n,) * 3, bool), (1.0, 1.0, 1.0))
  after = run(
    state,
    tissue,
    w=BIRTHS_ONLY.replace(growth=0.04),
    settings=Settings(seeding=1.0),
    steps=1,
  )
  expected = 0.04 * mask.sum()  # Four times as many as places are tried.
  born = np.asarray(after.infection).sum() - mask.sum()
  assert born == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_nothing_is_born_beyond_the_volume():
  shape = (22, 22, 22)  # On no side whole blocks.
  state = State(jnp.full(shape, -0.03), jnp.asarray(ball(shape, (11, 11, 11), 3)))
  tissue = Anatomy(jnp.ones(shape, bool), (1.0, 1.0, 1.0))
  after, counts = trajectory.observe(
    KEY, state, float_scalars(BIRTHS_ONLY), tissue, Settings(seeding=0.5), steps=20,
    what=lambda signal, infection: infection.sum(),
  )  # fmt: skip
  assert counts[-1] == np.asarray(after.infection).sum()


@pytest.mark.parametrize('wrong', [float('nan'), 1.0])
def test_a_w_that_is_none_is_an_error(wrong):
  state, anatomy = make()
  with pytest.raises(base.ParameterError, match='noise'):
    run(state, anatomy, w=Parameters(noise=wrong), steps=1)


def test_state_and_anatomy_must_share_a_grid():
  state, _ = make()
  other = Anatomy(jnp.ones((20, 20, 20), bool), (1.0, 1.0, 1.0))
  with pytest.raises(base.GeometryError, match='20, 20, 20'):
    run(state, other, steps=1)


def test_full_tissue_gives_what_room_there_is():
  state, anatomy = make()
  # Room for exactly one voxel, beside the lesion.
  room = np.zeros(SHAPE, bool)
  lesion = np.asarray(state.infection)
  edge = scipy.ndimage.binary_dilation(lesion) & ~lesion
  room[tuple(np.argwhere(edge)[0])] = True
  anatomy = anatomy.replace(susceptible=jnp.asarray(room))
  after = run(state, anatomy, w=Parameters(growth=0.05), steps=1)
  np.testing.assert_array_equal(np.asarray(after.infection) & ~lesion, room)


def test_chances_are_proportional_reach_their_sum_and_stay_below_one():
  rng = np.random.default_rng(0)
  weight = jnp.asarray(rng.random((40, 4, 4, 4)).astype(np.float32))
  few = spread.chances(weight, 20.0)
  np.testing.assert_allclose(few / few.max(), weight / weight.max(), rtol=1e-3)
  assert few.sum() == pytest.approx(20, rel=1e-3)
  many = spread.chances(weight, 2000.0)
  assert many.max() == 1 and many.sum() == pytest.approx(2000, rel=2e-3)
  few = spread.chances(weight * 1e-9, 20.0)
  assert few.sum() == pytest.approx(20, rel=1e-3)
  every = spread.chances(weight, 1e6)
  assert (every == 1).all()
  np.testing.assert_array_equal(spread.chances(weight * 0, 5.0), weight * 0)


def test_exact_sum_does_not_depend_on_order_or_padding():
  values = np.random.default_rng(0).random((2400, 4, 4, 4)).astype(np.float32)
  total = spread.exact_sum(jnp.asarray(values))
  assert float(total) == pytest.approx(values.sum(dtype=np.float64), rel=1e-5)
  padded = np.concatenate([np.zeros((77, 4, 4, 4), np.float32), values[::-1]])
  assert spread.exact_sum(jnp.asarray(padded)) == total
  ones = jnp.ones((8, 4, 4, 4))
  assert spread.exact_sum(ones) == 512


@pytest.mark.parametrize('shape', [(8, 8, 8), (24, 16, 32), (19, 30, 11)])
def test_neighbourhood_equals_scipy(shape):
  mask = np.random.default_rng(0).random(shape) < 0.1
  state = State(jnp.zeros(shape), jnp.asarray(mask))
  anatomy = Anatomy(jnp.ones(shape, bool), (1.0, 1.0, 1.0))
  held, fits = packed(state, anatomy, 300)
  assert fits

  @hurried
  def counted(held):
    count = blocks.neighbourhood(held, held.infection)
    return blocks.unpack(held.replace(signal=count.astype(jnp.float32)), state).signal

  back = counted(held)
  expected = scipy.ndimage.convolve(
    mask.astype(int), np.ones((3, 3, 3), int), mode='constant'
  )
  inside = scipy.ndimage.maximum_filter(mask, 3, mode='constant')
  np.testing.assert_array_equal(np.asarray(back)[inside], expected[inside])


def test_blocks_that_infection_touches_are_active():
  mask = np.zeros((32, 32, 32), bool)
  mask[8, 15, 18] = True  # At a low x face and a high y face of its block.
  needed = np.asarray(hurried(blocks.needed_for)(jnp.asarray(mask))).reshape(8, 8, 8)
  expected = {(x, y, 4) for x in (1, 2) for y in (3, 4)}
  assert set(map(tuple, np.argwhere(needed))) == expected
  state = State(jnp.zeros(mask.shape), jnp.asarray(mask))
  held, _ = packed(state, Anatomy(jnp.ones(mask.shape, bool), (1, 1, 1)), 16)
  numbers = np.unique(hurried(blocks.needed_by)(held))
  np.testing.assert_array_equal(numbers[numbers < needed.size], np.flatnonzero(needed))
  assert held.used == 4


# Morphology


def spread_from_seed(settings, n=48, steps=100, radius=2, prior=None, keys=None):
  """Births-only growth from the middle of uniform tissue, (runs, n, n, n) bool."""
  mask = ball((n,) * 3, (n // 2,) * 3, radius)
  state = State(jnp.full((n,) * 3, -0.03), jnp.asarray(mask))
  tissue = Anatomy(jnp.ones((n,) * 3, bool), (1.0, 1.0, 1.0), prior)
  w = float_scalars(BIRTHS_ONLY.replace(growth=0.05, ggo_gain=1e-3))
  capacity = np.prod(blocks.grid_of((n,) * 3))
  advance = lambda key: trajectory.advance(  # noqa: E731
    key, state, w, tissue, settings, 0, steps, capacity=int(capacity)
  )
  after, reached, _ = jax.vmap(advance)(
    jax.random.split(KEY, 1 if keys is None else keys)
  )
  assert (reached == steps).all()
  return np.asarray(after.infection)


@pytest.mark.slow
@pytest.mark.parametrize('clustering', [1.0, 3.0])
def test_growth_has_no_preferred_direction(clustering):
  every = spread_from_seed(
    Settings(clustering=clustering), n=24, steps=60, radius=1, keys=200
  )
  # Equal weight for every run: an early birth decides where one of them goes.
  points = [np.argwhere(mask) - 12 for mask in every]
  drift = np.mean([p.mean(axis=0) for p in points], axis=0)
  moment = np.mean([p.T @ p / len(p) for p in points], axis=0)
  values = np.linalg.eigvalsh(moment)
  assert every.sum() > 10_000
  assert (np.abs(drift) < 0.1).all()
  assert values[-1] / values[0] < 1.1


def test_clustering_makes_lesions_compact():
  surface = {}
  for clustering in (0.0, 3.0):
    (mask,) = spread_from_seed(Settings(clustering=clustering))
    edge = mask & ~scipy.ndimage.binary_erosion(mask)
    surface[clustering] = edge.sum() / mask.sum() ** (2 / 3)
  assert surface[3.0] < 0.7 * surface[0.0]


def test_a_prior_draws_births_to_its_side():
  prior = np.ones((48,) * 3, np.float32)
  prior[:24] = 0.1
  (mask,) = spread_from_seed(PLAIN, prior=jnp.asarray(prior))
  assert mask[24:].sum() > 3 * mask[:24].sum()


def test_satellites_are_born_away_from_the_lesion_in_their_share():
  mask = ball((48,) * 3, (24, 24, 24), 8)
  state = State(jnp.full((48,) * 3, -0.03), jnp.asarray(mask))
  tissue = Anatomy(jnp.ones((48,) * 3, bool), (1.0, 1.0, 1.0))
  near = scipy.ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=1)
  far, births = 0, 0
  w = float_scalars(BIRTHS_ONLY)
  for key in jax.random.split(KEY, 20):
    after = trajectory.run(key, state, w, tissue, Settings(seeding=0.5), steps=1)
    born = np.asarray(after.infection) & ~mask
    far, births = far + (born & ~near).sum(), births + born.sum()
  expected = 20 * 0.02 * mask.sum()
  assert births == pytest.approx(expected, abs=4 * np.sqrt(expected))
  # A satellite may fall next to the lesion, or onto it and be lost.
  share = 0.5 * (1 - near.mean())
  assert far == pytest.approx(share * expected, abs=4 * np.sqrt(share * expected))


def test_a_prior_does_not_change_how_many_are_born():
  mask = ball((48,) * 3, (24, 24, 24), 8)
  state = State(jnp.full((48,) * 3, -0.03), jnp.asarray(mask))
  prior = np.full((48,) * 3, 0.3, np.float32)
  prior[24:] = 1
  tissue = Anatomy(jnp.ones((48,) * 3, bool), (1.0, 1.0, 1.0), jnp.asarray(prior))
  w = float_scalars(BIRTHS_ONLY)
  for seeding in (0.0, 1.0):
    births = [
      np.asarray(
        trajectory.run(
          key, state, w, tissue, Settings(seeding=seeding), steps=1
        ).infection
      ).sum()
      - mask.sum()
      for key in jax.random.split(KEY, 20)
    ]
    expected = 20 * 0.02 * mask.sum()
    assert sum(births) == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_conversion_prefers_consolidated_neighbours_at_the_same_mean():
  n = 32
  signal = np.full((n,) * 3, -0.001, np.float32)
  signal[: n // 2] = 0.1  # One half consolidated, beside ground glass about to reach 0.
  state = State(jnp.asarray(signal), jnp.ones((n,) * 3, bool))
  tissue = Anatomy(jnp.ones((n,) * 3, bool), (1.0, 1.0, 1.0))
  w = float_scalars(Parameters(conversion=0.05))
  shares = {}
  for power in (0.0, 2.0):
    settings = Settings(consolidation_clustering=power)
    after = np.asarray(trajectory.run(KEY, state, w, tissue, settings, steps=1).signal)
    reached = (after[n // 2 :] >= 0) | (after[n // 2 :] == np.float32(law.HELD))
    passed = after[n // 2 :] >= 0
    shares[power] = passed.sum() / reached.sum(), passed[0].sum() / reached[0].sum()
  assert shares[0.0][0] == pytest.approx(0.05, abs=0.008)
  assert shares[2.0][0] == pytest.approx(0.05, abs=0.008)
  assert shares[2.0][1] > 5 * shares[0.0][1]


# Noise


def held_everywhere(shape):
  state = State(jnp.zeros(shape), jnp.ones(shape, bool))
  anatomy = Anatomy(jnp.ones(shape, bool), (1.0, 1.0, 1.0))
  return packed(state, anatomy, int(np.prod(blocks.grid_of(shape))))[0], state


@pytest.mark.parametrize('pitch', [(1, 1, 1), (2, 3, 1), (5, 2, 4)])
def test_noise_is_unit_normal_everywhere_and_correlated_as_far_as_asked(pitch):
  held, state = held_everywhere((16, 16, 16))
  volume = jax.jit(
    jax.vmap(
      lambda k: (
        blocks.unpack(held.replace(signal=noise.draw(k, held, pitch)[0]), state).signal
      )
    )
  )
  fields = np.asarray(volume(jax.random.split(KEY, 2000)))
  assert np.abs(fields.mean(axis=0)).max() < 0.12
  np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.09)
  for axis, p in enumerate(pitch, start=1):
    line = np.moveaxis(fields, axis, -1)
    for lag in (1, 2, 5):
      measured = np.mean(line[..., lag:] * line[..., :-lag])
      assert measured == pytest.approx(max(1 - lag / p, 0), abs=0.02)
    # No border is nearer to some voxels than to others, whatever the blocks.
    pairs = (line[..., 1:] * line[..., :-1]).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(pairs, 1 - 1 / p, atol=0.08)


def test_draws_are_uniform_and_independent_of_each_other():
  held, _ = held_everywhere((16, 16, 16))
  keys = jax.random.split(KEY, 50)
  z, u = hurried(jax.vmap(lambda k: noise.draw(k, held)))(keys)
  z, u = np.asarray(z).ravel(), np.asarray(u).ravel()
  assert scipy.stats.kstest(u[::7], 'uniform').pvalue > 1e-3
  assert scipy.stats.kstest(z[::7], 'norm').pvalue > 1e-3
  assert abs(np.corrcoef(z, u)[0, 1]) < 0.01
  assert u.min() >= 0 and u.max() < 1 and np.isfinite(z).all()


def test_a_cell_is_as_wide_as_the_correlation_length():
  assert noise.pitch_for(0.0, (0.65, 0.65, 1.0)) == (1, 1, 1)
  assert noise.pitch_for(2.0, (0.65, 0.65, 1.0)) == (3, 3, 2)
  assert noise.pitch_for(3.0, (2.6, 2.6, 2.7)) == (1, 1, 1)
