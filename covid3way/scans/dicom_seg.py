"""Masks and probabilities -> DICOM Segmentation objects on the slices of their series.

highdicom writes the headers, out of one voxel per frame: whether the frame holds
anything. With the frames themselves it would work in some 20 bytes per voxel; they are
put in here, one by one.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.frame import encode_frame
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from covid3way.base import LEFT, RIGHT, Grid
from covid3way.scans import straighten
from covid3way.scans.dicom_source import Source, silent
from covid3way.scans.files import whole

Part = tuple[slice, slice, slice]

LEVELS = 255  # A probability p is stored as round(255 p).
INFECTION, LEFT_LUNG, RIGHT_LUNG = 1, 2, 3  # Numbers of the segments of `write_seg`.
COVID_19 = Code('840539006', 'SCT', 'COVID-19')
MASKS = {INFECTION: 'infection', LEFT_LUNG: 'lungs', RIGHT_LUNG: 'lungs'}
_BOTH = codes.SCT.RightAndLeft
_SLAB = 32  # Slices of a map made at once.


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What a segment stands for.

  Attributes:
    label: for people.
    category, kind, modifier: coded; the modifier is of the kind.
    side: of the lungs.
  """

  label: str
  category: Code
  kind: Code
  modifier: Code
  side: Code


