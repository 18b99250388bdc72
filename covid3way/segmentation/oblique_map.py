"""MPUnet's views of a volume, and the model that fuses them (Perslev et al., 2019)."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage, special

from covid3way import progress
from covid3way.training.planes import PlaneGrid


def seen_from(
  predict: Callable[[np.ndarray], np.ndarray],
  grid: PlaneGrid,
  signal: np.ndarray,
  region: np.ndarray,
  *,
  batch_size: int,
) -> np.ndarray:
  """Each view's probability at each voxel of a region.

  Planes are predicted one by one and interpolated linearly back to the volume's grid.

  Args:
    predict: (b, h, w) float32 planes -> (b, h, w) probabilities.
    grid: of the planes.
    signal: (x, y, z), window units.
    region: (x, y, z), non-zero where voxels are wanted.
    batch_size: planes computed at once.

  Returns:
    (v, n) float32, the voxels in the order of `np.nonzero(region)`; 0 where the planes
    do not reach.
  """
  signal = signal.astype(np.float32)
  wanted = np.array(np.nonzero(region))
  seen = np.zeros((grid.views, wanted.shape[1]), np.float32)
  for view in progress.track(range(grid.views), what='oblique view'):
    at = grid.pixels(view, wanted)
    needed = np.unique(np.clip([np.floor(at[2]), np.ceil(at[2])], 0, grid.side - 1))
    stack = np.zeros((grid.side,) * 3, np.float32)
    for start in range(0, len(needed), batch_size):
      planes = needed[start : start + batch_size].astype(int)
      full = np.pad(planes, (0, batch_size - len(planes)), mode='edge')
      volume = ndimage.map_coordinates(
        signal, grid.voxels(view, full), order=1, mode='nearest'
      )
      stack[planes] = predict(np.moveaxis(volume, -1, 0))[: len(planes)]
    # The number of the plane comes first in the stack, last in the coordinates.
    seen[view] = ndimage.map_coordinates(stack, at[[2, 0, 1]], order=1, mode='constant')
  return seen


def fused(seen: np.ndarray, fusion: Mapping[str, np.ndarray]) -> np.ndarray:
  """(v, n) probabilities of the views -> (n,) of the voxels.

  MPUnet weighs each view's probability of each class and takes a softmax. Of two
  classes that is a logistic regression: a weight per view, and a bias.

  Args:
    seen: as of `seen_from`.
    fusion: `weights` (v,), `bias` ().
  """
  score = np.asarray(fusion['weights']) @ seen + np.asarray(fusion['bias'])
  return special.expit(score).astype(np.float32)


def fit_fusion(
  seen: np.ndarray, infected: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
  """The fusion that the voxels of some scans ask for.

  Args:
    seen: (v, n) as of `seen_from`, of all scans one after the other.
    infected: (n,) bool, the reference.
    weights: (n,) of the voxels.

  Returns:
    As `fused` takes it; the plain mean of the views where all voxels are alike.
  """
  from sklearn.linear_model import LogisticRegression  # Slow to import.

  if infected.all() or not infected.any():
    n = len(seen)
    return {'weights': np.full(n, 4 / n, np.float32), 'bias': np.float32(-2)}
  model = LogisticRegression(max_iter=1000)
  model.fit(seen.T, infected, sample_weight=weights)
  return {
    'weights': model.coef_[0].astype(np.float32),
    'bias': np.float32(model.intercept_[0]),
  }
