"""Every field there is, with its default and meaning. Job configs are short diffs."""

from ml_collections import ConfigDict

from covid3way.phantom.protocols import PROTOCOLS

# Training in a smoke variant: the same path in seconds.
SMOKE_TRAINING = {
  'features': (4, 8, 16),
  'epochs': 2,
  'steps_per_epoch': 3,
  'batch_size': 4,
  'validation_slices': 8,
  'validation_share': 0.34,
}


def get_config() -> ConfigDict:
  """All sections; `pick` takes those that a job reads."""
  config = ConfigDict()
  config.input = ''  # DICOM folder, zip, NIfTI file or manifest CSV; or a store.
  config.model = ''  # A model directory, as train and quickstart write it.

  # Standard space: 334 x 334 x 512 mm in this many voxels.
  config.space = ConfigDict({'shape': (512, 512, 512)})

  # Lung window of Eq. (1): manifest, else scanner table, else header, else this.
  config.window = ConfigDict()
  config.window.level_hu = -600.0
  config.window.width_hu = 1200.0
  # The manifest's `scanner` -> (level, width); the paper's Table I to begin with.
  config.window.scanners = {p.protocol_id: (p.level_hu, p.width_hu) for p in PROTOCOLS}

  # Phantom cohort.
  config.phantom = ConfigDict()
  config.phantom.patients = 40
  config.phantom.seed = 0
  config.phantom.matrix = 512  # Pixels per side of an axial slice.
  config.phantom.anatomy_spacing_mm = 1.0  # Grid on which anatomy is drawn.
  config.phantom.processes = 2  # Patients made at once; a full-size one takes 5 GiB.

  # Training; the paper's own settings where it gives them.
  config.training = ConfigDict()
  config.training.target = 'infection'  # or 'lungs'
  config.training.region = 'lungs'  # Where the loss is counted; or 'all'.
  config.training.class_weights = (1.0, 5.0)  # Of cross-entropy: other, target.
  config.training.views = ('xy', 'yz', 'xz')
  # Middle of the standard space that is trained on, along x, y, z.
  config.training.extent_mm = (334.0, 334.0, 512.0)
  config.training.offsets_mm = (-5.0, -2.0, 0.0, 2.0, 5.0)
  config.training.features = (16, 32, 64, 128, 256)
  config.training.seed = 0
  config.training.epochs = 30
  config.training.steps_per_epoch = 1000
  config.training.batch_size = 64
  config.training.learning_rate = 1e-4  # Of Adam; falls to 0 on a cosine.
  config.training.foreground_share = 0.7  # Of stacks, with target in their centre.
  config.training.validation_share = 0.15  # Of the patients.
  config.training.validation_slices = 256
  config.training.cache_gib = 2.0  # Decoded chunks kept in memory.

  # Prediction.
  config.prediction = ConfigDict()
  config.prediction.threshold = 2.0  # Of the sum of three probabilities, (0, 3).
  config.prediction.batch_size = 4  # Slice stacks computed at once.
  config.prediction.keep_views = False  # Also write each view's probability map.

  # Quickstart.
  config.held_out_patients = 4  # Predicted, never trained on.
  return config


def pick(job: str, variant: str, *fields: str) -> ConfigDict:
  """A job's config: those fields and sections of the default that it reads.

  Raises:
    ValueError: the variant is neither '' nor 'smoke'.
  """
  if variant not in ('', 'smoke'):
    raise ValueError(f"there is no variant {variant!r} of this config, only 'smoke'")
  default = get_config()
  return ConfigDict({'job': job, **{field: default[field] for field in fields}})
