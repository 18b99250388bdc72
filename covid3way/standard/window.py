"""Which window Eq. (1) uses (paper, Section III-B.2), and who said so."""

from collections.abc import Mapping, Sequence

from covid3way.base import ScanWarning, WarningKind, Window

# Lung windows in use lie well inside these limits (paper, Table I: levels -600 to
# -400, widths 1200 to 1600); mediastinal (40/350) and bone windows lie outside.
PLAUSIBLE_LEVEL_HU = (-850.0, -300.0)
PLAUSIBLE_WIDTH_HU = (800.0, 2200.0)


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
  level_hu, width_hu = default
  message = (
    f'no lung window in the header (found: {found}); '
    f'assumed {level_hu:g}/{width_hu:g} HU'
  )
  return (
    Window(level_hu, width_hu, source='default'),
    (ScanWarning(WarningKind.WINDOW_ASSUMED, message),),
  )
