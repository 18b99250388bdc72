"""Measures stages on this machine; prints a table and writes `benchmark.json`.

  python -m covid3way.main --config=configs/benchmark.py:simulator \
    --workdir=runs/benchmark

`:simulator` measures T(W) and the fit. The law and its morphology are those of
`config.simulator`, as in the other jobs. Cases are voxels per side, and the infected
share of the lung in percent (3 when it is not given). Every case runs in a process of
its own, once cold, with compilation, and then warm; `peak_mib` is the accelerator's, on
a CPU the whole process's.

  python -m covid3way.main --config=configs/benchmark.py:training \
    --workdir=runs/benchmark-training

`:training` measures slice stacks per second: of the loader alone, of the devices alone
(data in memory) and of both together, with the settings of `config.training`. Cases are
voxels per side, precision and number of devices; those it has are for a CPU. For eight
accelerators:

  --config.training.batch_size=512 \
  --config.benchmark.cases='(("train", "512-bfloat16-1"), ("train", "512-bfloat16-8"))'
"""

from configs import default

# Of a training, and of no use here.
_UNUSED = ('views', 'patience', 'validation_slices', 'validation_share', 'fold')
_UNUSED += ('simulated_ratio', 'renew_epochs', 'split')


def get_config(variant: str = 'simulator'):
  """`:simulator`, `:training`, or `:smoke`: both, tiny."""
  names = {'': '', 'simulator': '', 'training': '', 'smoke': 'smoke'}
  config = default.pick(
    'benchmark', names.get(variant, variant), 'simulator', 'training', 'benchmark'
  )
  config.training.update(default.SMOKE_TRAINING if variant == 'smoke' else {})
  for field in _UNUSED:
    del config.training[field]
  if variant == 'training':
    config.training.update(batch_size=8, open_slabs=8)
    config.benchmark.steps = 10
    config.benchmark.cases = tuple(
      ('train', f'128-{precision}-{n}')
      for precision in ('float32', 'bfloat16')
      for n in (1, 2, 4)
    )
  if variant == 'smoke':
    config.benchmark.update(
      cases=(('simulate', '32-10'), ('fit', '32-10'), ('train', '32-float32-1')),
      transitions=20,
      repeats=1,
      steps=3,
    )
  return config
