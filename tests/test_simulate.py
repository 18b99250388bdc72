"""The simulate job: one scan in, its course out, on the scan's own grid."""

import csv
import dataclasses
import importlib
import json
from pathlib import Path

import jax
import nibabel
import numpy as np
import pytest
from absl import flags
from flax import struct
from ml_collections import config_flags
from PIL import Image
from scipy import ndimage

from covid3way.base import (
  ConfigError,
  Grid,
  InputError,
  ParameterError,
  SerialError,
  Window,
)
from covid3way.jobs import laws, simulate
from covid3way.jobs.preprocess import read_and_cast
from covid3way.scans import nifti, store
from covid3way.scans.manifest import ManifestRow, read_manifest, write_manifest
from covid3way.simulator.law import Law
from covid3way.simulator.parameters import BOUNDS, Bound, Parameters, as_dict, check
from covid3way.simulator.prior import Location
from covid3way.standard.change import changed_hu, changed_mask
from covid3way.standard.space import StandardSpace, place, return_mask

SHAPE, SPACING_MM = (56, 48, 40), (5.0, 5.0, 6.0)
# Stored with x and z running backwards, as many exporters do.
AFFINE = np.array([[-5.0, 0, 0, 140.0], [0, 5, 0, -120], [0, 0, -6, 120], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
HALF_A_DAY = {'days': 0.5, 'every_days': 0.2, 'frames': 6}


def ball(centre_mm, radii_mm):
  at = np.indices(SHAPE) + 0.5
  apart = [
    (a * s - c) / r
    for a, s, c, r in zip(at, SPACING_MM, centre_mm, radii_mm, strict=True)
  ]
  return np.sum(np.square(apart), axis=0) < 1


@pytest.fixture(scope='module')
def chest():
  """HU, lungs (1 left, 2 right) and infection of a chest of ellipsoids, [x, y, z]."""
  lungs = np.zeros(SHAPE, np.uint8)
  lungs[ball((205, 120, 120), (50, 80, 100))] = 1
  lungs[ball((75, 120, 120), (50, 80, 100))] = 2
  infection = ball((205, 150, 110), (34, 34, 40)) & (lungs > 0)
  noise = np.random.default_rng(0).normal(0, 20, SHAPE)
  hu = np.where(ball((140, 120, 120), (135, 110, 400)), 40.0, -1000.0)
  hu = np.where(lungs > 0, -840 + noise, hu)
  hu = np.where(infection, -660 + noise, hu)
  return np.rint(hu).astype(np.float32), lungs, infection


def write(folder, hu, lungs, infection, **known):
  """A NIfTI scan with its masks and a manifest of that one line."""
  folder.mkdir(parents=True, exist_ok=True)
  volumes = {'ct': hu, 'lungs': lungs, 'infection': infection}
  for name, volume in volumes.items():
    dtype = hu.dtype if name == 'ct' else np.uint8
    nifti.write_volume(folder / f'{name}.nii.gz', volume, GRID, dtype=dtype)
  row = ManifestRow(
    'p1',
    'p1-a',
    folder / 'ct.nii.gz',
    infection_mask=folder / 'infection.nii.gz',
    lung_mask=folder / 'lungs.nii.gz',
    **known,
  )
  write_manifest(folder / 'manifest.csv', [row])
  return folder / 'manifest.csv'


def config_for(manifest, **simulation):
  config = importlib.import_module('configs.simulate').get_config('smoke')
  config.input = str(manifest)
  config.simulation.update(simulation)
  return config


@pytest.fixture(scope='module')
def course(chest, tmp_path_factory):
  """Manifest and workdir of half a day with outputs every 0.2 days."""
  folder = tmp_path_factory.mktemp('course')
  manifest = write(folder / 'scan', *chest, day=2.0)
  config = config_for(manifest, **HALF_A_DAY)
  simulate.run(config, folder / 'out')
  return manifest, folder / 'out'


def outputs(workdir):
  """(day, HU, infection, both grids) per output, in order."""
  for folder in sorted((workdir / 'nifti').iterdir()):
    hu, grid = nifti.read_volume(folder / 'ct.nii.gz', scan_id='test')
    infection, also = nifti.read_volume(folder / 'infection.nii.gz', scan_id='test')
    yield float(folder.name.removeprefix('day')), hu, infection > 0, (grid, also)


def test_every_output_is_on_the_scans_own_grid(course):
  manifest, workdir = course
  native = {}
  for path in (workdir / 'nifti').rglob('*.nii.gz'):
    image = nibabel.load(path)
    native[path.relative_to(workdir / 'nifti')] = image
  assert len(native) == 4 * 3  # Days 0, 0.2, 0.4 and the last, 0.5.
  given = nibabel.load(manifest.parent / 'ct.nii.gz')
  for image in native.values():
    assert image.shape == SHAPE
    np.testing.assert_array_equal(image.affine, given.affine)


def test_day_0_is_the_scan_and_its_mask(course, chest):
  hu, _, infection = chest
  day, same_hu, same_infection, _ = next(outputs(course[1]))
  assert day == 0
  np.testing.assert_array_equal(same_hu, hu)
  np.testing.assert_array_equal(same_infection, infection)


def ever_infected(manifest, transitions):
  """On the own grid, (x, y, z) bool: also what was born and recovered unseen."""
  (row,) = read_manifest(manifest)
  config = config_for(manifest)
  origin = simulate._begin(row, Location(), config)
  settings = laws.simulator_settings(config.simulator)
  w = check(Parameters(), subject='test')
  states = simulate._states(jax.random.key(0), origin, w, settings, range(transitions))
  ever = np.any([state.infection for state in states], axis=0)
  return return_mask(ever, origin.standard.placement)


def test_what_was_never_infected_keeps_its_bits(course, chest):
  hu, lungs, infection = chest
  manifest, workdir = course
  changed = np.any([now != hu for _, now, _, _ in outputs(workdir)], axis=0)
  ever = infection | ever_infected(manifest, 51)
  near = ndimage.binary_dilation(ever, np.ones((5, 5, 5)))  # Between two grids.
  assert changed.sum() > infection.sum() / 2
  assert not changed[~near | (lungs == 0)].any()
  assert not changed[lungs == 2].any()  # The lesion is in the left lung.


def test_infection_is_denser_than_the_threshold_of_recovery(course):
  *_, (_, hu, infection, _) = outputs(course[1])
  inside = ndimage.binary_erosion(infection, np.ones((5, 5, 5)))
  assert inside.any() and (hu[inside] > -600 - 0.15 * 1200 - 60).all()


def test_the_table_is_that_of_the_masks(course, chest):
  _, workdir = course
  with (workdir / 'course.csv').open() as table:
    rows = list(csv.DictReader(table))
  assert [float(row['day']) for row in rows] == [0, 0.2, 0.4, 0.5]
  assert [int(row['transitions']) for row in rows] == [0, 20, 40, 50]
  lung_voxels = np.count_nonzero(chest[1])
  for row, (day, _, infection, _) in zip(rows, outputs(workdir), strict=True):
    assert day == float(row['day'])
    stages, _ = nifti.read_volume(
      workdir / 'nifti' / f'day{day:05.1f}' / 'stages.nii.gz', scan_id='test'
    )
    np.testing.assert_array_equal(stages > 0, infection)
    counts = {
      'infected_ml': infection.sum(),
      'ggo_ml': (stages == 1).sum(),
      'consolidation_ml': (stages == 2).sum(),
    }
    for name, count in counts.items():
      assert float(row[name]) == pytest.approx(count * 0.15, abs=1e-3)
    share = 100 * infection.sum() / lung_voxels
    assert float(row['infected_percent']) == pytest.approx(share, abs=1e-4)
  volumes = [float(row['infected_ml']) for row in rows]
  assert volumes == sorted(volumes) and volumes[-1] > 1.05 * volumes[0]


def test_states_are_groups_of_the_store_that_say_what_they_are(course):
  manifest, workdir = course
  (row,) = read_manifest(manifest)
  groups = {p.stem: store.open_group(p) for p in store.list_groups(workdir / 'course')}
  assert list(groups) == [f'p1-a-day000.{tenth}' for tenth in (0, 2, 4, 5)]
  space = StandardSpace((48, 48, 64))
  config = config_for(manifest)
  *_, standard = read_and_cast(row, space, config.window)
  first, last = groups['p1-a-day000.0'], groups['p1-a-day000.5']
  signal = first.volumes['signal'].read().result()
  np.testing.assert_array_equal(signal, np.float16(standard.signal))
  known = last.attributes
  assert (known['patient_id'], known['scan_id'], known['day']) == (
    'p1',
    last.scan_id,
    2.5,
  )
  assert known['placement'] == json.loads(json.dumps(standard.facts()['placement']))
  assert known['simulated'] == {
    'parent_scan': 'p1-a',
    'transitions': 50,
    'W': as_dict(check(Parameters(), subject='test')),
    'seed': 0,
    'law': 'covid3way.simulator.law.LAW',
    'settings': {
      k: v for k, v in config.simulator.to_dict().items() if k != 'law'
    },
  }  # fmt: skip
  masks = [g.volumes['infection'].read().result() > 0 for g in (first, last)]
  grown = masks[1] & ~masks[0]
  later = last.volumes['signal'].read().result()
  assert grown.any() and (later[grown] > -0.151).all()
  assert (later[~masks[0] & ~masks[1]] == signal[~masks[0] & ~masks[1]]).mean() > 0.999


def test_pictures_hold_every_frame(course):
  _, workdir = course
  with Image.open(workdir / 'course.gif') as gif:
    assert gif.n_frames == 6
  with Image.open(workdir / 'strip.png') as strip:
    assert strip.width > 4 * 300


def files(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


def test_same_seed_same_bytes_and_another_seed_another_course(course, tmp_path):
  manifest, workdir = course
  config = config_for(manifest, **HALF_A_DAY)
  simulate.run(config, tmp_path / 'again')
  assert files(tmp_path / 'again') == files(workdir)
  for file in files(workdir):
    assert (tmp_path / 'again' / file).read_bytes() == (workdir / file).read_bytes(), (
      file
    )
  config.simulation.update(seed=1, every_days=0.5, frames=2)
  simulate.run(config, tmp_path / 'other')
  last = 'nifti/day000.5/infection.nii.gz'
  first, other = (
    nifti.read_volume(folder / last, scan_id='test')[0]
    for folder in (workdir, tmp_path / 'other')
  )
  assert (first != other).any()


def test_a_second_run_skips_what_is_finished(course):
  manifest, workdir = course
  before = {file: (workdir / file).stat().st_mtime_ns for file in files(workdir)}
  config = config_for(manifest, **HALF_A_DAY)
  simulate.run(config, workdir)
  del before[Path('simulate.json')]
  assert all((workdir / f).stat().st_mtime_ns == t for f, t in before.items())
  config.simulation.seed = 1
  with pytest.raises(ConfigError, match='seed differ from the earlier simulate run'):
    simulate.run(config, workdir)


def write_fits(path, law='covid3way.simulator.law.LAW'):
  pairs = [{'W': {**as_dict(Parameters()), 'noise': n}} for n in (0.002, 0.004)]
  path.write_text(json.dumps({'law': law, 'pairs': pairs}))
  return str(path)


def test_w_is_fitted_and_the_command_line_replaces_values(course, tmp_path):
  manifest, workdir = course
  arguments = {
    'simulation.fit': write_fits(tmp_path / 'fits.json'),
    'simulation.pair': 0,
    'simulation.W.growth': 0.02,
    'simulation.days': 0.2,
    'simulation.every_days': 0.2,
  }
  given = [f'--config.{name}={value}' for name, value in arguments.items()]
  values, argv = flags.FlagValues(), ['main', *given]
  config_flags.DEFINE_config_dict(
    'config', config_for(manifest), flag_values=values, sys_argv=argv
  )
  values(argv)
  simulate.run(values.config, tmp_path / 'out')
  used = json.loads((tmp_path / 'out' / 'simulate.json').read_text())['W']
  assert used['growth'] == pytest.approx(0.02)
  assert used['noise'] == pytest.approx(0.002)
  assert used['absorption'] == pytest.approx(Parameters().absorption)
  (_, _, slow, _), (_, _, fast, _) = (
    list(outputs(folder))[1] for folder in (workdir, tmp_path / 'out')
  )
  assert fast.sum() > 1.2 * slow.sum()


def test_a_scan_without_a_manifest_and_with_fractions_of_hu(chest, tmp_path):
  hu, lungs, infection = chest
  manifest = write(tmp_path / 'scan', hu + np.float32(0.25), lungs, infection)
  config = config_for(manifest.parent / 'ct.nii.gz', days=0.1, frames=2)
  config.infection_mask = str(manifest.parent / 'infection.nii.gz')
  simulate.run(config, tmp_path / 'out')
  first, last = outputs(tmp_path / 'out')
  np.testing.assert_array_equal(first[1], hu + np.float32(0.25))
  kept = last[1] == first[1]
  assert 0.9 < kept.mean() < 1
  path = tmp_path / 'out' / 'nifti' / 'day000.1' / 'ct.nii.gz'
  assert nibabel.load(path).get_data_dtype() == np.float32
  (group,) = list(store.list_groups(tmp_path / 'out' / 'course'))[1:]
  assert store.open_group(group).attributes['day'] is None


def nothing(lungs, infection):
  return np.zeros_like(infection)


def elsewhere(lungs, infection):
  return lungs == 0


def test_a_susceptible_mask_is_obeyed_and_kept(chest, tmp_path):
  hu, lungs, infection = chest
  manifest = write(tmp_path / 'scan', hu, lungs, infection)
  (row,) = read_manifest(manifest)
  allowed = (lungs > 0) & (np.arange(SHAPE[1])[:, None] < 30)  # Not at the back.
  path = manifest.with_name('susceptible.nii.gz')
  nifti.write_volume(path, allowed, GRID, dtype=np.uint8)
  write_manifest(manifest, [dataclasses.replace(row, susceptible_mask=path)])
  config = config_for(manifest, days=0.3, every_days=0.3, frames=2)
  config.simulation.W.growth = 0.02
  simulate.run(config, tmp_path / 'out')
  first, last = map(store.open_group, store.list_groups(tmp_path / 'out' / 'course'))
  masks = [
    group.volumes[name].read().result() > 0
    for group, name in (
      (first, 'infection'),
      (last, 'infection'),
      (last, 'susceptible'),
    )
  ]
  born = masks[1] & ~masks[0]
  assert born.sum() > 50 and not born[~masks[2]].any()


def test_with_a_rim_new_infection_is_nearer_to_the_pleura(chest, tmp_path):
  manifest = write(tmp_path / 'scan', *chest)
  depths = {}
  for rim_mm in (0.0, 5.0):
    config = config_for(manifest, days=0.3, every_days=0.3, frames=2)
    config.simulation.W.growth = 0.02
    config.simulator.rim_mm = rim_mm
    simulate.run(config, tmp_path / f'{rim_mm}')
    first, last = outputs(tmp_path / f'{rim_mm}')
    born = last[2] & ~first[2]
    depths[rim_mm] = ndimage.distance_transform_edt(chest[1], SPACING_MM)[born]
    assert born.sum() > 50
  assert depths[5.0].mean() < 0.85 * depths[0.0].mean()


def a_speck(lungs, infection):
  first = np.cumsum(infection).reshape(SHAPE) <= 90
  return infection & first


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (nothing, 'the infection mask of scan p1-a is empty'),
    (elsewhere, 'lie outside the lungs'),
    (a_speck, 'infected voxels in the lungs of scan p1-a; at least 200'),
  ],
)
def test_masks_that_cannot_be_simulated(chest, tmp_path, damage, words):
  hu, lungs, infection = chest
  manifest = write(tmp_path / 'scan', hu, lungs, damage(lungs, infection))
  with pytest.raises(SerialError, match=f'^scan p1-a: .*{words}'):
    simulate.run(config_for(manifest), tmp_path / 'out')


def two_scans(config, manifest):
  (row,) = read_manifest(manifest)
  path = manifest.with_name('two.csv')
  write_manifest(path, [row, dataclasses.replace(row, scan_id='p1-b')])
  config.input = str(path)


def without_mask(config, manifest):
  (row,) = read_manifest(manifest)
  path = manifest.with_name('without.csv')
  write_manifest(path, [dataclasses.replace(row, infection_mask=None)])
  config.input = str(path)


def w(**values):
  return lambda config, _: config.simulation.W.update(values)


@struct.dataclass
class Nine(Parameters):
  ninth: float = 0.5


NINE = Law(Nine, {**BOUNDS, 'ninth': Bound(0.1, 1.0)})


def nine(**values):
  def change(config, _):
    config.simulator.law = 'test_simulate.NINE'
    config.simulation.W.update(values)

  return change


def simulation(**values):
  return lambda config, _: config.simulation.update(values)


def fitted(pair=-1, **about):
  def change(config, manifest):
    fits = write_fits(manifest.with_name('fits.json'), **about)
    config.simulation.update(fit=fits, pair=pair)

  return change


@pytest.mark.parametrize(
  ('change', 'error', 'words'),
  [
    (w(growth=float('nan')), ParameterError, 'p1-a: growth = nan'),
    (w(conversion=1.5), ParameterError, 'p1-a: conversion = 1.5; use a number from'),
    (w(absorption=-0.1), ParameterError, 'p1-a: absorption = -0.1'),
    (w(ninth=0.5), ParameterError, 'p1-a: W with .*ninth'),
    (nine(ninth=2.0), ParameterError, 'p1-a: ninth = 2; use a number from 0.1 to 1'),
    (nine(noise=2.0), ParameterError, 'p1-a: noise = 2'),  # The ninth has a default.
    (simulation(days=0.0), ConfigError, 'config.simulation.days: 0 days'),
    (simulation(days=-1.0), ConfigError, 'config.simulation.days: -1 days'),
    (simulation(days=float('inf')), ConfigError, 'config.simulation.days: inf'),
    (simulation(every_days=0.25), ConfigError, 'every_days: 0.25 days; use tenths'),
    (simulation(frames=1), ConfigError, 'config.simulation.frames: 1'),
    (simulation(fit='absent.json'), InputError, 'no fits in absent.json'),
    (fitted(pair=2), ConfigError, 'config.simulation.pair: 2; use -2 to 1'),
    (fitted(law='my.LAW'), SerialError, 'fits.json: fitted with the law my.LAW'),
    (two_scans, InputError, 'config.input: 2 scans in two.csv'),
    (without_mask, ConfigError, 'config.infection_mask: not given'),
  ],
)
def test_settings_that_cannot_be_simulated(course, tmp_path, change, error, words):
  config = config_for(course[0])
  change(config, course[0])
  with pytest.raises(error, match=words):
    simulate.run(config, tmp_path)
  assert not list(tmp_path.iterdir())


def same_space(shape=(6, 5, 4)):
  """A placement whose own grid is that of the standard space."""
  space = StandardSpace(shape)
  return place(shape, space.spacing_mm, space)


def test_on_the_standard_spaces_own_grid_the_change_is_exact():
  rng = np.random.default_rng(0)
  placement, window = same_space(), Window(-600.0, 1200.0, 'manifest')
  before, change = rng.normal(-0.2, 0.01, (2, 6, 5, 4)).astype(np.float32)
  touched, within = rng.random((2, 6, 5, 4)) < 0.7
  after = np.where(touched, before + change, before)
  hu = rng.normal(-800, 50, (6, 5, 4)).astype(np.float32)
  result = changed_hu(hu, before, after, placement, window, within=within)
  changes = touched & within
  np.testing.assert_array_equal(result[~changes], hu[~changes])
  expected = np.maximum(hu + 1200 * (after - before), -1024)
  np.testing.assert_allclose(result[changes], expected[changes], atol=1e-3)
  region = (slice(1, 4), slice(2, 3), slice(None))
  part = changed_hu(hu, before, after, placement, window, within=within, region=region)
  np.testing.assert_allclose(part, result[region], atol=1e-3)


def test_a_mask_keeps_its_own_shape_where_nothing_changed():
  placement = same_space()
  own, before, after = (np.zeros((6, 5, 4), bool) for _ in range(3))
  own[1, 1, 1] = True  # Drawn, but too small for the standard space.
  before[4:, :3], after[4:, 1:] = True, True
  everywhere = np.ones_like(own)
  result = changed_mask(own, before, before, placement, within=everywhere)
  np.testing.assert_array_equal(result, own)
  result = changed_mask(own, before, after, placement, within=everywhere)
  changed = before != after
  np.testing.assert_array_equal(result[changed], after[changed])
  np.testing.assert_array_equal(result[~changed], own[~changed])
  result = changed_mask(own, before, after, placement, within=~everywhere)
  np.testing.assert_array_equal(result, own)
