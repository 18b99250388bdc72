"""Settings and fixtures that all tests share."""

import os
import pathlib

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Compiled code is kept between runs: most of the suite's time is compilation.
jax.config.update(
  'jax_compilation_cache_dir',
  os.environ.get('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / 'jax')),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """The real scans beside the project; tests that need them say so when absent."""
  path = ROOT.parent / 'shared' / 'data'
  if not path.is_dir():
    pytest.skip(f'real scans are absent: {path} does not exist')
  return path
