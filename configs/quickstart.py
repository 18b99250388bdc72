"""The whole method on a small cohort of phantoms, serial scans included.

  ./launch/quickstart.sh

or, with the environment set up,

  python -m covid3way.main --config=configs/quickstart.py --workdir=runs/quickstart

Fits the progression law to the serial scans, simulates two scans for each (ratio 2),
trains with and without them, and compares both on patients that were held out. Writes
`results.json`, `pictures/`, `training.png`, `fits/`, `predictions/` and `model/`, which
`configs/predict.py` accepts as --config.model. The standard space is coarse, the
networks are narrow, the anatomy is drawn: a demonstration, not a model for patients.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/quickstart.py:smoke` is the same path, tiny."""
  config = default.pick(
    'quickstart',
    variant,
    'input',
    'model',
    'space',
    'window',
    'phantom',
    'simulator',
    'fit',
    'augmentation',
    'training',
    'aggregation',
    'prediction',
    'export',
    'held_out_patients',
  )
  config.space.shape = (128, 128, 192)
  config.phantom.update(
    patients=12, time_points=(1, 3), matrix=192, anatomy_spacing_mm=2.4
  )
  config.training.update(
    features=(8, 16, 32, 64, 128),
    epochs=5,
    extent_mm=(290.0, 290.0, 290.0),  # Holds the lungs, at less than half the work.
    steps_per_epoch=55,
    ema_decay=0.9,
    batch_size=8,
    open_slabs=8,
    stacks_per_slab=1,  # All of this cohort fits into the cache.
    learning_rate=4e-3,
    foreground_share=0.9,
    class_weights=(1.0, 10.0),
    validation_slices=64,
    validation_share=0.12,
  )
  config.training.distortion.rotation_degrees = 0.0  # All phantoms lie straight.
  config.prediction.update(batch_size=8, keep_views=True)
  if variant == 'smoke':
    config.space.shape = (64, 64, 96)
    # A seed whose lesions are large enough to be fitted at this size.
    config.phantom.update(
      patients=3, time_points=(1, 2), seed=11, matrix=64, anatomy_spacing_mm=5.0
    )
    config.fit.update(iterations=3, restarts=0)
    config.augmentation.steps = 20
    config.training.update(default.SMOKE_TRAINING)
    config.held_out_patients = 1
  return config
