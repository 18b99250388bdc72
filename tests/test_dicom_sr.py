import dicom_export
import highdicom
import pydicom
import pytest
import series
from dicom_export import grid_of, masks, source_of
from test_dicom_seg import SECRET, identifying

from covid3way.scans import dicom_seg, dicom_sr
from covid3way.segmentation.quantify import quantify

LATERALITY = {'51440002': None, '7771000': 'left', '24028007': 'right'}
SEGMENT = {None: 1, 'left': 2, 'right': 3}


def write(folder, slices, *, identified=False, comments=(), lungs=None):
  """The report's path, what it should say, and the Segmentation it refers to."""
  grid = grid_of(slices)
  infection, drawn = masks(grid)
  lungs = drawn if lungs is None else lungs
  infection &= lungs > 0
  source = source_of(slices, identified=identified)
  seg = dicom_seg.write_seg(
    folder / 'seg.dcm', source, infection, lungs, grid, model='a1'
  )
  numbers = quantify(infection, lungs, 0.004)
  path = folder / 'sr.dcm'
  dicom_sr.write_sr(path, source, numbers, seg, model='a1', comments=comments)
  return path, numbers, pydicom.dcmread(folder / 'seg.dcm')


def part_of(numbers, side):
  return numbers['per_lung'][side] if side else numbers


def test_highdicom_reads_the_numbers_and_what_they_are_of(tmp_path):
  path, numbers, seg = write(tmp_path, series.slices())
  report = highdicom.sr.srread(path)
  groups = report.content.get_volumetric_roi_measurement_groups()
  found = {}
  for group in groups:
    site = group.finding_sites[0]
    side = LATERALITY[site.laterality.value]
    assert site.value.meaning == 'Lung'
    found[side] = {
      m.name.value: (m.value, m.unit.value) for m in group.get_measurements()
    }
    segment = group.referenced_segment
    assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    assert segment.referenced_segment_numbers == [SEGMENT[side]]
    described = seg.SegmentSequence[SEGMENT[side] - 1]
    assert group.tracking_uid == described.TrackingUID
  for side, values in found.items():
    part = part_of(numbers, side)
    assert values == {
      'LUNG_VOLUME': (part['lung_ml'], 'ml'),
      'INFECTED_VOLUME': (part['infection_ml'], 'ml'),
      'INFECTED_SHARE': (part['infected_percent'], '%'),
    }
  assert set(found) == {None, 'left', 'right'}


def items(dataset, kind):
  """All content items of a value type, wherever they stand."""
  for item in dataset.get('ContentSequence', ()):
    if item.ValueType == kind:
      yield item
    yield from items(item, kind)


def test_pydicom_alone_reads_it(tmp_path):
  comments = ['window assumed: no tag', 'Schichten gekippt: 3\u00b0']
  path, numbers, seg = write(tmp_path, series.slices(), comments=comments)
  made = pydicom.dcmread(path)
  assert made.ContentTemplateSequence[0].TemplateIdentifier == '1500'
  assert made.ConceptNameCodeSequence[0].CodeValue == '126000'
  values = [float(i.MeasuredValueSequence[0].NumericValue) for i in items(made, 'NUM')]
  expected = [
    part_of(numbers, side)[key] for side in SEGMENT for key in dicom_sr.MEASURED
  ]
  assert values == expected
  told = {
    i.ConceptNameCodeSequence[0].CodeMeaning: i.TextValue
    for i in made.ContentSequence
    if i.ValueType == 'TEXT'
  }
  assert told['Comment'] == comments[1] and told['Device Observer Name'] == 'covid3way'
  referred = {
    instance.ReferencedSOPInstanceUID
    for study in made.CurrentRequestedProcedureEvidenceSequence
    for each in study.ReferencedSeriesSequence
    for instance in each.ReferencedSOPSequence
  }
  own = {r.ReferencedSOPInstanceUID for r in seg.SourceImageSequence}
  assert referred == {seg.SOPInstanceUID, *own} and len(own) == 5
  for keyword in ('StudyInstanceUID', 'PatientID'):
    assert made[keyword].value == seg[keyword].value
  assert made.SeriesInstanceUID != seg.SeriesInstanceUID


def test_the_share_of_a_lung_that_is_not_there_is_left_out(tmp_path):
  slices = series.slices()
  lungs = masks(grid_of(slices))[1]
  lungs[lungs == 2] = 1
  path, numbers, _ = write(tmp_path, slices, lungs=lungs)
  assert numbers['per_lung']['right']['infected_percent'] is None
  names = [
    i.ConceptNameCodeSequence[0].CodeValue for i in items(pydicom.dcmread(path), 'NUM')
  ]
  assert names == ['LUNG_VOLUME', 'INFECTED_VOLUME', 'INFECTED_SHARE'] * 2 + names[:2]
  assert dicom_export.errors_of(path) == []


@pytest.mark.parametrize('identified', [False, True])
def test_the_validator_finds_no_error(tmp_path, identified):
  slices = series.slices(series.CORONAL)
  path, _, _ = write(tmp_path, slices, identified=identified, comments=['x'])
  assert dicom_export.errors_of(path) == []


def test_nothing_of_the_patient_is_in_what_is_not_identified(tmp_path):
  path, _, _ = write(tmp_path, identifying())
  made = pydicom.dcmread(path)
  told = list(dicom_export.texts(made))
  for secret in (SECRET, '19640812', '112233', '1.2.840.99999', '055Y', 'ACME'):
    assert not [text for text in told if secret in text]
    assert secret.encode() not in path.read_bytes()
  assert made.PatientID == 'scan-7' and made.PatientIdentityRemoved == 'YES'
  dates = {e.keyword for e in made.iterall() if e.VR in ('DA', 'DT') and e.value}
  assert dates == {'ContentDate'} and made.ContentDate == '19700101'


def test_what_is_identified_is_filed_where_the_source_is(tmp_path):
  slices = identifying()
  path, _, _ = write(tmp_path, slices, identified=True)
  made = pydicom.dcmread(path)
  for keyword in ('PatientName', 'PatientID', 'StudyInstanceUID', 'AccessionNumber'):
    assert made[keyword].value == slices[0][keyword].value
  assert made.ContentDate == '19640812' and 'PatientIdentityRemoved' not in made


def test_the_same_input_gives_the_same_bytes(tmp_path):
  first, _, _ = write(tmp_path / 'a', series.slices())
  same, _, _ = write(tmp_path / 'b', series.slices())
  other, _, _ = write(tmp_path / 'c', series.slices(), comments=['x'])
  assert first.read_bytes() == same.read_bytes()
  uids = {pydicom.dcmread(each).SOPInstanceUID for each in (first, other)}
  assert len(uids) == 2
