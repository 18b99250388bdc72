import json

import numpy as np
import pytest
from conftest import run_job

from configs import benchmark as config_file
from covid3way.base import ConfigError
from covid3way.jobs import benchmark, peers, stages, throughput
from covid3way.networks import inference
from covid3way.networks.unet import UNet
from covid3way.phantom.plain import plain_chest, plain_scan
from covid3way.standard.lungs import find_lungs
from covid3way.standard.space import StandardSpace


def test_a_chest_has_lungs_of_4_6_l_and_the_infected_share():
  for share in (0.01, 0.1):
    signal, lungs, infection = plain_chest(96, share)
    assert signal.shape == (96, 96, 96)
    assert infection.sum() / lungs.sum() == pytest.approx(share, rel=0.15)
    assert not (infection & ~lungs).any()
    litres = lungs.sum() * np.prod(StandardSpace((96, 96, 96)).spacing_mm) / 1e6
    assert litres == pytest.approx(4.6, rel=0.02)


def test_the_scan_of_a_chest_has_lungs_that_are_found():
  hu, grid = plain_scan(128)
  assert hu.shape == grid.shape == (128, 128, 75)
  labels, warnings = find_lungs(hu.astype(np.float32), grid.spacing_mm)
  litres = np.count_nonzero(labels) * grid.voxel_ml / 1000
  assert litres == pytest.approx(4.6, rel=0.05) and not warnings
  assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.parametrize(
  ('case', 'expected'), [('512-03', (512, 0.03)), ('128', (128, 0.03))]
)
def test_cases_are_read(case, expected):
  assert stages.parse('simulate', case) == expected


@pytest.mark.parametrize(
  ('wrong', 'told'),
  [
    (('segment', '128'), 'stages are'),
    (('fit', 'x'), '128 or 512-03'),
    (('cast', '64-y'), '128 or 512-03'),
    (('train', '128'), 'precision, devices'),
  ],
)
def test_a_wrong_case_is_told_before_anything_is_measured(wrong, told, tmp_path):
  with pytest.raises(ConfigError, match=told):
    run_job('benchmark', tmp_path, benchmark={'cases': (('fit', '32-10'), wrong)})
  assert not list(tmp_path.iterdir())


def test_every_case_of_the_config_exists():
  known = {*stages.STAGES, *peers.STAGES, 'train'}
  for variant in (*config_file._CASES, 'peers', 'all', 'smoke'):
    config = config_file.get_config(variant)
    assert {stage for stage, _ in config.benchmark.cases} <= known
    assert benchmark._cases(config)
  in_all = {stage for stage, _ in config_file.get_config('all').benchmark.cases}
  assert in_all == known - set(peers.STAGES)


def test_cases_of_a_training_are_read():
  assert throughput.parse('512-bfloat16-8') == (512, 'bfloat16', 8)
  for wrong in ('512', '512-float16-1', '512-float32-0', 'x-float32-1'):
    with pytest.raises(ConfigError, match='voxels a side, precision, devices'):
      throughput.parse(wrong)


def test_operations_by_hand():
  """A slice of 4 x 4 pixels, two levels of 1 and 2 channels, 3 slices in."""
  whole = inference.boxes((0, 0), (4, 4), (4, 4), UNet((1, 2)).stride)
  down = 16 * 9 * (3 * 1 + 1 * 1)
  lowest = 4 * 9 * (1 * 2 + 2 * 2)
  up = 16 * (2 * 1) + 16 * 9 * (2 * 1 + 1 * 1)
  head = 16 * 2 * 1
  assert inference.operations((1, 2), 3, whole) == 2 * (down + lowest + up + head)


def test_shares_of_the_limit_by_hand():
  limits = {'copy_gb_per_s': 10.0, 'product_gflop_per_s': 100.0}
  bound = benchmark._bound(20e9, 50e9, 4.0, limits)
  assert bound == {'moved_gb': 20, 'gflop': 50, 'share_of_limit': 0.5}
  assert benchmark._bound(1e9, 200e9, 4.0, limits)['share_of_limit'] == 0.5
  assert benchmark._bound(0, 0, 4.0, limits)['share_of_limit'] is None


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """The smoke variant's, by stage."""
  workdir = tmp_path_factory.mktemp('benchmark')
  run_job('benchmark', workdir)
  assert (workdir / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
  return {
    row['stage']: row for row in json.loads((workdir / 'benchmark.json').read_text())
  }


@pytest.mark.slow
def test_the_machine_stands_first_and_all_shares_are_of_it(rows):
  machine, *others = rows.values()
  assert machine['stage'] == 'machine'
  assert machine['copy_gb_per_s'] > 0.1 and machine['product_gflop_per_s'] > 1
  for row in others:
    if row['stage'] == 'train':
      continue
    copied = row['moved_gb'] / machine['copy_gb_per_s']
    product = row['gflop'] / machine['product_gflop_per_s']
    share = max(copied, product) / row['warm_s']
    assert (row['share_of_limit'] or 0) == pytest.approx(share, rel=0.01)
    assert 0 <= share < 1.5 and row['rate'] > 0


@pytest.mark.slow
def test_what_moves_is_what_the_volumes_hold(rows):
  chest = 32 * 32 * 19
  assert rows['cast']['moved_gb'] == pytest.approx(4e-9 * (chest + 32**3), rel=0.01)
  assert rows['stacks']['moved_gb'] > 0 and rows['return']['gflop'] > 0


@pytest.mark.slow
def test_the_rates_of_a_training_fit_together(rows):
  """Together is what the slower part allows at best."""
  row = rows['train']
  rates = [row[f'{name}_per_s'] for name in ('loader', 'devices', 'together')]
  assert all(rate > 0 for rate in rates)
  assert row['share'] == pytest.approx(rates[2] / min(rates[:2]), rel=1e-2)
  assert 0 < row['share_of_limit'] < 1
