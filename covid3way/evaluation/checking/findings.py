"""What a check of a cohort can find, and how bad it is."""

import dataclasses
import enum

from covid3way.base import WarningKind


class Severity(enum.StrEnum):
  """How bad a finding is: an error makes the scan useless or the cohort leak."""

  ERROR = 'error'
  WARNING = 'warning'
  NOTE = 'note'


class Code(enum.StrEnum):
  """What can be found, besides the readers' own `WarningKind`s."""

  UNREADABLE = 'unreadable'
  NO_LUNGS = 'no_lungs'
  MASK_UNFIT = 'mask_unfit'
  THICK_SLICES = 'thick_slices'
  NOT_AXIAL = 'not_axial'
  VALUES_CUT = 'values_cut'
  LUNG_HU = 'lung_hu'
  SOFT_TISSUE_HU = 'soft_tissue_hu'
  LUNG_VOLUME = 'lung_volume'
  LUNGS_UNEVEN = 'lungs_uneven'
  LUNGS_CUT = 'lungs_cut'
  LUNG_MASK_DENSE = 'lung_mask_dense'
  INFECTION_EMPTY = 'infection_empty'
  INFECTION_LABELS = 'infection_labels'
  INFECTION_HU = 'infection_hu'
  SAME_VOXELS = 'same_voxels'
  SAME_SERIES = 'same_series'
  NEARLY_SAME = 'nearly_same'
  SAME_PERSON = 'same_person'
  OTHER_PERSON = 'other_person'
  DAYS = 'days'
  DOMAINS_MIXED = 'domains_mixed'
  SCANNER_UNKNOWN = 'scanner_unknown'
  SITE_OF_ONE = 'site_of_one'
  WITHOUT_INFECTION_MASK = 'without_infection_mask'


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something about one scan, or several together.

  Attributes:
    severity: how bad it is.
    code: what it is.
    scans: ids of all scans that it is about.
    found: what was measured.
    remedy: what to do.
  """

  severity: Severity
  code: Code | WarningKind
  scans: tuple[str, ...]
  found: str
  remedy: str
