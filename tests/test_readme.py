"""The README's Python is run as it stands there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from covid3way.simulator import law
from covid3way.simulator.parameters import Parameters
from covid3way.simulator.state import Anatomy, State

SHAPE = (24, 20, 28)


@pytest.fixture(scope='module')
def blocks():
  """Code blocks by the first words of what introduces them."""
  text = (ROOT / 'README.md').read_text()
  found = re.findall(r'\*\*([^*]+)\.\*\*(?:(?!\*\*).)*?```python\n(.*?)```', text, re.S)
  return dict(found)


@pytest.fixture
def patient():
  """What a reader has at hand: a lesion of 216 voxels, all of the lung around it."""
  infection = np.zeros(SHAPE, bool)
  infection[8:14, 8:14, 8:14] = True
  signal = np.where(infection, np.float32(-0.03), np.float32(-0.2))
  return {
    'signal': jnp.asarray(signal),
    'infection': jnp.asarray(infection),
    'susceptible': jnp.ones(SHAPE, bool),
    'spacing_mm': (1.0, 1.0, 1.0),
  }


def test_there_is_no_other_python(blocks):
  assert set(blocks) == {
    'Another law', 'Watching a simulation', 'Many patients at once'
  }  # fmt: skip
  assert (ROOT / 'README.md').read_text().count('```python') == len(blocks)


def test_another_law(blocks):
  known = {}
  exec(blocks['Another law'], known)
  own = known['LAW']
  assert isinstance(own, law.Law)
  w = own.parameters()
  signal = jnp.array([-0.05, 0.05, 0.1])
  change = own.drift(signal, w) - law.drift(signal, w)
  np.testing.assert_allclose(change, [0, 0, -w.clearing], atol=1e-9)


def test_watching_and_many_patients(blocks, patient):
  known = dict(patient)
  exec(blocks['Watching a simulation'], known)
  dense = np.asarray(known['seen']['dense'])
  assert dense.shape == (200,) and dense[-1] > dense[0]
  infected = known['state'].infection
  assert (infected & (known['state'].signal >= 0)).sum() == dense[-1]

  stack = lambda *parts: jax.tree.map(lambda *a: jnp.stack(a), *parts)  # noqa: E731
  one = State(patient['signal'], patient['infection'])
  fast, slow = (jax.tree.map(jnp.float32, Parameters(growth=g)) for g in (0.01, 0.001))
  lung = Anatomy(patient['susceptible'], patient['spacing_mm'])
  known |= {
    'keys': jax.random.split(jax.random.key(0)),
    'states': stack(one, one),
    'ws': stack(fast, slow),
    'anatomies': stack(lung, lung),
  }
  exec(blocks['Many patients at once'], known)
  assert (known['reached'] == 200).all()
  more, fewer = known['states'].infection.sum((1, 2, 3))
  assert more > 2 * fewer > 0
