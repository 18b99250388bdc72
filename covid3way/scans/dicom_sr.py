"""What was measured in a scan -> a DICOM structured report, PS3.16 TID 1500."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from covid3way.scans.dicom_seg import (
  COVID_19,
  INFECTION,
  LEFT_LUNG,
  MEANINGS,
  RIGHT_LUNG,
  tracking_uid,
)
from covid3way.scans.dicom_source import Source, silent
from covid3way.scans.files import whole
from covid3way.scans.identity import hashed_uid

_SCHEME = '99COVID3WAY'
_ML = Code('ml', 'UCUM', 'milliliter')
_PERCENT = Code('%', 'UCUM', 'percent')
_CT_CHEST = Code('24627-2', 'LN', 'CT Chest')
# Key of a part's numbers -> what it is called, unit.
MEASURED = {
  'lung_ml': (Code('LUNG_VOLUME', _SCHEME, 'Volume of lung'), _ML),
  'infection_ml': (Code('INFECTED_VOLUME', _SCHEME, 'Volume of infection'), _ML),
  'infected_percent': (
    Code('INFECTED_SHARE', _SCHEME, 'Infected share of lung'),
    _PERCENT,
  ),
}


def write_sr(
  path: Path,
  source: Source,
  numbers: Mapping[str, Any],
  segmentation: Dataset,
  *,
  model: str,
  comments: Sequence[str] = (),
) -> None:
  """Writes the volumes of lung and infection and the infected share.

  One group each for both lungs, the left and the right, which refers to the segment of
  infection, left or right lung. What is None, the share of a lung that is not there, is
  left out. The same input gives the same bytes and UIDs.

  Args:
    path: to write, whole.
    source: the series.
    numbers: as `quantify` gives them.
    segmentation: what `write_seg` returned.
    model: what found the infection, see `write_seg`.
    comments: warnings, and what else a reader must know; one text each.

  Raises:
    StorageError: the disk refused.
  """
  parts = {
    INFECTION: numbers,
    LEFT_LUNG: numbers['per_lung']['left'],
    RIGHT_LUNG: numbers['per_lung']['right'],
  }
  told = {n: {key: part[key] for key in MEASURED} for n, part in parts.items()}
  words = json.dumps([told, comments, segmentation.SOPInstanceUID])
  with silent():
    groups = [
      _group(number, part, segmentation, source, model) for number, part in told.items()
    ]
    report = sr.MeasurementReport(
      observation_context=sr.ObservationContext(observer_device_context=_device()),
      procedure_reported=_CT_CHEST,
      imaging_measurements=groups,
      title=codes.DCM.ImagingMeasurementReport,
    )
    report[0].ContentSequence.extend(_comment(text) for text in comments)
    made = sr.Comprehensive3DSR(
      evidence=[segmentation, *source.images],
      content=report,
      series_instance_uid=source.new_uid('reports', model),
      sop_instance_uid=source.new_uid('unfinished'),
      instance_number=1,
      is_complete=True,
      software_versions=model,
      series_description='covid3way measurements',
      transfer_syntax_uid=ExplicitVRLittleEndian,
      **source.of_series(2),
    )
    made.CodingSchemeIdentificationSequence = [
      CodingSchemeIdentificationItem(
        designator=_SCHEME, name='covid3way', responsible_organization='covid3way'
      )
    ]
    source.finish(made, source.new_uid('report', model, words))
    with whole(path) as aside:
      made.save_as(aside, enforce_file_format=True)


def _device() -> sr.ObserverContext:
  return sr.ObserverContext(
    observer_type=codes.DCM.Device,
    observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
      uid=hashed_uid('covid3way'),
      name='covid3way',
      manufacturer_name='covid3way',
      model_name='covid3way',
    ),
  )


def _group(
  number: int,
  part: Mapping[str, float | None],
  segmentation: Dataset,
  source: Source,
  model: str,
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
  meaning = MEANINGS[number]
  return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
    tracking_identifier=sr.TrackingIdentifier(
      uid=tracking_uid(number, source), identifier=meaning.label
    ),
    referenced_segment=sr.ReferencedSegment(
      sop_class_uid=segmentation.SOPClassUID,
      sop_instance_uid=segmentation.SOPInstanceUID,
      segment_number=number,
      source_series=sr.SourceSeriesForSegmentation(source.slices[0].SeriesInstanceUID),
    ),
    finding_type=COVID_19 if number == INFECTION else meaning.kind,
    finding_sites=[sr.FindingSite(codes.SCT.Lung, laterality=meaning.side)],
    algorithm_id=sr.AlgorithmIdentification('covid3way', model),
    measurements=[
      sr.Measurement(name, part[key], unit)
      for key, (name, unit) in MEASURED.items()
      if part[key] is not None
    ],
  )


def _comment(text: str) -> sr.TextContentItem:
  return sr.TextContentItem(
    name=codes.DCM.Comment, value=text, relationship_type='CONTAINS'
  )
