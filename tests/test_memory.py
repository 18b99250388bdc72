"""Memory is kept from step to step."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

_FAULTS = """
import resource, sys, threading
from covid3way.jobs import memory
if sys.argv[1] == 'kept':
  memory.keep()
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  b'x' * 2**26
  found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
found = []
for _ in range(2):
  thread = threading.Thread(target=faults)
  thread.start()
  thread.join()
print(found[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has a choice')
def test_what_a_thread_frees_the_next_one_gets():
  kept, anew = (
    int(subprocess.check_output([sys.executable, '-c', _FAULTS, how], cwd=ROOT))
    for how in ('kept', 'anew')
  )
  assert kept < 100 < anew
