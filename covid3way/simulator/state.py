"""What evolves, what does not, and what the user may choose about it."""

import dataclasses

import jax
from flax import struct

from covid3way.simulator.law import LAW, Law


@struct.dataclass
class State:
  """Y = (S, M), Eq. (2), in the standard space.

  Attributes:
    signal: (x, y, z) float32, window units.
    infection: (x, y, z) bool. A voxel's stage is read from its signal alone.
  """

  signal: jax.Array
  infection: jax.Array


@struct.dataclass
class Anatomy:
  """What stays as it is: "areas outside the lung, tracheae, blood tubes, etc., will
  never become a part of infection regions" (paper, Section III-C).

  Attributes:
    susceptible: (x, y, z) bool, where new infection may appear.
    spacing_mm: of the voxels along x, y, z.
    prior: (x, y, z) float32 in [0, 1], how readily each voxel is infected relative to
      the others; None: all alike.
  """

  susceptible: jax.Array
  spacing_mm: tuple[float, float, float] = struct.field(pytree_node=False)
  prior: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """The model and its morphology: "user-controllable parameters. For example, we can
  require the GGO lesions to be more widespread, while the pulmonary consolidations to
  be relatively clustered" (paper, Section III-C). None of them is fitted.

  Attributes:
    law: what a voxel does.
    clustering: power of the share of ground-glass neighbours by which births are
      placed; 0 is widespread, 3 compact.
    consolidation_clustering: how much likelier voxels with consolidated neighbours
      are to convert, at the same mean; 0: not at all.
    seeding: share of births placed anywhere in the lung, as satellites.
    noise_mm: correlation length of the noise; 0 is white.
  """

  law: Law = LAW
  clustering: float = 1.0
  consolidation_clustering: float = 0.0
  seeding: float = 0.0
  noise_mm: float = 0.0
