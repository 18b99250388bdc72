"""Measures stages on this machine; prints a table, writes `benchmark.json` and `.png`.

  python -m covid3way.main --config=configs/benchmark.py:STAGE \
    --workdir=runs/benchmark

| STAGE | what is measured |
|---|---|
| `start` | the program's `--help`, and a wrong use |
| `read` | a DICOM series from the disk |
| `lungs` | the lung mask |
| `cast`, `return` | the standard space, forward and inverse |
| `stacks` | slice stacks of all slices that cross the lungs |
| `networks` | the three probability maps; rates count all slices there are |
| `export` | all files of a scan |
| `predict` | the whole program: all outputs, three networks of the released size |
| `training` | slice stacks per second: the loader, the devices, both |
| `simulator` | 200 transitions of T(W), and the fit of a pair |
| `peers` | OpenCV's and PyTorch's routes, if they are installed, beside ours |
| `all` | all but `peers` |

Cases are voxels a side of the standard space. The scan is `--config.input`, else a
plain chest of as many voxels a side. A case of the simulator also has the infected
share of the lung in percent (3 when it is not given), one of PyTorch the slices of a
batch, one of a training precision and number of devices, which on a CPU are virtual:
for eight accelerators

  --config.training.batch_size=512 \
  --config.benchmark.cases='(("train", "512-bfloat16-1"), ("train", "512-bfloat16-8"))'

Every case runs in a process of its own: `cold_s` is its first run, compilation
included, `warm_s` the median of `config.benchmark.repeats` more. `peak_mib` is the
accelerator's, on a CPU the whole process's. `moved_gb` and `gflop` are the least that a
run has to move and to count; `share_of_limit` is the time which that would take at the
copy and matrix product that the same run measured (first row), over the time it took.
"""

from configs import default

_SIZES = ('128', '256', '512')
_OF_SCANS = (
  'read',
  'lungs',
  'cast',
  'return',
  'stacks',
  'networks',
  'export',
  'predict',
)
_CASES = {
  'start': (('start', '512'),),
  **{stage: tuple((stage, size) for size in _SIZES) for stage in _OF_SCANS},
  'training': tuple(
    ('train', f'128-{precision}-{n}')
    for precision in ('float32', 'bfloat16')
    for n in (1, 2, 4)
  ),
  'simulator': (
    *(('simulate', case) for case in ('128', '256', '512-01', '512-03', '512-10')),
    ('fit', '256'),
  ),
}
_PEERS = (
  ('cast', '512'),
  ('opencv', '512'),
  ('networks', '512'),
  *(('torch', f'512-{batch}') for batch in (1, 4, 8)),
  ('train', '128-float32-1'),
  ('torch_train', '128'),
)
# Of a training, and of no use here.
_UNUSED = ('views', 'patience', 'validation_slices', 'validation_share', 'fold')
_UNUSED += ('simulated_ratio', 'renew_epochs', 'split')


def get_config(variant: str = 'all'):
  """One of the stages above, `:all`, or `:smoke`: some of them, tiny."""
  cases = _CASES | {'peers': _PEERS, 'all': sum(_CASES.values(), ())}
  cases |= {'smoke': (), '': cases['all']}
  if variant not in cases:
    raise ValueError(f'there is no variant {variant!r}, only {", ".join(cases)}')
  config = default.pick(
    'benchmark',
    '',
    *('input', 'window', 'simulator', 'training', 'prediction.batch_size', 'export'),
    'benchmark',
  )
  config.training.update(default.SMOKE_TRAINING if variant == 'smoke' else {})
  for field in _UNUSED:
    del config.training[field]
  config.export.dicom = True
  config.benchmark.cases = cases[variant]
  if variant == 'smoke':
    config.benchmark.update(
      cases=(
        ('start', '32'),
        *((stage, '32') for stage in ('cast', 'return', 'stacks')),
        ('simulate', '32-10'),
        ('fit', '32-10'),
        ('train', '32-float32-1'),
      ),
      transitions=20,
      repeats=1,
      steps=3,
    )
  else:
    config.training.update(batch_size=8, open_slabs=8)
    config.benchmark.steps = 10
  if variant == 'peers':  # PyTorch's stacks are not distorted.
    config.training.distortion.update(flips=False, rotation_degrees=0.0)
  return config
