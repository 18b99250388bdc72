import json

import numpy as np
import pytest
from conftest import run_job

from covid3way.base import ConfigError
from covid3way.jobs import benchmark, throughput
from covid3way.simulator.prior import Location
from covid3way.standard.space import StandardSpace


def test_a_case_is_its_size_and_its_infected_share():
  for share in (0.01, 0.1):
    state, anatomy = benchmark._chest(96, share, Location())
    lungs, infection = (np.asarray(a) for a in (anatomy.susceptible, state.infection))
    assert state.signal.shape == (96, 96, 96)
    assert infection.sum() / lungs.sum() == pytest.approx(share, rel=0.15)
    assert not (infection & ~lungs).any()
    litres = lungs.sum() * np.prod(StandardSpace((96, 96, 96)).spacing_mm) / 1e6
    assert litres == pytest.approx(4.6, rel=0.02)


@pytest.mark.parametrize(
  ('case', 'expected'), [('512-03', (512, 0.03)), ('128', (128, 0.03))]
)
def test_cases_are_read(case, expected):
  assert benchmark._parse('simulate', case) == expected


@pytest.mark.parametrize('wrong', [('predict', '128'), ('fit', 'x'), ('fit', '64-y')])
def test_a_wrong_case_is_an_error(wrong):
  with pytest.raises(ConfigError, match='stages are simulate, fit'):
    benchmark._parse(*wrong)


def test_cases_of_a_training_are_read():
  assert throughput.parse('512-bfloat16-8') == (512, 'bfloat16', 8)
  for wrong in ('512', '512-float16-1', '512-float32-0', 'x-float32-1'):
    with pytest.raises(ConfigError, match='voxels a side, precision, devices'):
      throughput.parse(wrong)


def test_the_rates_of_a_training_fit_together(tmp_path):
  """The smoke variant's one case; together is what the slower part allows at best."""
  run_job('benchmark', tmp_path, benchmark={'cases': (('train', '32-float32-2'),)})
  (row,) = json.loads((tmp_path / 'benchmark.json').read_text())
  rates = [row[f'{name}_per_s'] for name in ('loader', 'devices', 'together')]
  assert all(rate > 0 for rate in rates)
  assert row['share'] == pytest.approx(rates[2] / min(rates[:2]), rel=1e-2)
