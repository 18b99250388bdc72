"""The paper's experiments on a cohort: methods x folds x ratios x ablations.

  python -m covid3way.main --config=configs/crossval.py --workdir=runs/study \
    --config.input=manifest.csv

Casts the scans, fits the law, simulates, then trains, tunes and tests every method on
the same folds; `--config=configs/report.py --workdir=runs/study` makes tables, figures
and a page of it. What is done is skipped on a second run, so methods, ratios and
ablations may be added later. As an array: `--config.crossval.prepare_only=True`, then
`--shard=i/n`, then the plain command, which gathers.

`configs/crossval.py:phantom` and `:slices` are the README's two experiments, of a size
for 2 CPU cores: a phantom cohort, and the four patients whose slices were published
without Hounsfield units.
"""

from configs import default

# On 2 CPU cores: a coarse space and a quarter of all channels. The 2D U-Net gets as
# many steps as each network of the three-way method, the others as much time as the
# three together, about, the H-DenseUNet more. Losses and batches are each method's own;
# so few steps ask for one optimiser and a rate that falls to 0.
_COARSE = {
  'width': 0.25,
  'extent_mm': (290.0, 290.0, 290.0),  # Holds the lungs.
  'epochs': 5,
  'validation_slices': 64,
  'foreground_share': 0.9,
  'class_weights': (1.0, 10.0),
  'ema_decay': 0.9,
  'cache_gib': 1.0,
  'stacks_per_slab': 1,  # All of these cohorts fits into the cache.
  'reading_threads': 2,
  'distortion': {'rotation_degrees': 0.0},
}
# Of `config.training`, what each run decides for itself.
_DECIDED = ('method', 'target', 'simulated_ratio', 'fold', 'split')
_ADAM = {
  'optimiser': 'optax.adam',
  'schedule': 'covid3way.training.optimisers.cosine',
  'learning_rate': 4e-3,
  'weight_decay': 0.0,
  'epochs': 5,
  'foreground_share': 0.9,
  'distortion': {'elastic_mm': 0.0},
}
_COARSE_METHODS = {
  'three_way': {
    'features': (20, 40, 80, 160, 320),  # The paper's count: 8.6 million at width 1.
    'batch_size': 8,
    'open_slabs': 8,
    'steps_per_epoch': 100,
  },
  'unet_2d': {'batch_size': 8, 'open_slabs': 8, 'steps_per_epoch': 100},
  'h_dense_unet': {'patch_voxels': (64, 64, 4), 'steps_per_epoch': 50},
  'mpunet': {'steps_per_epoch': 200},
  # As many millimetres as the paper's 128 voxels.
  'unet_3d': {
    'patch_voxels': (24, 24, 32),
    'batch_size': 4,
    'open_slabs': 4,
    'steps_per_epoch': 200,
  },
  'vnet_3d': {
    'patch_voxels': (24, 24, 32),
    'batch_size': 4,
    'open_slabs': 4,
    'steps_per_epoch': 200,
  },
}


def get_config(variant: str = ''):
  """`:phantom`, `:slices`, or `:smoke`: the same path, tiny."""
  names = {'phantom': '', 'slices': ''}
  config = default.pick(
    'crossval',
    names.get(variant, variant),
    'input',
    'space',
    'window',
    'simulator',
    'fit',
    'augmentation',
    'training',
    'aggregation',
    'prediction.batch_size',
    'crossval',
  )
  del config.space['padded_mm']
  for field in _DECIDED:
    del config.training[field]
  config.aggregation.choice = 'sum'  # As the paper: each method's threshold is tuned.
  if variant in ('phantom', 'slices'):
    config.space.shape = (96, 96, 128)
    config.training.update(_COARSE)
    for method, settings in _COARSE_METHODS.items():
      config.crossval.settings[method].update({**_ADAM, **settings})
    config.prediction.batch_size = 8
    config.crossval.processes = 2
  if variant == 'phantom':
    # The cohort's matrix of 128 pixels in place of 512.
    config.crossval.padded_mm = (4 * 334 / 512, 4 * 334 / 512, 1.0)
  if variant == 'slices':
    config.crossval.update(
      methods=('three_way', 'unet_2d', 'unet_3d'), folds=4, ratios=(0.0,), ablations=()
    )
    for method, steps in (('three_way', 40), ('unet_2d', 40), ('unet_3d', 80)):
      config.crossval.settings[method].steps_per_epoch = steps
  if variant == 'smoke':
    config.space.shape = (32, 32, 48)
    config.fit.update(iterations=3, restarts=0)
    config.augmentation.steps = 20
    config.training.update(default.SMOKE_TRAINING)
    own = {'views': ('volume',), 'patch_voxels': (16, 16, 16), 'features': (4, 8)}
    views = {'views': ('xy',)}
    config.crossval.settings = {'three_way': {}, 'unet_3d': own, 'unet_2d': views}
    config.crossval.update(methods=('three_way', 'unet_3d'), folds=2, ablations=('xy',))
  return config
