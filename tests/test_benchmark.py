import numpy as np
import pytest

from covid3way.base import ConfigError
from covid3way.jobs import benchmark
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
  assert benchmark._parse('simulate', case) == ('simulate', case, expected)


@pytest.mark.parametrize('wrong', [('predict', '128'), ('fit', 'x'), ('fit', '64-y')])
def test_a_wrong_case_is_an_error(wrong):
  with pytest.raises(ConfigError, match='stages are simulate, fit'):
    benchmark._parse(*wrong)
