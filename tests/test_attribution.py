"""Who found a mask, in whose window, on which day: what outputs say must be so."""

import csv
import dataclasses
import json
import shutil

import fresh_model
import nibabel
import numpy as np
import pydicom
import pytest
import small_chest
from conftest import run_job

from covid3way.base import WarningKind, Window
from covid3way.jobs import predict
from covid3way.jobs.batch import Shard, SomeFailedError, for_each
from covid3way.scans.manifest import file_name, read_manifest, write_manifest
from covid3way.segmentation.model import read_model


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  return small_chest.write_cohort(tmp_path_factory.mktemp('cohort'))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return fresh_model.write(tmp_path_factory.mktemp('model') / 'model', (32, 32, 48))


@pytest.fixture(scope='module')
def predicted(cohort, model, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('predicted')
  run_predict(workdir, cohort / 'manifest.csv', model)
  return workdir


def run_predict(workdir, manifest, model):
  chosen = {'prediction': {'threshold': 1.5}, 'export': {'dicom': True}}
  run_job('predict', workdir, input=str(manifest), model=str(model), **chosen)


def report_of(workdir, scan_id):
  return json.loads((workdir / scan_id / 'quantification.json').read_text())


def algorithms(workdir, scan_id):
  """By segment, who is said to have drawn it."""
  made = pydicom.dcmread(workdir / scan_id / 'infection.dcm')
  return {s.SegmentLabel: s.SegmentAlgorithmType for s in made.SegmentSequence}


def test_a_mask_that_was_given_is_not_called_the_programs_own(cohort, tmp_path):
  run_job(
    'quantify',
    tmp_path,
    input=str(cohort / 'manifest.csv'),
    export={'dicom': True},
  )
  row = next(r for r in read_manifest(cohort / 'manifest.csv') if r.scan_id == 'a-1')
  lungs = 'MANUAL' if row.lung_mask else 'AUTOMATIC'
  assert algorithms(tmp_path, 'a-1') == {
    'Infection': 'MANUAL',
    'Left lung': lungs,
    'Right lung': lungs,
  }
  page = (tmp_path / 'a-1' / 'report.html').read_text()
  assert 'Masks given, not found here' in page and 'Model' not in page


def test_a_corrected_mask_is_no_longer_the_models(cohort, predicted, tmp_path):
  folder = tmp_path / 'predicted'
  shutil.copytree(predicted, folder)
  path = folder / 'a-1' / 'infection.nii.gz'
  image = nibabel.load(path)
  corrected = np.asarray(image.dataobj).copy()
  corrected[: corrected.shape[0] // 2] = 0
  nibabel.save(nibabel.Nifti1Image(corrected, None, image.header), path)
  run_job(
    'quantify',
    tmp_path / 'numbers',
    input=str(cohort / 'manifest.csv'),
    predictions=str(folder),
    export={'dicom': True},
  )
  assert 'model' not in report_of(tmp_path / 'numbers', 'a-1')
  assert algorithms(tmp_path / 'numbers', 'a-1')['Infection'] == 'MANUAL'
  untouched = report_of(tmp_path / 'numbers', 'a-2')
  assert untouched['model'] == report_of(predicted, 'a-2')['model']
  assert algorithms(tmp_path / 'numbers', 'a-2')['Infection'] == 'AUTOMATIC'


def test_a_day_corrected_in_the_manifest_changes_the_course(
  cohort, model, predicted, tmp_path
):
  shutil.copytree(predicted, tmp_path / 'predicted')
  rows = read_manifest(cohort / 'manifest.csv')
  (course,) = (tmp_path / 'predicted' / 'courses').iterdir()

  def again(days):
    changed = [dataclasses.replace(r, day=days(r)) for r in rows]
    write_manifest(tmp_path / 'manifest.csv', changed)
    run_predict(tmp_path / 'predicted', tmp_path / 'manifest.csv', model)

  again(lambda row: row.day + 40)
  with (course / 'course.csv').open() as stream:
    days = [float(line['day']) for line in csv.DictReader(stream)]
  name = course.name
  mine = [r for r in rows if file_name(r.patient_id, 'patient') == name]
  assert len(mine) > 1 and days == sorted(r.day + 40 for r in mine)
  again(lambda row: None)
  assert not course.exists()


@pytest.mark.parametrize(
  ('trained', 'source', 'told'),
  [
    ({'dicom tag', 'default'}, 'auto', True),
    ({'auto'}, 'dicom tag', True),
    ({'auto', 'manifest'}, 'dicom tag', False),
    ({'auto', 'manifest'}, 'auto', False),
    ({'dicom tag'}, 'default', False),
    (set(), 'auto', False),
  ],
)
def test_a_window_unlike_those_of_the_training_is_told(model, trained, source, told):
  known = dataclasses.replace(read_model(model), window_sources=frozenset(trained))
  warnings = predict._window_warnings(Window(-600.0, 1200.0, source), known)
  kinds = [warning.kind for warning in warnings]
  assert kinds == ([WarningKind.WINDOW_UNLIKE_TRAINING] if told else [])


def test_a_model_knows_the_windows_of_its_training(model, tmp_path):
  shutil.copytree(model, tmp_path / 'model')
  path = tmp_path / 'model' / 'model.json'
  content = json.loads(path.read_text())
  del content['checksum']
  content['windows'] = [{'level_hu': 1, 'width_hu': 2, 'source': 'auto', 'scans': 3}]
  path.write_text(json.dumps(content))
  assert read_model(tmp_path / 'model').window_sources == {'auto'}


def test_words_of_an_unnamed_error_reach_no_report(tmp_path, capsys):
  def work(item):
    raise OSError('cannot read /archive/Doe^Jane/IM1')

  with pytest.raises(SomeFailedError):
    for_each(
      {'a': 1, 'b': 2}, work, what='test', workdir=tmp_path, shard=Shard.parse('0/1')
    )
  told = (tmp_path / 'failures.json').read_text() + ''.join(capsys.readouterr())
  assert 'a: OSError, a defect of this program' in told and 'Doe' not in told
