"""Which window Eq. (1) uses (paper, Section III-B.2), and who said so."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from covid3way.base import AIR_HU, ConfigError, ScanWarning, WarningKind, Window

# Lung windows in use lie well inside these limits (paper, Table I: levels -600 to
# -400, widths 1200 to 1600); mediastinal (40/350) and bone windows lie outside.
PLAUSIBLE_LEVEL_HU = (-850.0, -300.0)
PLAUSIBLE_WIDTH_HU = (800.0, 2200.0)

ESTIMATED = 'auto'  # Source of a window that was estimated.
CHOICES = ('known', ESTIMATED)
# Where the tissues of a nominal scan lie, and the window in which they do. The paper
# says only that the kinds of tissue in a lung window are about the same for all
# scanners; these figures are this project's convention.
NOMINAL = (-600.0, 1200.0)
PARENCHYMA_HU, SOFT_TISSUE_HU = -850.0, 40.0
MIN_VOXELS = 1000  # Of a tissue, for its mode to mean anything.
_AERATED_HU, _TISSUE_HU = (-1000.0, -500.0), (-150.0, 200.0)
_SMOOTHING_HU = 20.0


def is_lung_window(window: Window) -> bool:
  """Whether a window can be a lung window."""
  low, high = PLAUSIBLE_LEVEL_HU
  narrow, wide = PLAUSIBLE_WIDTH_HU
  return low <= window.level_hu <= high and narrow <= window.width_hu <= wide


def choose_window(
  *,
  manifest: Window | None,
  scanner: str,
  scanners: Mapping[str, tuple[float, float]],
  tags: Sequence[Window],
  default: tuple[float, float],
) -> tuple[Window, tuple[ScanWarning, ...]]:
  """Manifest, else scanner table, else the first plausible tag, else the default.

  Args:
    manifest: the window that the cohort manifest gives for this scan.
    scanner: the manifest's scanner, a key of `scanners`; may be empty.
    scanners: lung window (level, width) per scanner, HU.
    tags: candidates from the scan's own header.
    default: (level, width), HU.

  Returns:
    The window with its source, and a warning when it had to be assumed.
  """
  if manifest is not None:
    return manifest, ()
  if scanner in scanners:
    return Window(*scanners[scanner], source='scanner table'), ()
  for tag in tags:
    if is_lung_window(tag):
      return tag, ()
  found = ', '.join(f'{t.level_hu:g}/{t.width_hu:g}' for t in tags) or 'none'
  window = Window(*default, source='default')
  message = (
    f'no lung window in the header (found: {found}); '
    f'assumed {window.level_hu:g}/{window.width_hu:g} HU'
  )
  return window, (ScanWarning(WarningKind.WINDOW_ASSUMED, message),)


def check_choice(choice: str) -> str:
  """`config.window.choice`, when there is such a one.

  Raises:
    ConfigError: there is not.
  """
  if choice not in CHOICES:
    remedy = f'use one of {", ".join(CHOICES)}'
    raise ConfigError('config.window.choice', f'{choice!r}', remedy)
  return choice


def estimate_window(
  hu: np.ndarray, lungs: np.ndarray, *, otherwise: Window
) -> tuple[Window, tuple[ScanWarning, ...]]:
  """The window that puts this scan's own lung and soft tissue where they belong.

  In units of Eq. (1), the mode of aerated parenchyma lands where `PARENCHYMA_HU` lies
  in the window `NOMINAL`, that of soft tissue where `SOFT_TISSUE_HU` does. A scan whose
  values are off by a factor and an offset thus gives the same signal as without; but
  the depth of the breath, which moves the parenchyma, is taken out as well.

  Args:
    hu: (x, y, z), Hounsfield units or nearly so.
    lungs: (x, y, z), 0 outside the lungs.
    otherwise: to be used where the scan tells too little.

  Returns:
    The window with its source, and a warning with what it was made of.
  """
  lung, tissue = parenchyma_mode_hu(hu, lungs), soft_tissue_mode_hu(hu, lungs)
  told = ' and '.join(
    f'{name} {"without a clear mode" if mode is None else f"at {mode:.0f} HU"}'
    for name, mode in (('parenchyma', lung), ('soft tissue', tissue))
  )
  if lung is not None and tissue is not None:
    level, width = NOMINAL
    gain = (tissue - lung) / (SOFT_TISSUE_HU - PARENCHYMA_HU)
    level_hu = round(lung + gain * (level - PARENCHYMA_HU), 1)
    estimate = Window(level_hu, round(gain * width, 1), ESTIMATED)
    if is_lung_window(estimate):
      message = (
        f'estimated {estimate.level_hu:.0f}/{estimate.width_hu:.0f} HU from {told}'
      )
      return estimate, (ScanWarning(WarningKind.WINDOW_ESTIMATED, message),)
  message = (
    f'no window can be estimated from {told}; used {otherwise.level_hu:g}/'
    f'{otherwise.width_hu:g} HU, {otherwise.source}'
  )
  return otherwise, (ScanWarning(WarningKind.WINDOW_ASSUMED, message),)


def parenchyma_mode_hu(hu: np.ndarray, lungs: np.ndarray) -> float | None:
  """Mode of the aerated lung; None where too little of it is there.

  Args:
    hu: (x, y, z), Hounsfield units.
    lungs: (x, y, z), 0 outside the lungs.
  """
  modes = _modes(hu[lungs > 0], *_AERATED_HU)
  return max(modes, key=modes.get, default=None)


def soft_tissue_mode_hu(hu: np.ndarray, lungs: np.ndarray) -> float | None:
  """Mode of the soft tissue around the lungs; None where too little of it is there.

  Fat has a mode of its own, taller than the other in some people: of modes of similar
  height the denser one is taken.

  Args:
    hu: (x, y, z), Hounsfield units.
    lungs: (x, y, z), 0 outside the lungs.
  """
  box = next(iter(ndimage.find_objects((lungs > 0).astype(np.uint8))), None)
  if box is None:
    return None
  modes = _modes(hu[box][lungs[box] == 0], *_TISSUE_HU)
  tallest = max(modes.values(), default=0.0)
  return max(
    (mode for mode, height in modes.items() if height >= tallest / 2), default=None
  )


def _modes(values: np.ndarray, low_hu: float, high_hu: float) -> dict[float, float]:
  """Peaks of the smoothed histogram between two values, and how tall they are."""
  low, high = round(low_hu - 3 * _SMOOTHING_HU), round(high_hu + 3 * _SMOOTHING_HU)
  values = values[(values > max(low, AIR_HU)) & (values < high)]  # -1024 is padding
  if np.count_nonzero((values > low_hu) & (values < high_hu)) < MIN_VOXELS:
    return {}
  counts = np.bincount(np.rint(values).astype(int) - low, minlength=high - low + 1)
  smooth = ndimage.gaussian_filter1d(counts.astype(float), _SMOOTHING_HU)
  rises = np.diff(smooth)
  peaks = np.flatnonzero((rises[:-1] > 0) & (rises[1:] <= 0)) + 1
  return {float(p + low): float(smooth[p]) for p in peaks if low_hu < p + low < high_hu}
