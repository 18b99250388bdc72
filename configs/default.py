"""Every field there is, with its default and meaning. Job configs are short diffs."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from covid3way.phantom.protocols import PROTOCOLS
from covid3way.simulator.bounds import BOUNDS

# Training in a smoke variant: the same path in seconds.
SMOKE_TRAINING = {
  'features': (4, 8, 16),
  'epochs': 2,
  'steps_per_epoch': 3,
  'batch_size': 4,
  'open_slabs': 2,
  'stacks_per_slab': 4,
  'validation_slices': 8,
  'validation_share': 0.34,
}

# What each method's authors publish, where it differs from the default, which is the
# three-way method's. Signals are normalised alike for all, so MPUnet's robust scaling
# is left out; epochs are of `steps_per_epoch` batches, which none of them states.
METHODS = {
  'three_way': {},
  'unet_2d': {'views': ('xy',), 'features': (20, 40, 80, 160, 320)},
  'h_dense_unet': {
    'views': ('planes', 'volumes', 'hybrid'),
    'features': (96, 48, 32, 64),
    'patch_voxels': (224, 224, 12),
    'batch_size': 4,
    'open_slabs': 4,
    'optimiser': 'covid3way.training.optimisers.momentum_sgd',
    'schedule': 'covid3way.training.optimisers.poly',
    'learning_rate': 1e-3,
  },
  'mpunet': {
    'views': ('oblique',),
    'features': (90, 181, 362, 724, 1448),
    'batch_size': 2,
    'open_slabs': 2,
    'epochs': 20,
    'foreground_share': 0.5,
    'loss': 'covid3way.training.losses.generalised_dice_loss',
    'schedule': 'covid3way.training.optimisers.constant',
    'learning_rate': 5e-5,
    'distortion': {'elastic_mm': 4.0},
  },
  'unet_3d': {
    'views': ('volume',),
    'features': (32, 64, 128, 256),
    'batch_size': 1,
    'open_slabs': 1,
    'optimiser': 'covid3way.training.optimisers.adam_halved_on_plateau',
    'schedule': 'covid3way.training.optimisers.constant',
    'learning_rate': 2e-4,
    'weight_decay': 1e-4,
    'validation_slices': 32,
    'distortion': {'elastic_mm': 4.0},
  },
  'vnet_3d': {
    'views': ('volume',),
    'features': (16, 32, 64, 128),
    'batch_size': 2,
    'open_slabs': 2,
    'loss': 'covid3way.training.losses.dice_loss',
    'optimiser': 'covid3way.training.optimisers.heavy_momentum_sgd',
    'schedule': 'covid3way.training.optimisers.constant',
    'learning_rate': 1e-4,
    'validation_slices': 32,
    'distortion': {'elastic_mm': 4.0},
  },
}


def get_config() -> ConfigDict:
  """All sections; `pick` takes those that a job reads."""
  config = ConfigDict()
  config.input = ''  # DICOM folder, zip, NIfTI file or manifest CSV; or a store.
  config.infection_mask = ''  # NIfTI file of the input, for simulate.
  config.model = ''  # A model directory, as train and quickstart write it.
  config.predictions = ''  # Predicted masks, for evaluate and quantify.
  config.format = 'slices'  # Of the input, for convert; see configs/convert.py.
  config.infection_labels = ''  # Names of labels of nnU-Net, separated by commas.
  config.spacing = ''  # CSV file of `slices`: patient,x_mm,y_mm,z_mm; '': assumed.

  # Standard space: 334 x 334 x 512 mm in this many voxels.
  config.space = ConfigDict({'shape': (512, 512, 512)})
  # An ablation (Table VII): not empty, nothing is normalised. Every scan is taken to
  # have voxels of this size, so that it is only padded or cut, and the default window.
  config.space.padded_mm = ()

  # Lung window of Eq. (1): manifest, else scanner table, else header, else this.
  config.window = ConfigDict()
  config.window.level_hu = -600.0
  config.window.width_hu = 1200.0
  # Or 'auto': every window but a manifest's own is estimated from the scan, so that its
  # parenchyma and soft tissue get the signal that they have in a nominal scan.
  config.window.choice = 'known'
  # The manifest's `scanner` -> (level, width); the paper's Table I to begin with.
  config.window.scanners = {p.protocol_id: (p.level_hu, p.width_hu) for p in PROTOCOLS}

  # Phantom cohort.
  config.phantom = ConfigDict()
  config.phantom.patients = 40
  config.phantom.time_points = (1, 5)  # Fewest and most scans of a patient.
  config.phantom.seed = 0
  config.phantom.matrix = 512  # Pixels per side of an axial slice.
  config.phantom.anatomy_spacing_mm = 1.0  # Grid on which anatomy is drawn.
  config.phantom.processes = 2  # Patients made at once; a full-size one takes 5 GiB.

  # The progression simulator: its law, and its morphology, of which nothing is fitted.
  config.simulator = ConfigDict()
  config.simulator.law = 'covid3way.simulator.law.LAW'  # Or a study's own.
  # Power of the share of neighbours by which ground glass grows: 0 wide, 3 compact.
  config.simulator.clustering = 1.0
  config.simulator.consolidation_clustering = 0.0  # The same of consolidation.
  config.simulator.seeding = 0.0  # Share of births anywhere in the lung: satellites.
  # Correlation length of the noise; 0 is white. Chosen by eye on a real scan: with 4
  # its lesions keep their mottle of some mm for days, with less it becomes even grain.
  config.simulator.noise_mm = 4.0
  # Depth below the pleura over which births become e times rarer; 0: at any depth.
  config.simulator.rim_mm = 0.0
  config.simulator.posterior = 1.0  # How many times likelier at the back than in front.
  config.simulator.basal = 1.0  # The same at the base of the lungs and at their apex.

  # Fit of the law to pairs of scans.
  config.fit = ConfigDict()
  config.fit.iterations = 100  # At most, in each of its two phases.
  # Further, random starts, only while nothing found beats both trivial predictors.
  config.fit.restarts = 1
  # A phase ends when so many iterations together improve it by less than this.
  config.fit.patience = 3
  config.fit.tolerance = 1e-2
  config.fit.seed = 0  # Of the random starts.

  # Augmentation.
  config.augmentation = ConfigDict()
  config.augmentation.ratio = 2.0  # Simulated scans kept per scan; 2 is 200 %.
  config.augmentation.steps = 200  # Transitions simulated; 100 are a day.
  # Where a pair's law is run from: its 'earlier' time point, or on from the 'later'.
  config.augmentation.begin = 'earlier'
  config.augmentation.seed = 0

  # The course of one scan.
  config.simulation = ConfigDict()
  config.simulation.days = 3.0
  config.simulation.every_days = 1.0  # Between outputs; the last day is one, too.
  config.simulation.frames = 40  # Of the animation, at most one per tenth of a day.
  config.simulation.seed = 0
  config.simulation.fit = ''  # `fits/<patient>.json` to take W from; '': the law's own.
  config.simulation.pair = -1  # Which of its pairs; -1 is the last.
  # What is given here replaces single values of W. A law of one's own with a ninth:
  # --config.simulation.W='{"ninth": 0.001}'.
  config.simulation.W = {name: placeholder(float) for name in BOUNDS}

  # Training; the paper's own settings where it gives them.
  config.training = ConfigDict()
  # three_way, unet_2d, h_dense_unet, mpunet, unet_3d or vnet_3d; `configs/train.py`
  # has each one's published settings.
  config.training.method = 'three_way'
  config.training.target = 'infection'  # or 'lungs'
  config.training.region = 'lungs'  # Where the loss is counted; or 'all'.
  config.training.views = ('xy', 'yz', 'xz')  # Networks, or stages, of the method.
  # Middle of the standard space that is trained on, along x, y, z.
  config.training.extent_mm = (334.0, 334.0, 512.0)
  config.training.offsets_mm = (-5.0, -2.0, 0.0, 2.0, 5.0)
  config.training.features = (16, 32, 64, 128, 256)  # Channels; see the network.
  config.training.width = 1.0  # Factor of all channels.
  config.training.patch_voxels = (128, 128, 128)  # Of methods that see sub-volumes.
  config.training.planes = 6  # Directions, of the method that sees oblique planes.
  config.training.seed = 0

  # Who trains and who validates, by patient.
  config.training.validation_share = 0.15  # Of the patients; or folds:
  config.training.fold = ''  # 'k/n': the k-th (0 to n - 1) of n folds validates.
  # A JSON file with lists of scan ids instead: `training`, `validation`, `test`.
  config.training.split = ''
  config.training.validation_slices = 256  # Or sub-volumes or planes.

  # What a batch is drawn from.
  config.training.batch_size = 64  # On all devices of all hosts together.
  config.training.foreground_share = 0.7  # Of stacks, with target in their centre.
  config.training.simulated_ratio = 2.0  # Simulated stacks per real one; 0: none.
  # Every so many epochs the simulator makes other scans in place of the stored ones, as
  # the augment job beside the store would with another seed; 0: the stored ones stay.
  config.training.renew_epochs = 0
  # Layers of 64 slices drawn from at a time, and stacks drawn from one before the next
  # is opened. At 512 voxels a side an open one takes up to 0.2 GiB of the cache.
  config.training.open_slabs = 16
  config.training.stacks_per_slab = 32
  config.training.cache_gib = 4.0  # Decoded cubes kept in memory.
  config.training.reading_threads = 4
  config.training.batches_ahead = 8  # Read at most before they are asked for.

  # Random distortion of every stack; 0 leaves a kind of it out.
  config.training.distortion = ConfigDict()
  config.training.distortion.flips = True  # Both sides, and the depth.
  config.training.distortion.rotation_degrees = 10.0  # At most, either way.
  config.training.distortion.zoom = 0.0  # Largest |log| of the change of size.
  config.training.distortion.elastic_mm = 0.0  # SD of a smooth displacement ...
  config.training.distortion.elastic_nodes = 7  # ... drawn at so many a side.
  config.training.distortion.gain = 0.0  # SD of a factor of the signal around 1.
  config.training.distortion.shift = 0.0  # SD of an offset, window units.
  config.training.distortion.noise = 0.0  # SD of white noise, window units.

  # Optimisation. Functions are named, package.module.NAME; a study may give its own:
  # a loss of (logits, labels, weights, *, class_weights), an optimiser of a schedule, a
  # schedule of (learning_rate, steps, warmup_steps).
  config.training.epochs = 30
  config.training.steps_per_epoch = 1000
  config.training.loss = 'covid3way.training.losses.cross_entropy_and_dice'
  config.training.class_weights = (1.0, 5.0)  # Of cross-entropy: other, target.
  config.training.optimiser = 'optax.adam'
  config.training.schedule = 'covid3way.training.optimisers.cosine'
  config.training.learning_rate = 1e-4
  config.training.warmup_steps = 0
  config.training.weight_decay = 0.0  # For an optimiser that knows it.
  config.training.clip_norm = 0.0  # Largest global norm of a gradient; 0: any.
  config.training.ema_decay = 0.0  # Of an average of the weights, per step; 0: none.
  config.training.precision = 'float32'  # Of the computation; or 'bfloat16'.
  config.training.parts = 1  # Of a device's share of a batch, computed in turn.
  config.training.patience = 0  # Epochs without a better validation Dice; 0: no end.

  # How the three views' probabilities become a mask, chosen on validation scans.
  config.aggregation = ConfigDict()
  config.aggregation.choice = 'best'  # Or the name of one; see `aggregators.csv`.
  config.aggregation.margin = 0.005  # Dice that another has to win over the plain sum.

  # Prediction.
  config.prediction = ConfigDict()
  # Of the sum of three probabilities, (0, 3); not given: the model's own aggregator.
  config.prediction.threshold = placeholder(float)
  # Slices, planes or sub-volumes computed at once; on a CPU slices as its cache allows.
  config.prediction.batch_size = 4
  # Of slices' convolutions; 'bfloat16' suits accelerators, and is slower on a CPU.
  config.prediction.precision = 'float32'
  config.prediction.keep_views = False  # Also write each view's probability map.

  # What predict and quantify write of a scan, besides NIfTI, JSON, picture and page.
  config.export = ConfigDict()
  config.export.dicom = False  # Also DICOM SEG and SR, beside the NIfTI files.
  config.export.identified = False  # They name the patient, as a PACS needs.

  # Benchmark: (stage, case) pairs; see configs/benchmark.py.
  config.benchmark = ConfigDict()
  config.benchmark.cases = ()
  config.benchmark.transitions = 200
  config.benchmark.repeats = 3  # Warm runs, whose median counts.
  config.benchmark.steps = 30  # Of a training, measured after as many to warm up.

  # Evaluation of predicted masks against references.
  config.evaluation = ConfigDict()
  # Own grid, standard space (of `config.space`), own grid dilated by 3 x 3 x 3 voxels.
  config.evaluation.kinds = ('native', 'standard', 'dilated')

  # Cross-validation: methods x ratios x folds, and ablations of the three-way method.
  config.crossval = ConfigDict()
  config.crossval.methods = tuple(METHODS)
  config.crossval.ratios = (2.0,)  # Simulated scans per real one.
  # padded (no normalisation), unaugmented, xy, yz, xz (that view alone), offsets_0,
  # offsets_2, offsets_5_10 (other slices in a stack); all at the first ratio.
  config.crossval.ablations = ('padded', 'unaugmented', 'xy', 'yz', 'xz')
  # Voxels that the ablation takes every scan to have: the paper's standard ones.
  config.crossval.padded_mm = (334 / 512, 334 / 512, 1.0)
  config.crossval.by = 'patient'  # Folds; or leave one 'site' or 'scanner' out.
  config.crossval.folds = 5
  config.crossval.splits = ''  # An nnU-Net `splits_final.json` to use instead.
  config.crossval.seed = 0
  config.crossval.processes = 1  # Trainings at a time.
  config.crossval.prepare_only = False  # Cast, fit and simulate, which shards need.
  config.crossval.settings = METHODS  # What differs from `config.training`, by method.

  # Tables, figures and page of a cross-validation.
  config.report = ConfigDict()
  config.report.evaluation = 'native'  # Or 'standard' or 'dilated'.
  config.report.ratio_percent = 200.0  # Of simulated scans, where a table shows one.
  config.report.best_scanner = ''  # Of Table II's block #; '': that of most scans.
  config.report.examples = 3  # Scans in each of Figs. 4, 5 and 6.
  config.report.seed = 0  # Of the bootstrap over patients.

  # Quickstart.
  config.held_out_patients = 4  # Predicted, never trained on.
  return config


def pick(job: str, variant: str, *fields: str) -> ConfigDict:
  """A job's config: what it reads of the default.

  Args:
    job: that runs.
    variant: of the config.
    fields: fields, sections, and `section.field` where a job reads only that.

  Raises:
    ValueError: the variant is neither '' nor 'smoke'.
  """
  if variant not in ('', 'smoke'):
    raise ValueError(f"there is no variant {variant!r} of this config, only 'smoke'")
  default, config = get_config(), ConfigDict({'job': job})
  for field in fields:
    section, _, name = field.partition('.')
    whole = default[section]
    config[section] = ConfigDict({name: whole[name]}) if name else whole
  return config
