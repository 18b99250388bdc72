"""What changed in the standard space, brought back to the scan's own grid.

A scan's own grid holds more than the standard space can return: noise, fine structure,
the mask as it was drawn. So only the difference of two states is returned and added to
what the scan had; where nothing changed the scan keeps its bits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from covid3way.base import AIR_HU, Window
from covid3way.standard.space import (
  WHOLE,
  Placement,
  Region,
  return_mask,
  return_volume,
)


def changed_hu(
  hu: np.ndarray,
  before: jax.Array,
  after: jax.Array,
  placement: Placement,
  window: Window,
  *,
  within: np.ndarray,
  region: Region = WHOLE,
) -> np.ndarray:
  """The scan's HU with the change of its signal.

  A voxel changes when more than half of what it is interpolated from has changed, so
  that a lesion stays as far from the vessel beside it as in the standard space.

  Args:
    hu: (x, y, z) of the scan on its own grid.
    before: (x', y', z') signal in standard space, window units.
    after: the same later.
    placement: of the own grid.
    window: of the signal.
    within: (x, y, z) bool, where the own grid may change.
    region: of the own grid, which alone is computed.

  Returns:
    The region of `hu`, changed; never below air.
  """
  change = return_volume(after - before, placement, region)
  changes = return_mask(after != before, placement, region) & within[region]
  result = hu[region].copy()
  changed = result[changes] + window.width_hu * change[changes]
  result[changes] = np.maximum(changed, AIR_HU)
  return result


def changed_mask(
  mask: np.ndarray,
  before: jax.Array,
  after: jax.Array,
  placement: Placement,
  *,
  within: np.ndarray,
  region: Region = WHOLE,
) -> np.ndarray:
  """The own mask; the standard space's returned wherever that changed nearby.

  Args:
    mask: (x, y, z) bool on the own grid, as it was before.
    before: (x', y', z') bool in standard space.
    after: the same later.
    placement: of the own grid.
    within: (x, y, z) bool, where the own grid may change.
    region: of the own grid, which alone is computed.

  Returns:
    The region of `mask`, bool, changed.
  """
  nearby = return_volume((after != before).astype(jnp.float32), placement, region) > 0
  returned = return_mask(after, placement, region)
  return np.where(nearby & within[region], returned, mask[region])
