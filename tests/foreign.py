"""Other people's programs, which some tests read our files with."""

import os
from typing import NoReturn

import pytest


def absent(program: str, remedy: str) -> NoReturn:
  """Fails where CI is true, as `.ci/run` has it; else skips what needs the program."""
  told = f'{program} is absent: {remedy}'
  if os.environ.get('CI') == 'true':
    pytest.fail(told)
  pytest.skip(told, allow_module_level=True)
