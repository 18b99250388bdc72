"""Which images of a folder make the one series that is read."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from covid3way import base
from covid3way.base import ScanWarning, WarningKind
from covid3way.scans import dicom_geometry
from covid3way.scans.dicom_files import CtFile, damaged
from covid3way.scans.dicom_pixels import Pixels

_SAME_LENGTH = 0.9  # reconstructions of one acquisition differ by a few slices
_FEW_SLICES, _SMALL_SHARE = 3, 0.1  # of a series: no more are localizers in it
_MOST_ORIENTATIONS = 16
# What reconstructions and phases in one series differ in, the most telling first.
_LAYER_TAGS = {
  'ConvolutionKernel': ('ConvolutionKernel',),
  'SliceThickness': ('SliceThickness',),
  'AcquisitionNumber': ('AcquisitionNumber', 'FrameAcquisitionNumber'),
  'TemporalPositionIndex': ('TemporalPositionIndex',),
  'AcquisitionTime': ('AcquisitionTime', 'FrameAcquisitionDateTime'),
  'ImageType': ('ImageType',),
}
_TELLING = ('ConvolutionKernel', 'SliceThickness')


def choose(
  images: Sequence[CtFile], scan_id: str
) -> tuple[Sequence[CtFile], base.Grid, list[ScanWarning]]:
  """The images of one series, in the order of their places, and their grid.

  Of several series, reconstructions or phases the longest axial one with the finest
  increment is taken, without copies and without a few slices unlike the rest.

  Raises:
    DuplicateSliceError, MissingSliceError, GeometryError: they make no grid.
    DamagedFileError: an image without a usable place.
  """
  warnings = []
  for step in (_one_series, _alike, _without_copies, _one_layer):
    images, told = step(images, scan_id)
    warnings += told
  planes = [_plane(image, scan_id) for image in images]
  stack = dicom_geometry.stack(planes, scan_id=scan_id)
  warnings += stack.warnings
  return [images[i] for i in stack.order], stack.grid, warnings


def _one_series(
  images: Sequence[CtFile], scan_id: str
) -> tuple[Sequence[CtFile], list[ScanWarning]]:
  groups = _grouped(images, lambda header: str(header.SeriesInstanceUID))
  if len(groups) == 1:
    return images, []
  best, taken = _best(groups)
  message = f'{len(groups)} CT series found; took {taken}'
  return best, [ScanWarning(WarningKind.SERIES_CHOSEN, message)]


def _grouped(
  images: Sequence[CtFile], key: Callable[[Dataset], Any]
) -> dict[Any, list[CtFile]]:
  groups = defaultdict(list)
  for image in images:
    groups[key(image.header)].append(image)
  return groups


def _best(groups: Mapping[Any, Sequence[CtFile]]) -> tuple[Sequence[CtFile], str]:
  """The group to be read, and what to tell of it: axial, long, then finest."""
  extents = {key: _extent(group) for key, group in groups.items()}
  axial = any(e.axial for e in extents.values())
  extents = {key: e for key, e in extents.items() if e.axial == axial}
  longest_mm = max(e.length_mm for e in extents.values())
  long = [k for k, e in extents.items() if e.length_mm >= _SAME_LENGTH * longest_mm]
  # The key comes last, so that a tie never depends on the order of files.
  best = min(long, key=lambda k: (extents[k].increment_mm, -len(groups[k]), k))
  taken = (
    f'the one of {len(groups[best])} slices, {extents[best].increment_mm:.2f} mm '
    'apart: axial, long, then finest'
  )
  return groups[best], taken


def _extent(images: Sequence[CtFile]) -> dicom_geometry.Extent:
  """Of those with a usable place; one without is an error once it is chosen."""
  planes = [image.plane for image in images]
  planes = [plane for plane in planes if plane is not None]
  if not planes:
    return dicom_geometry.Extent(axial=False, length_mm=0.0, increment_mm=np.inf)
  groups = _orientations(planes)
  return dicom_geometry.extent([planes[k] for k in max(groups, key=len)])


def _orientations(planes: Sequence[dicom_geometry.Plane]) -> list[list[int]]:
  """Indices of planes that are alike, group by group; the last takes all the rest."""
  groups = []
  for k, plane in enumerate(planes):
    same = (g for g in groups if dicom_geometry.alike(planes[g[0]], plane))
    if (group := next(same, None)) is not None:
      group.append(k)
    elif len(groups) < _MOST_ORIENTATIONS:
      groups.append([k])
    else:
      groups[-1].append(k)
  return groups


def _copies(dropped: int) -> list[ScanWarning]:
  if not dropped:
    return []
  message = f'{dropped} file(s) are exact copies and were dropped'
  return [ScanWarning(WarningKind.DUPLICATE_FILE_DROPPED, message)]


def _alike(
  images: Sequence[CtFile], scan_id: str
) -> tuple[Sequence[CtFile], list[ScanWarning]]:
  """Without a few slices of another orientation, size or pixel spacing.

  All slices, for `stack` to refuse, where there are many of them, or where the others
  have a gap without them.
  """
  planes = [_plane(image, scan_id) for image in images]
  groups = _orientations(planes)
  if len(groups) == 1:
    return images, []
  best, _ = _best({str(g[0]): [images[k] for k in g] for g in groups})
  left_out = len(images) - len(best)
  others = [g for g in groups if images[g[0]] is not best[0]]
  few = all(len(g) <= _FEW_SLICES for g in others)
  few = (few and left_out < len(best)) or left_out < _SMALL_SHARE * len(images)
  if not few or _has_gap([_plane(image, scan_id) for image in best], scan_id):
    return images, []
  message = (
    f'{left_out} slice(s) of the series have another orientation, size or pixel '
    f'spacing than its other {len(best)}, as localizers have, and were left out'
  )
  return best, [ScanWarning(WarningKind.SLICES_IGNORED, message)]


def _has_gap(planes: Sequence[dicom_geometry.Plane], scan_id: str) -> bool:
  try:
    dicom_geometry.stack(planes, scan_id=scan_id)
  except base.MissingSliceError:
    return True
  except base.Covid3wayError:
    return False
  return False


def _without_copies(
  images: Sequence[CtFile], scan_id: str
) -> tuple[Sequence[CtFile], list[ScanWarning]]:
  """Without slices that hold the same values as another one at their place.

  UIDs say nothing: some exporters give a copy its own, or all slices one.
  """
  planes = [_plane(image, scan_id) for image in images]
  _, places = dicom_geometry.places(planes)
  doubled = np.flatnonzero(np.bincount(places)[places] > 1)  # File by file, as listed.
  found, copies = set(), set()
  slices = Pixels(scan_id).read([images[k] for k in doubled])
  for k, hu in zip(doubled, slices, strict=True):
    seen = places[k], hashlib.sha256(hu.tobytes()).digest()
    if seen in found:
      copies.add(k)
    found.add(seen)
  return [i for k, i in enumerate(images) if k not in copies], _copies(len(copies))


def _one_layer(
  images: Sequence[CtFile], scan_id: str
) -> tuple[Sequence[CtFile], list[ScanWarning]]:
  """One of the reconstructions or phases that lie over each other in a series.

  All of them, for `stack` to refuse, where no tag tells them apart.
  """
  layer = _layer(images, tuple(_LAYER_TAGS))
  if not layer:
    return images, []
  chosen, taken, tags, count = layer
  message = (
    f'{count} reconstructions or phases in one series, told apart by '
    f'{" and ".join(tags)}; took {taken}'
  )
  return chosen, [ScanWarning(WarningKind.SERIES_CHOSEN, message)]


class _Layer(NamedTuple):
  images: Sequence[CtFile]
  taken: str
  tags: tuple[str, ...]
  count: int


def _layer(images: Sequence[CtFile], tags: Sequence[str]) -> _Layer | None:
  """The best layer that reaches as far as all images do, if they are layers."""
  state, length_mm = _tangle(images), max(_extent(images).length_mm, 1e-9)
  for k, tag in enumerate(tags):
    # Even slices are layers, too, where two reconstructions lie between each other.
    if not (any(state) or tag in _TELLING):
      continue
    groups = _grouped(images, lambda header, tag=tag: _told(header, _LAYER_TAGS[tag]))
    between = tag in _TELLING and all(
      _extent(group).length_mm >= _SAME_LENGTH * length_mm for group in groups.values()
    )
    if len(groups) == 1 or not (between or any(state)):
      continue
    best, taken = _best(groups)
    if _extent(best).length_mm / length_mm < _SAME_LENGTH:
      continue
    rest = _tangle(best)
    if not rest.doubled and (between or state.doubled or not rest.uneven):
      return _Layer(best, taken, (tag,), len(groups))
    if deeper := _layer(best, tags[k + 1 :]):
      both, count = (tag, *deeper.tags), len(groups) * deeper.count
      return deeper._replace(tags=both, count=count)
  return None


def _tangle(images: Sequence[CtFile]) -> dicom_geometry.Tangle:
  planes = [image.plane for image in images]
  return dicom_geometry.tangle([p for p in planes if p is not None])


def _told(header: Dataset, tags: Sequence[str]) -> tuple[bool, str]:
  """What the first of `tags` says; original images sort before derived ones."""
  value = next((header.get(t) for t in tags if header.get(t) is not None), '')
  words = [value] if isinstance(value, str) else np.atleast_1d(value)
  text = '\\'.join(str(word) for word in words)
  return 'DERIVED' in text, text


def _plane(image: CtFile, scan_id: str) -> dicom_geometry.Plane:
  if image.plane is None:
    raise damaged(
      scan_id,
      image.file.name,
      'has no usable position, orientation, pixel spacing or size',
    )
  return image.plane
