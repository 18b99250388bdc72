"""One phantom patient: anatomy, the disease over time, and the truth about both."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.ndimage

from covid3way import base
from covid3way.phantom import anatomy, course, lesions
from covid3way.phantom.protocols import Protocol
from covid3way.simulator.parameters import Parameters

# Infected share of the lungs from which, and up to which, a scan is of a stage.
STAGES = {'early': (0.003, 0.08), 'progressive': (0.08, 0.20), 'severe': (0.20, 0.35)}


@dataclasses.dataclass(frozen=True, eq=False)
class Patient:
  """A patient on an isotropic grid on one day, before any scanner.

  Attributes:
    day: since the first scan.
    w: what the disease follows.
    hu: (x, y, z) float32, no noise.
    infection: (x, y, z) bool; neither vessels nor airways belong to it.
    signal: (x, y, z) float32, window units of the lesions, 0 elsewhere.
    kinds: (x, y, z) uint8, 0 normal, 1 ground glass, 2 consolidation.
    lungs: (x, y, z) uint8, 1 left, 2 right.
    spacing_mm: edge of a voxel.
    origin_mm: (3,) world position (LPS) of the centre of voxel (0, 0, 0).
  """

  day: float
  w: Parameters | None
  hu: np.ndarray
  infection: np.ndarray
  signal: np.ndarray
  kinds: np.ndarray
  lungs: np.ndarray
  spacing_mm: float
  origin_mm: np.ndarray

  @property
  def share(self) -> float:
    """Infected voxels / lung voxels."""
    return np.count_nonzero(self.infection) / np.count_nonzero(self.lungs)

  @property
  def stage(self) -> str:
    """The stage that `share` falls into; the outer ones are open."""
    return next((s for s, (_, high) in STAGES.items() if self.share < high), 'severe')


def streams(seed: int, *purposes: str) -> dict[str, np.random.Generator]:
  """One generator per purpose; none depends on how much the others draw.

  Purposes are told apart by their position: 'anatomy' comes first.
  """
  children = np.random.SeedSequence(seed).spawn(len(purposes))
  return {p: np.random.default_rng(c) for p, c in zip(purposes, children, strict=True)}


def make_patient(
  seed: int,
  *,
  stage: str,
  protocol: Protocol,
  spacing_mm: float = 2.0,
  days: Sequence[float] = (0.0,),
  w: Parameters | None = None,
  style: lesions.LesionStyle | None = None,
  share: float | None = None,
  **options: float,
) -> Iterator[Patient]:
  """A patient on each of some days, whose lung and lesions suit the scanner's window.

  Args:
    seed: of this patient; the same seed gives the same bytes.
    stage: on the first day, a key of `STAGES`.
    protocol: the scanner whose window the levels refer to.
    spacing_mm: edge of a voxel.
    days: of the scans, the first 0.
    w: parameters of the disease; None draws them.
    style: where lesions begin.
    share: infected share of the lungs on the first day; None draws it by stage.
    **options: further options of `anatomy.make_anatomy`.

  Raises:
    ConfigError: an unknown stage, a share out of range, or a disease that dies out.
  """
  if stage not in STAGES:
    raise base.ConfigError('stage', f'{stage!r} is unknown', f'use {list(STAGES)}')
  rng = streams(seed, 'anatomy', 'severity', 'lesions')
  drawn_share = np.exp(rng['severity'].uniform(*np.log(STAGES[stage])))
  drawn_w = course.draw_parameters(rng['severity'])
  healthy = anatomy.make_anatomy(
    rng['anatomy'], protocol, spacing_mm=spacing_mm, **options
  )
  progression = course.evolve(
    rng['lesions'],
    healthy,
    w=w or drawn_w,
    share=drawn_share if share is None else share,
    days=days,
    style=style or lesions.LesionStyle(),
  )
  for day, (infection, signal) in zip(days, progression, strict=True):
    sick = infect(healthy, infection, signal, protocol)
    yield dataclasses.replace(sick, day=day, w=w or drawn_w)


def infect(
  healthy: anatomy.Anatomy,
  infection: np.ndarray,
  signal: np.ndarray,
  protocol: Protocol,
) -> Patient:
  """Puts lesions into a chest, whoever made them.

  Args:
    healthy: the chest.
    infection: (x, y, z) bool, within `healthy.susceptible()`.
    signal: (x, y, z) float32, window units, read where `infection` is true.
    protocol: the scanner whose window `signal` refers to.
  """
  hu, signal = healthy.hu.copy(), np.where(infection, signal, np.float32(0))
  box = scipy.ndimage.find_objects(infection.astype(np.uint8))
  if box:
    # Two voxels of rim, so that the tissue around the outermost vessels is reached.
    box = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in box[0])
    lung = healthy.parenchyma[box]
    spread, level = _spread(infection[box], signal[box], lung)
    change = protocol.to_hu(level) - healthy.parenchyma_hu[box]
    hu[box] += spread * lung * change.astype(np.float32)
  return Patient(
    0.0, None, hu, infection, signal, lesions.kinds(infection, signal),
    healthy.lungs, healthy.spacing_mm, healthy.origin_mm,
  )  # fmt: skip


def _spread(infection, signal, lung) -> tuple[np.ndarray, np.ndarray]:
  """Lesions carried into the lung tissue of voxels shared with vessels and pleura.

  The mask leaves those voxels out; without this each vessel in a lesion would have a
  halo of healthy lung.
  """
  mean = lambda f: scipy.ndimage.uniform_filter(f.astype(np.float32), 3)  # noqa: E731
  pure = lung >= anatomy.LEAST_SHARE
  mixed = (lung > 0) & ~pure & ~infection
  infected, free = mean(infection), mean(pure & ~infection)
  nearby = mixed & (infected > free)
  level = np.where(nearby, mean(signal) / np.maximum(infected, 1e-3), signal)
  return infection | nearby, level
