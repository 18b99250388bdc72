"""The lungs of a chest CT, without learning: which voxels, and which lung.

Morphology runs on block means of about 2 mm; the boundary is then decided voxel by
voxel at full resolution. What is air but not lung is told from lung by its
neighbourhood: airways, stomach and bowel are pure gas walled in by soft tissue.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import ndimage

from covid3way.base import (
  LEFT,
  RIGHT,
  MaskGridError,
  NoLungError,
  ScanWarning,
  WarningKind,
)
from covid3way.standard import morphology

MIN_ML, MAX_ML = 100.0, 12_000.0

_COARSE_MM = 2.0
_LUNG_HU = -320.0  # lets dense ground glass in; sharp edges hardly move
_GAS_HU, _OUTSIDE_HU = -1000.0, -930.0
_BONE_HU = 150.0


def find_lungs(
  hu: np.ndarray, spacing_mm: tuple[float, float, float], *, scan_id: str = 'scan'
) -> tuple[np.ndarray, tuple[ScanWarning, ...]]:
  """Find the lungs, told apart; vessels and small dense lesions belong to them.

  Trachea, main bronchi, oesophagus, stomach and bowel do not. A lung that is not
  there, or holds no air, has no voxels; the other keeps its own label.

  Args:
    hu: (x, y, z), Hounsfield units; x to the patient's left, y back, z head.
    spacing_mm: distance of voxel centres along x, y, z.
    scan_id: names the scan in errors and warnings.

  Returns:
    labels: (x, y, z) uint8: 1 left lung, 2 right lung, 0 elsewhere.
    warnings: LUNGS_NOT_SEPARATED if the lungs touch so widely that they were cut
      at the body's midline.

  Raises:
    NoLungError: less than MIN_ML or more than MAX_ML of the scan looks like lung.
  """
  if hu.ndim != 3 or not hu.size:
    raise NoLungError(scan_id, f'array of shape {hu.shape}', 'a volume is needed')
  factors = tuple(
    int(np.clip(round(_COARSE_MM / s), 1, n))
    for s, n in zip(spacing_mm, hu.shape, strict=True)
  )
  mm = np.multiply(factors, spacing_mm)
  coarse = ndimage.gaussian_filter(morphology.block_mean(hu, factors), 1 / mm)
  body = _body(coarse, mm)
  anywhere = (coarse < _LUNG_HU) & ~_outside(coarse, mm)
  air = anywhere & _enclosed(body)
  spine = _spine(coarse, body, air, mm)
  gas = _gas(coarse, air, spine, mm)
  # A narrow field of view opens a lung to its padding: walls are then missing.
  cut_open = (
    morphology.grow(morphology.shrink(anywhere & ~air, 4, mm), 4, mm) & anywhere
  )
  air = _main_parts(air & ~gas)
  air = ndimage.binary_propagation(air, mask=air | (cut_open & ~gas))
  ml = np.count_nonzero(air) * np.prod(mm) / 1000
  if not MIN_ML <= ml <= MAX_ML:
    found = f'{ml:.0f} ml of the scan look like lung'
    remedy = f'{MIN_ML:.0f} to {MAX_ML:.0f} ml are allowed: is this a chest CT, in HU?'
    raise NoLungError(scan_id, found, remedy)
  sides, separated = _tell_apart(air, spine[0], mm)
  labels = _refine(hu, _close(sides, coarse, mm) * ~gas, air, gas, factors)
  return labels, () if separated else (_not_separated(),)


def take_lungs(
  mask: np.ndarray, spacing_mm: tuple[float, float, float], *, scan_id: str = 'scan'
) -> tuple[np.ndarray, tuple[ScanWarning, ...]]:
  """Take a lung mask that is given, and tell the lungs apart unless it does.

  Args:
    mask: (x, y, z); labels 1 left and 2 right are kept, anything else is just lung.
    spacing_mm: distance of voxel centres along x, y, z.
    scan_id: names the scan in errors.

  Returns:
    As `find_lungs`; the voxels are those of the mask.

  Raises:
    NoLungError: the mask is empty.
    MaskGridError: its left lung lies to the right of its right lung.
  """
  if not mask.any():
    raise NoLungError(scan_id, 'the lung mask given is empty', 'correct or remove it')
  if set(np.unique(mask)) == {0, LEFT, RIGHT}:
    if _middle(mask == LEFT) < _middle(mask == RIGHT):
      raise MaskGridError(
        scan_id,
        f'in the lung mask label {LEFT}, left, lies to the right of {RIGHT}, right',
        'exchange the labels, which some programs number so, or the mask is flipped',
      )
    return mask.astype(np.uint8), ()
  lung = mask > 0
  midline = float(np.flatnonzero(lung.any(axis=(1, 2)))[[0, -1]].mean())
  labels, separated = _tell_apart(lung, midline, np.asarray(spacing_mm))
  return labels, () if separated else (_not_separated(),)


def _middle(side: np.ndarray) -> float:
  """Mean x of a mask, voxels."""
  voxels = np.count_nonzero(side, axis=(1, 2))
  return float(np.arange(len(side)) @ voxels / voxels.sum())


def _not_separated() -> ScanWarning:
  message = 'the lungs touch widely; cut at the midline of the body'
  return ScanWarning(WarningKind.LUNGS_NOT_SEPARATED, message)


def _body(coarse: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """The largest piece of tissue that is thicker than a table top, a tube or a sheet."""
  labels, sizes = morphology.components(
    morphology.grow(morphology.shrink(coarse > _LUNG_HU, 4, mm), 4, mm)
  )
  return (labels == sizes.argmax()) & (labels > 0)


def _enclosed(body: np.ndarray) -> np.ndarray:
  """Voxels with the body in front, behind, and left or right of them.

  Or: the field of view may cut the chest wall on one side.
  """
  seen = np.logical_or.accumulate
  front, back = seen(body, 1), seen(body[:, ::-1], 1)[:, ::-1]
  right, left = seen(body, 0), seen(body[::-1], 0)[::-1]
  return front & back & (right | left)


def _outside(coarse: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """Air around the body: pure air that reaches the sides of the volume on a wide way.

  Not through the nose and larynx, which are narrow; and not into a lung that the
  field of view cuts, which is denser than -930 HU.
  """
  air = ndimage.gaussian_filter(coarse, 2 / mm) < _OUTSIDE_HU
  labels, sizes = morphology.components(morphology.shrink(air, 4, mm))
  touching = np.zeros(sizes.size, bool)
  for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
    touching[side] = True
  return morphology.grow((touching & (sizes > 0))[labels], 6, mm)


def _gas(
  coarse: np.ndarray, air: np.ndarray, spine: tuple[float, float], mm: np.ndarray
) -> np.ndarray:
  """Trachea, main bronchi, oesophagus, stomach, bowel: gas with walls of soft tissue.

  Gas in emphysema is walled in by lung. Bronchi open into lung, and that may be
  emphysema: so gas is also looked for slice by slice near the spine, where a bronchus
  is a closed ring, and with a strict threshold, which stops at the smaller branches.
  """
  gas = np.zeros(coarse.shape, bool)
  if not air.any():
    return gas
  lung_hu = np.clip(np.median(coarse[air]), -920, -800)
  x, y, _ = np.ogrid[tuple(map(slice, coarse.shape))]
  near_spine = (abs(x - spine[0]) * mm[0] < 50) & ((spine[1] - y) * mm[1] < 75)
  in_plane = np.array([mm[0], mm[1], np.inf])  # no step along z reaches another slice
  for share in (0.6, 0.4):
    pure = (coarse < _GAS_HU + share * (lung_hu - _GAS_HU)) & air
    wide = morphology.grow(morphology.shrink(pure, 2, mm), 2, mm)
    gas |= _walled(wide, pure, air, 2000 / np.prod(mm), mm)  # 2 ml
    gas |= _walled(pure & near_spine, pure, air, 80 / np.prod(mm[:2]), in_plane)
  lung = morphology.grow(morphology.shrink(air & ~gas, 4, mm), 6, mm)
  return gas | (morphology.grow(gas, 6, mm) & air & ~lung)


def _walled(
  core: np.ndarray, pure: np.ndarray, air: np.ndarray, at_least: float, mm: np.ndarray
) -> np.ndarray:
  """Components of `core`, of so many voxels, whose walls are less than 30 % lung."""
  cross = ndimage.generate_binary_structure(3, 1)
  cross[:, :, [0, 2]] &= np.isfinite(mm[2])
  walled = np.zeros(core.shape, bool)
  box = morphology.bounds(core, margin=1 + round(6 / mm.min()))
  core, pure, air = core[box], pure[box], air[box]
  core, sizes = morphology.components(core, cross)
  near, far = (morphology.grow(core, r, mm) for r in (2, 6))
  wall = far * ((near == 0) & ~pure)
  walls, lungs, voxels = (
    np.bincount(labels[labels > 0], minlength=sizes.size)
    for labels in (wall, wall * air, near)
  )
  large = (sizes > 0) & (voxels >= at_least)
  walled[box] = (large & (lungs < 0.3 * walls))[near] & air
  return walled


def _main_parts(air: np.ndarray) -> np.ndarray:
  """The largest component, and others of at least 5 % of it beside it."""
  labels, sizes = morphology.components(air)
  levels = (labels == sizes.argmax()).any((0, 1))
  beside = np.bincount(labels[:, :, levels].ravel(), minlength=sizes.size)
  return ((sizes > 0) & (sizes >= 0.05 * sizes.max()) & (2 * beside >= sizes))[labels]


def _spine(
  coarse: np.ndarray, body: np.ndarray, air: np.ndarray, mm: np.ndarray
) -> tuple[float, float]:
  """Index along x and y of the spine, or of the body's centre where there is no bone.

  Seen from above, bone is densest at the spine; only the back half counts, so that
  contrast in the heart does not.
  """
  levels = air.any((0, 1))
  xy = np.argwhere(body[:, :, levels].any(2))
  centre = xy.mean(0) if xy.size else np.divide(body.shape[:2], 2)
  bone = ((coarse > _BONE_HU) & body)[:, :, levels].sum(2, dtype=np.float32)
  bone[:, : int(centre[1])] = 0
  if bone.sum() * np.prod(mm) >= 20_000:  # 20 ml: a few vertebrae
    column = ndimage.gaussian_filter(bone, 10 / mm[:2], mode='constant')
    centre = np.unravel_index(column.argmax(), column.shape)
  return float(centre[0]), float(centre[1])


def _tell_apart(air: np.ndarray, midline: float, mm: np.ndarray) -> tuple:
  """(x, y, z) uint8 of LEFT and RIGHT, and whether anatomy, not a plane, told them.

  Erodes until no large component lies on both sides of the midline; then each voxel
  belongs to the nearest component. A single lung may reach across: it is accepted
  when erosion does not part it.
  """
  box = morphology.bounds(air, margin=1)
  labels = np.zeros(air.shape, np.uint8)
  is_left = (np.arange(air.shape[0])[:, None, None] > midline)[box[0]]
  depth = air = air[box]
  for across, erosion_mm in itertools.product((0.1, 0.3), (0, 2, 4, 6, 8, 10)):
    if erosion_mm and depth is air:  # most lungs do not touch
      depth = morphology.depth(air, mm)
    parts, sizes = morphology.components(depth > erosion_mm)
    left = np.bincount((parts * is_left).ravel(), minlength=sizes.size)
    large = (sizes > 0) & (sizes >= 0.04 * sizes.sum())
    if large.any() and (np.minimum(left, sizes - left) < across * sizes)[large].all():
      sides = np.where(large, np.where(2 * left > sizes, LEFT, RIGHT), 0)[parts]
      if not sides[air].all():
        at = ndimage.distance_transform_edt(
          sides == 0, mm, return_distances=False, return_indices=True
        )
        sides = sides[tuple(at)]
      labels[box] = sides * air
      return labels, True
  labels[box] = np.where(is_left, LEFT, RIGHT) * air
  return labels, False


def _close(sides: np.ndarray, coarse: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """Each lung with its vessels, its inner lesions, and those on the chest wall.

  A 5 mm ball takes in vessels everywhere. A 20 mm ball takes in lesions, but only on
  the chest wall: elsewhere it would swallow parts of heart, aorta and hilum.
  """
  boxes = enumerate(ndimage.find_objects(sides), start=1)
  found = [(side, box) for side, box in boxes if box]
  with ThreadPoolExecutor(2) as threads:
    filled = list(threads.map(lambda f: _filled(sides, *f, coarse, mm), found))
  result = sides.copy()
  for (side, box), whole in zip(found, filled, strict=True):
    part = result[box]
    part[whole & (part == 0)] = side
  return result


def _filled(
  sides: np.ndarray, side: int, box: tuple, coarse: np.ndarray, mm: np.ndarray
) -> np.ndarray:
  """One lung closed so, in its box."""
  mirror = slice(None, None, 1 if side == LEFT else -1)  # The midline is at lower x.
  lung = (sides[box] == side)[mirror]
  vessels, lesions = morphology.close_balls(lung, (5, 20), mm)
  lesions &= _faces_chest_wall(lung, mm) & (coarse[box][mirror] < _BONE_HU)
  rest, _ = ndimage.label(np.pad(~(vessels | lesions), 1, constant_values=True))
  return (rest != rest[0, 0, 0])[1:-1, 1:-1, 1:-1][mirror]  # no inner holes


def _faces_chest_wall(lung: np.ndarray, mm: np.ndarray) -> np.ndarray:
  """Where lung lies towards the midline (lower x), or in front and none behind."""
  medial = np.cumsum(lung, 0, np.uint16) * mm[0]
  front = np.cumsum(lung, 1, np.uint16) * mm[1]
  return (medial >= 15) | ((front >= 30) & (front[:, -1:] - front < 5))


def _refine(
  hu: np.ndarray, filled: np.ndarray, air: np.ndarray, gas: np.ndarray, factors: tuple
) -> np.ndarray:
  """Labels at full resolution: in the blocks along the surface, HU decides."""
  block = [1 if f == 1 else 3 for f in factors]
  sure = ndimage.minimum_filter(filled > 0, block) | ((filled > 0) & ~air)
  around = ndimage.maximum_filter(filled * air, block) * ~gas
  reach = np.where(filled > 0, filled, around)
  labels = np.zeros(hu.shape, np.uint8)
  for i in np.flatnonzero(reach.any((1, 2))):  # slabs: full-size temporaries are large
    slab = slice(i * factors[0], (i + 1) * factors[0])
    label, is_sure = (
      a[i].repeat(factors[1], 0).repeat(factors[2], 1)[: hu.shape[1], : hu.shape[2]]
      for a in (reach, sure)
    )
    labels[slab] = label * (is_sure | (hu[slab] < _LUNG_HU))
  return labels
