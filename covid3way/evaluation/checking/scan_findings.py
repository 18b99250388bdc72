"""What is wrong with a scan, judged by what `check` measured of it.

Limits are wide: what they stop is nearly always a mistake of the export, the manifest
or the mask, and where it is not, a look at the scan settles it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from covid3way.base import WarningKind
from covid3way.evaluation.checking.findings import Code, Finding, Severity
from covid3way.evaluation.checking.scan_facts import AERATED_HU
from covid3way.simulator.serial import MOST_OUTSIDE

Record = Mapping[str, Any]

# Paper, Section IV-A: "the slice thickness after reconstruction ranges from 1mm to
# 5mm".
THICKEST_MM = 5.0
PARENCHYMA_HU = (-960.0, -600.0)
SOFT_TISSUE_HU = (0.0, 100.0)
LUNGS_ML = (1000.0, 10_000.0)
LEAST_SHARE_OF_OTHER = 0.2  # Of a lung's volume.
MOST_CUT_CM2 = 20.0  # A tenth of both lungs' section: more than the tip of one.
LEAST_AERATED_PERCENT = 50.0  # Of a given lung mask; severe pneumonia has more.
HIGHEST_INFECTION_HU = 150.0
BONE_HU, MOST_AT_HIGHEST_PERCENT = 1000.0, 0.5
SHARE_OUTSIDE_PERCENT = 5.0  # Of an infection mask: what two people draw differs by it.

_LOOK = 'look at the scan'
_WARNINGS = {
  WarningKind.LUNGS_NOT_SEPARATED: (
    Severity.NOTE,
    'give a lung_mask with 1 left and 2 right if shares per lung matter',
  ),
  WarningKind.ORIENTATION_ASSUMED: (
    Severity.WARNING,
    'convert the scan again from DICOM, so that it says how it lies',
  ),
  WarningKind.WINDOW_ASSUMED: (
    Severity.WARNING,
    'give the window, or a scanner of config.window.scanners, in the manifest',
  ),
  WarningKind.SERIES_CHOSEN: (
    Severity.NOTE,
    'name the folder of one series in the manifest if another is wanted',
  ),
  WarningKind.SPACING_EVENED: (
    Severity.WARNING,
    'export the series again if slices were lost',
  ),
}


def scan_findings(record: Record) -> list[Finding]:
  """What there is to say of one scan.

  Args:
    record: the manifest's `scan_id`, `domain`, `masks` and what was measured: `errors`,
      `warnings`, `geometry`, `signal`, `lungs`, `infection`; those of a part that could
      not be read are absent.
  """
  scan = (record['scan_id'],)
  found = [
    Finding(Severity.ERROR, Code(e['code']), scan, e['found'], e['remedy'])
    for e in record['errors']
  ]
  for warning in record.get('warnings', ()):
    kind = WarningKind(warning['kind'])
    severity, remedy = _WARNINGS.get(kind, (Severity.NOTE, ''))
    found.append(Finding(severity, kind, scan, warning['message'], remedy))
  for rule in _RULES:
    told = record.get(rule.part) and rule.look(record[rule.part], record)
    if told:
      found.append(Finding(rule.severity, rule.code, scan, told, rule.remedy))
  return found


@dataclasses.dataclass(frozen=True)
class _Rule:
  """Looks at a part of a record; what it tells is empty where all is well."""

  severity: Severity
  code: Code | WarningKind
  part: str
  look: Callable[[Mapping[str, Any], Record], str]
  remedy: str


def _thick(geometry, _) -> str:
  distance_mm = geometry['slice_distance_mm']
  if distance_mm <= THICKEST_MM:
    return ''
  return f'slices {distance_mm:g} mm apart; the method was made for 1 to 5 mm'


def _not_axial(geometry, _) -> str:
  way = geometry['orientation']
  return '' if way == 'axial' else f'{way} slices'


def _values_cut(signal, record) -> str:
  share, highest = signal['highest_percent'], signal['highest_hu']
  if record['domain'] or highest >= BONE_HU or share <= MOST_AT_HIGHEST_PERCENT:
    return ''
  return f'{share:.3g} % of the voxels have the highest value, {highest:g} HU'


def _lung_hu(lungs, record) -> str:
  return _outside(lungs['parenchyma_hu'], PARENCHYMA_HU, 'aerated lung', record)


def _soft_tissue_hu(lungs, record) -> str:
  return _outside(lungs['soft_tissue_hu'], SOFT_TISSUE_HU, 'soft tissue', record)


def _outside(
  mode_hu: float | None, limits: tuple[float, float], what: str, record: Record
) -> str:
  if record['domain']:
    return ''
  if mode_hu is None:
    return f'{what} has no clear mode'
  low, high = limits
  if low <= mode_hu <= high:
    return ''
  return f'{what} has its mode at {mode_hu:.0f} HU; {low:.0f} to {high:.0f} are usual'


def _volume(lungs, _) -> str:
  ml, (low, high) = lungs['left_ml'] + lungs['right_ml'], LUNGS_ML
  if low <= ml <= high:
    return ''
  return f'lungs of {ml:.0f} ml together; {low:.0f} to {high:.0f} are usual'


def _uneven(lungs, _) -> str:
  left, right = lungs['left_ml'], lungs['right_ml']
  if min(left, right) >= LEAST_SHARE_OF_OTHER * max(left, right):
    return ''
  return f'left lung of {left:.0f} ml, right lung of {right:.0f} ml'


def _cut(lungs, _) -> str:
  told = [
    f'{area:.0f} cm2 along {axis}'
    for axis, area in zip('xyz', lungs['cut_cm2'], strict=True)
    if area > MOST_CUT_CM2
  ]
  return f'lung reaches the border of the scan: {", ".join(told)}' if told else ''


def _outside_box(lungs, _) -> str:
  ml = lungs['outside_box_ml']
  return f'{ml:.1f} ml of lung lie outside the standard space' if ml else ''


def _dense(lungs, record) -> str:
  share = lungs['aerated_percent']
  given = record['masks']['lung_mask']
  if not given or record['domain'] or share >= LEAST_AERATED_PERCENT:
    return ''
  return f'only {share:.0f} % of the lung mask are below {AERATED_HU:.0f} HU'


def _empty(infection, _) -> str:
  return '' if infection['ml'] else 'the infection mask is empty'


def _labels(infection, _) -> str:
  labels = [n for n in infection['labels'] if n]
  if labels in ([], [1]):
    return ''
  return f'labels {", ".join(map(str, labels))}: all count as infection'


def _elsewhere(least: float, most: float) -> Callable[[Mapping[str, Any], Record], str]:
  def look(infection, _) -> str:
    share = infection.get('outside_lungs_percent', 0.0)
    if not least < share <= most:
      return ''
    return f'{share:.3g} % of the infection mask lie outside the lungs'

  return look


def _infection_hu(infection, record) -> str:
  median, lung = infection.get('median_hu'), record.get('lungs', {})
  if record['domain'] or median is None:
    return ''
  if median > HIGHEST_INFECTION_HU:
    return f'median {median:.0f} HU within the infection mask, as bone'
  normal = lung.get('median_hu')
  if normal is None or median > normal:
    return ''
  return (
    f'median {median:.0f} HU within the infection mask, no more than the '
    f'{normal:.0f} HU of the lungs'
  )


_MASK = 'look whether the mask is flipped, shifted or of another scan'
_MOST_OUTSIDE_PERCENT = 100 * MOST_OUTSIDE
_RULES = (
  _Rule(
    Severity.WARNING,
    Code.THICK_SLICES,
    'geometry',
    _thick,
    'use a thinner reconstruction if there is one',
  ),
  _Rule(
    Severity.NOTE,
    Code.NOT_AXIAL,
    'geometry',
    _not_axial,
    'use the axial series if there is one',
  ),
  _Rule(
    Severity.WARNING,
    Code.VALUES_CUT,
    'signal',
    _values_cut,
    'export it without a window: bone is cut off',
  ),
  _Rule(
    Severity.WARNING,
    Code.LUNG_HU,
    'lungs',
    _lung_hu,
    f'{_LOOK}: other units, a factor or an offset, or no normal lung; '
    '--config.window.choice=auto allows for the former',
  ),
  _Rule(
    Severity.WARNING,
    Code.SOFT_TISSUE_HU,
    'lungs',
    _soft_tissue_hu,
    f'{_LOOK}: other units, a factor or an offset; '
    '--config.window.choice=auto allows for them',
  ),
  _Rule(Severity.WARNING, Code.LUNG_VOLUME, 'lungs', _volume, f'{_LOOK} and its lungs'),
  _Rule(
    Severity.WARNING,
    Code.LUNGS_UNEVEN,
    'lungs',
    _uneven,
    'one is collapsed, removed or consolidated, or not found: look at it, and give a '
    'lung_mask if so',
  ),
  _Rule(
    Severity.WARNING,
    Code.LUNGS_CUT,
    'lungs',
    _cut,
    'volumes and shares are those of the part that was scanned',
  ),
  _Rule(
    Severity.WARNING,
    WarningKind.LUNG_OUTSIDE_BOX,
    'lungs',
    _outside_box,
    'nothing is predicted there: look whether it is lung',
  ),
  _Rule(Severity.WARNING, Code.LUNG_MASK_DENSE, 'lungs', _dense, _MASK),
  _Rule(
    Severity.NOTE,
    Code.INFECTION_EMPTY,
    'infection',
    _empty,
    'right for a healthy scan; fit and augment need a mask with infection',
  ),
  _Rule(
    Severity.NOTE,
    Code.INFECTION_LABELS,
    'infection',
    _labels,
    'remove labels that are none, e.g. with convert',
  ),
  _Rule(
    Severity.ERROR,
    WarningKind.INFECTION_OUTSIDE_LUNGS,
    'infection',
    _elsewhere(_MOST_OUTSIDE_PERCENT, 100.0),
    f'{_MASK}, or give a lung_mask',
  ),
  _Rule(
    Severity.WARNING,
    WarningKind.INFECTION_OUTSIDE_LUNGS,
    'infection',
    _elsewhere(SHARE_OUTSIDE_PERCENT, _MOST_OUTSIDE_PERCENT),
    'that part is dropped: give a lung_mask if it is infected lung',
  ),
  _Rule(Severity.WARNING, Code.INFECTION_HU, 'infection', _infection_hu, _MASK),
)
