"""The eight scanners of the paper's Table I, as rows of one table.

Voltage, thickness, increment, lung window and patient counts are Table I's (after
thin-slice reconstruction). Field of view, blur, noise and the habits of the window
tag are not in the paper: they are plausible values for such scanners.
"""

import dataclasses
from typing import Literal

from covid3way import base

WindowTags = Literal['lung', 'mediastinal', 'two-valued', 'absent']

MEDIASTINAL_WINDOW_HU = (40.0, 350.0)


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One scanner and how it is used.

  Attributes:
    patients: patients of Table I, the sampling weight.
    thickness_mm: full width at half maximum of the slice profile.
    increment_mm: distance of neighbouring slice centres.
    level_hu, width_hu: the scanner's true lung window.
    field_of_view_mm: smallest and largest field of view (matrix times spacing).
    blur_mm: full width at half maximum of the in-plane point spread function.
    noise_hu: standard deviation of the noise in homogeneous tissue.
    window_tags: what the scanner writes into the DICOM window tags.
  """

  protocol_id: str
  manufacturer: str
  model: str
  hospital: str
  patients: int
  kvp: int
  thickness_mm: float
  increment_mm: float
  level_hu: float
  width_hu: float
  field_of_view_mm: tuple[float, float]
  blur_mm: float
  noise_hu: float
  window_tags: WindowTags

  def to_hu(self, signal):
    """Window units -> HU, the inverse of Eq. (1)."""
    return self.level_hu + self.width_hu * signal

  def to_signal(self, hu):
    """HU -> window units, Eq. (1)."""
    return (hu - self.level_hu) / self.width_hu


# id, manufacturer, model, hospital, patients, kVp, thickness, increment,
# level, width, field of view, blur, noise, window tags
_ROWS = (
  ('philips-brilliance-ict-1', 'Philips', 'Brilliance iCT', 'A', 50, 120, 1.0, 1.0,
   -600, 1600, (345, 390), 1.2, 28, 'lung'),
  ('siemens-definition-edge-2', 'Siemens', 'SOMATOM Definition Edge', 'A', 10, 120,
   1.0, 1.0, -600, 1600, (345, 390), 1.1, 30, 'two-valued'),
  ('philips-brilliance-16-3', 'Philips', 'Brilliance 16P', 'B', 13, 120, 5.0, 5.0,
   -600, 1200, (350, 400), 1.4, 16, 'mediastinal'),
  ('siemens-scope-4', 'Siemens', 'SOMATOM Scope', 'B', 7, 110, 2.0, 2.0,
   -600, 1200, (345, 390), 1.3, 24, 'two-valued'),
  ('ge-16-5', 'GE', '16-slice CT scanner', 'C', 55, 120, 1.25, 1.25,
   -550, 1500, (350, 400), 1.2, 30, 'lung'),
  ('philips-brilliance-ict-6', 'Philips', 'Brilliance iCT', 'D', 5, 120, 1.0, 1.0,
   -600, 1600, (345, 390), 1.2, 26, 'mediastinal'),
  ('siemens-definition-edge-7', 'Siemens', 'SOMATOM Definition Edge', 'E', 17, 100,
   1.0, 1.0, -400, 1400, (345, 390), 1.1, 32, 'absent'),
  ('philips-brilliance-16-8', 'Philips', 'Brilliance 16P', 'E', 3, 140, 1.0, 1.0,
   -500, 1500, (350, 400), 1.4, 20, 'absent'),
)  # fmt: skip

PROTOCOLS = tuple(Protocol(*row) for row in _ROWS)


def find_protocol(protocol_id: str) -> Protocol:
  """The row of that id; raises `ConfigError` where there is none."""
  for protocol in PROTOCOLS:
    if protocol.protocol_id == protocol_id:
      return protocol
  raise base.ConfigError(
    'protocol',
    f'{protocol_id!r} is not in the table',
    f'use one of {[p.protocol_id for p in PROTOCOLS]}',
  )
