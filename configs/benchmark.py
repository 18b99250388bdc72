"""Measures stages on this machine; prints a table and writes `benchmark.json`.

  python -m covid3way.main --config=configs/benchmark.py:simulator \
    --workdir=runs/benchmark

The law and its morphology are those of `config.simulator`, as in the other jobs.
Cases are voxels per side, and the infected share of the lung in percent (3 when it is
not given). Every case runs in a process of its own, once cold, with compilation, and
then warm; `peak_mib` is the accelerator's, on a CPU the whole process's.
"""

from configs import default


def get_config(variant: str = 'simulator'):
  """`:simulator` measures T(W) and the fit; `:smoke` the same, tiny."""
  names = {'': '', 'simulator': '', 'smoke': 'smoke'}
  config = default.pick(
    'benchmark', names.get(variant, variant), 'simulator', 'benchmark'
  )
  if variant == 'smoke':
    config.benchmark.update(
      cases=(('simulate', '32-10'), ('fit', '32-10')), transitions=20, repeats=1
    )
  return config