_LUNG = codes.SCT.AnatomicalStructure, codes.SCT.Lung
_LESION = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
MEANINGS = {
  INFECTION: Meaning('Infection', *_LESION, COVID_19, _BOTH),
  LEFT_LUNG: Meaning('Left lung', *_LUNG, codes.SCT.Left, codes.SCT.Left),
  RIGHT_LUNG: Meaning('Right lung', *_LUNG, codes.SCT.Right, codes.SCT.Right),
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Segment:
  """A volume as stored, (slices, rows, columns): all of it, or a label's voxels."""

  volume: np.ndarray
  label: int | None = None

  def filled(self) -> np.ndarray:
    """(slices,) bool: those that hold a voxel."""
    return np.array([self.frame(k).any() for k in range(len(self.volume))])

  def frame(self, k: int) -> np.ndarray:
    """(rows, columns) of a slice."""
    plane = self.volume[k]
    return plane if self.label is None else plane == self.label


def write_seg(
  path: Path,
  source: Source,
  infection: np.ndarray,
  lungs: np.ndarray,
  grid: Grid,
  *,
  model: str,
  given: Collection[str] = (),
) -> Dataset:
  """Writes a binary Segmentation of infection, left and right lung (1, 2, 3).

  Frames lie on the source's own slices. Where a segment has no voxel in a slice there
  is no frame; a segment without any voxel has one empty frame, in the first slice, so
  that each that is described is there. The same input gives the same bytes and UIDs.

  Args:
    path: to write, whole.
    source: the series.
    infection: (x, y, z) bool.
    lungs: (x, y, z) uint8, 1 left, 2 right.
    grid: of the scan.
    model: what found the infection, at most 64 characters: its hash, or another word.
    given: of 'infection' and 'lungs', the masks that nobody here found: whoever drew
      them, they are called manual.

  Returns:
    What refers to it: identity, classes and UIDs.

  Raises:
    StorageError: the disk refused.
  """
  lungs_stored = _stored(lungs, grid, labels=True)
  segments = {
    INFECTION: _Segment(_stored(infection, grid, labels=True)),
    LEFT_LUNG: _Segment(lungs_stored, LEFT),
    RIGHT_LUNG: _Segment(lungs_stored, RIGHT),
  }
  made = _headers(
    source,
    segments,
    model,
    given,
    segmentation_type='BINARY',
    transfer_syntax_uid=ExplicitVRLittleEndian,
    instance_number=1,
    content_label='INFECTION',
    content_description='Infection and lungs',
  )
  made.SegmentsOverlap = 'YES' if lungs[np.asarray(infection, bool)].any() else 'NO'
  made.PixelData = b''.join(_packed(_frames(made, source, segments)))
  return _write(path, made, source, model)


def write_probability(
  path: Path,
  source: Source,
  part: Callable[[Part], np.ndarray],
  grid: Grid,
  *,
  model: str,
) -> Dataset:
  """Writes a fractional Segmentation: the probability of infection, in steps of 1/255.

  Frames without any are left out, see `write_seg`; the others are RLE-compressed.

  Args:
    path: to write, whole.
    source: the series.
    part: gives a part of (x, y, z) float in [0, 1]; of an array, its `__getitem__`.
    grid: of the scan.
    model: see `write_seg`.

  Returns:
    See `write_seg`.

  Raises:
    ValueError: a probability is not in [0, 1].
    StorageError: the disk refused.
  """
  segments = {INFECTION: _Segment(_stored(_levels(part, grid), grid, labels=False))}
  made = _headers(
    source,
    segments,
    model,
    (),
    segmentation_type='FRACTIONAL',
    fractional_type='PROBABILITY',
    max_fractional_value=LEVELS,
    transfer_syntax_uid=RLELossless,
    instance_number=2,
    content_label='PROBABILITY',
    content_description='Probability of infection',
  )
  frames = (_encoded(each) for each in _frames(made, source, segments))
  made.PixelData = encapsulate([*frames])
  made['PixelData'].is_undefined_length = True
  return _write(path, made, source, model)


def _stored(volume: np.ndarray, grid: Grid, *, labels: bool) -> np.ndarray:
  stored = straighten.to_acquired(grid.to_native(volume), grid, labels=labels)
  return straighten.slices_first(stored, stored.dtype)


def _levels(part: Callable[[Part], np.ndarray], grid: Grid) -> np.ndarray:
  """(x, y, z) uint8, 0 ... 255 for 0 ... 1."""
  levels = np.empty(grid.shape, np.uint8)
  for start in range(0, grid.shape[2], _SLAB):
    stop = min(start + _SLAB, grid.shape[2])
    region = slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(start, stop)
    share = part(region)
    if not (share.min() >= 0 and share.max() <= 1):
      raise ValueError('probabilities from 0 to 1 were wanted')
    levels[region] = np.rint(share * np.float32(LEVELS))
  return levels


def _headers(
  source: Source,
  segments: Mapping[int, _Segment],
  model: str,
  given: Collection[str],
  **options: Any,
) -> Segmentation:
  """A Segmentation with the frames that there shall be, and without their pixels."""
  filled = np.stack([each.filled() for each in segments.values()], axis=-1)
  filled[0] |= ~filled.any(axis=0)
  descriptions = [
    _description(number, source, None if MASKS[number] in given else model)
    for number in segments
  ]
  with silent():
    made = Segmentation(
      source_images=[_one_voxel(each) for each in source.slices],
      pixel_array=filled[:, None, None].astype(np.uint8),
      segment_descriptions=descriptions,
      series_instance_uid=source.new_uid('segmentations', model),
      sop_instance_uid=source.new_uid('unfinished'),
      # Of ours; this one must be there.
      device_serial_number='0',
      software_versions=model,
      series_description='covid3way segmentation',
      **options,
      **source.of_series(1),
    )
  made.Rows, made.Columns = source.slices[0].Rows, source.slices[0].Columns
  dimensions = source.new_uid('dimensions')
  made.DimensionOrganizationSequence[0].DimensionOrganizationUID = dimensions
  for index in made.DimensionIndexSequence:
    index.DimensionOrganizationUID = dimensions
  _refer(made, source)
  return made


def _one_voxel(header: Dataset) -> Dataset:
  """A slice of one voxel; a frame of a multi-frame image as one that is alone."""
  small = copy.deepcopy(header)
  small.SOPClassUID = CTImageStorage
  small.Rows = small.Columns = 1
  return small


def _description(number: int, source: Source, model: str | None) -> SegmentDescription:
  """Of a segment that a model found, or that was given."""
  meaning = MEANINGS[number]
  described = SegmentDescription(
    segment_number=number,
    segment_label=meaning.label,
    segmented_property_category=meaning.category,
    segmented_property_type=meaning.kind,
    algorithm_type='MANUAL' if model is None else 'AUTOMATIC',
    algorithm_identification=model
    and AlgorithmIdentificationSequence(
      name='covid3way', family=codes.DCM.ArtificialIntelligence, version=model
    ),
    tracking_id=meaning.label,
    tracking_uid=tracking_uid(number, source),
    anatomic_regions=[codes.SCT.Lung],
  )
  kind = described.SegmentedPropertyTypeCodeSequence[0]
  coded = [CodedConcept.from_code(meaning.modifier)]
  kind.SegmentedPropertyTypeModifierCodeSequence = coded
  region = described.AnatomicRegionSequence[0]
  region.AnatomicRegionModifierSequence = [CodedConcept.from_code(meaning.side)]
  return described


def tracking_uid(number: int, source: Source) -> str:
  """Of a segment, wherever it appears."""
  return source.new_uid('tracking', MEANINGS[number].label)


def _refer(made: Dataset, source: Source) -> None:
  """Lets a multi-frame source be one image, of which each frame names its own."""
  places = _places(source)
  for item in made.PerFrameFunctionalGroupsSequence:
    k = places[_place(item.PlanePositionSequence[0])]
    image = item.DerivationImageSequence[0].SourceImageSequence[0]
    image.ReferencedSOPClassUID = source.slices[k].SOPClassUID
    if source.frames[k] is not None:
      image.ReferencedFrameNumber = source.frames[k]
  images = []
  for each in source.images:
    image = Dataset()
    image.ReferencedSOPClassUID = each.SOPClassUID
    image.ReferencedSOPInstanceUID = each.SOPInstanceUID
    images.append(image)
  made.SourceImageSequence = images
  made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = images


def _frames(
  made: Dataset, source: Source, segments: Mapping[int, _Segment]
) -> Iterator[np.ndarray]:
  """(rows, columns) of each frame, in the order of the headers."""
  places = _places(source)
  shared = made.SharedFunctionalGroupsSequence[0]
  for item in made.PerFrameFunctionalGroupsSequence:
    own = item if 'SegmentIdentificationSequence' in item else shared
    number = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    yield segments[number].frame(places[_place(item.PlanePositionSequence[0])])


def _places(source: Source) -> dict[tuple[float, ...], int]:
  return {_place(each): k for k, each in enumerate(source.slices)}


def _place(header: Dataset) -> tuple[float, ...]:
  return tuple(float(v) for v in header.ImagePositionPatient)


def _packed(frames: Iterable[np.ndarray]) -> Iterator[bytes]:
  """One bit per voxel; a frame begins in the byte in which the last one ends."""
  rest = np.empty(0, bool)
  for frame in frames:
    bits = np.concatenate([rest, frame.ravel()])
    end = len(bits) // 8 * 8
    yield np.packbits(bits[:end], bitorder='little').tobytes()
    rest = bits[end:]
  yield np.packbits(rest, bitorder='little').tobytes()


def _encoded(frame: np.ndarray) -> bytes:
  return encode_frame(
    frame,
    transfer_syntax_uid=RLELossless,
    bits_allocated=8,
    bits_stored=8,
    photometric_interpretation='MONOCHROME2',
  )


def _write(path: Path, made: Segmentation, source: Source, model: str) -> Dataset:
  pixels = hashlib.sha256(made.PixelData).hexdigest()
  source.finish(made, source.new_uid(made.ContentLabel, model, pixels))
  with silent(), whole(path) as aside:
    made.save_as(aside, enforce_file_format=True)
  return source.reference(made)
