"""nnU-Net's files: known answers by hand, mistakes by name, and there and back."""

import json
import math

import nibabel
import numpy as np
import pytest

from covid3way.base import (
  DamagedFileError,
  Grid,
  InputError,
  LeakError,
  MaskGridError,
  Window,
)
from covid3way.scans import nifti, nnunet, nnunet_raw
from covid3way.scans.dicom_writer import write_series
from covid3way.scans.manifest import ManifestRow

SHAPE = (4, 5, 6)


def save(path, values, spacing_mm=1.0):
  """Stores (x, y, z), with an affine written by hand: RAS, so x and y run down."""
  path.parent.mkdir(parents=True, exist_ok=True)
  affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
  nibabel.save(nibabel.Nifti1Image(values, affine), path)
  return path


def mask_of(*voxels, label=1):
  mask = np.zeros(SHAPE, np.uint8)
  for voxel in voxels:
    mask[voxel] = label
  return mask


def dataset(folder, *, labels=None, channels=None, cases=('a', 'b'), mask=None):
  for case in cases:
    save(folder / 'imagesTr' / f'{case}_0000.nii.gz', np.full(SHAPE, -500.0))
    save(folder / 'labelsTr' / f'{case}.nii.gz', mask_of((1, 1, 1)))
  if mask is not None:
    save(folder / 'labelsTr' / f'{cases[0]}.nii.gz', mask)
  save(folder / 'imagesTs' / 'c_0000.nii.gz', np.full(SHAPE, -500.0))
  about = {
    'channel_names': channels or {'0': 'CT'},
    'labels': labels or {'background': 0, 'infection': 1},
    'numTraining': len(cases),
    'file_ending': '.nii.gz',
  }
  (folder / 'dataset.json').write_text(json.dumps(about))
  return folder


def imported(folder, out, *infection):
  found = nnunet_raw.find_dataset(folder, infection)
  return {case: convert(out) for case, convert in found.items()}


# Summary.


def test_summary_by_hand(tmp_path):
  reference = save(
    tmp_path / 'ref' / 'a.nii.gz', mask_of((0, 0, 0), (1, 0, 0), (2, 0, 0))
  )
  predicted = save(
    tmp_path / 'pred' / 'a.nii.gz', mask_of((1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 0))
  )
  none = [save(tmp_path / part / 'b.nii.gz', mask_of()) for part in ('ref', 'pred')]
  path = tmp_path / 'summary.json'
  nnunet.write_summary(path, [(reference, predicted), tuple(none)])
  summary = json.loads(path.read_text())
  first = {
    'Dice': 4 / 7,
    'FN': 1,
    'FP': 2,
    'IoU': 2 / 5,
    'TN': 115,
    'TP': 2,
    'n_pred': 4,
    'n_ref': 3,
  }
  assert summary['metric_per_case'][0] == {
    'metrics': {'1': first},
    'prediction_file': str(predicted),
    'reference_file': str(reference),
  }
  second = summary['metric_per_case'][1]['metrics']['1']
  assert math.isnan(second['Dice']) and math.isnan(second['IoU'])
  assert second['TN'] == 120
  assert summary['foreground_mean'] == summary['mean']['1']
  assert summary['mean']['1'] == {  # Empty masks have no Dice, but voxels.
    'Dice': 4 / 7,
    'FN': 0.5,
    'FP': 1.0,
    'IoU': 2 / 5,
    'TN': 117.5,
    'TP': 1.0,
    'n_pred': 2.0,
    'n_ref': 1.5,
  }


def test_summary_means_over_labels(tmp_path):
  both = mask_of((0, 0, 0)) + mask_of((1, 0, 0), label=2)
  reference = save(tmp_path / 'r.nii.gz', both)
  predicted = save(tmp_path / 'p.nii.gz', mask_of((0, 0, 0)))
  nnunet.write_summary(tmp_path / 's.json', [(reference, predicted)], labels=(1, 2))
  summary = json.loads((tmp_path / 's.json').read_text())
  assert summary['mean']['1']['Dice'] == 1 and summary['mean']['2']['Dice'] == 0
  assert summary['foreground_mean']['Dice'] == 0.5


def test_summary_compares_places_not_voxel_orders(tmp_path):
  mask = mask_of((0, 0, 0), (1, 2, 3))
  reference = save(tmp_path / 'r.nii.gz', mask)
  affine = np.diag([1.0, -1.0, 1.0, 1.0])  # x runs the other way ...
  affine[0, 3] = -(SHAPE[0] - 1)  # ... from the other end.
  nibabel.save(nibabel.Nifti1Image(mask[::-1], affine), tmp_path / 'p.nii.gz')
  nnunet.write_summary(tmp_path / 's.json', [(reference, tmp_path / 'p.nii.gz')])
  summary = json.loads((tmp_path / 's.json').read_text())
  assert summary['foreground_mean']['Dice'] == 1


def test_summary_refuses_other_grids_and_missing_files(tmp_path):
  reference = save(tmp_path / 'r.nii.gz', mask_of())
  other = save(tmp_path / 'p.nii.gz', mask_of(), spacing_mm=2.0)
  path = tmp_path / 's.json'
  with pytest.raises(MaskGridError, match=r'p\.nii\.gz'):
    nnunet.write_summary(path, [(reference, other)])
  with pytest.raises(InputError, match=r'no file absent\.nii'):
    nnunet.write_summary(path, [(reference, tmp_path / 'absent.nii')])
  with pytest.raises(InputError, match='no scan'):
    nnunet.write_summary(path, [])
  assert not path.exists()


# Splits.

FOLDS = [{'train': ['a', 'b'], 'val': ['c']}, {'train': ['c'], 'val': ['a', 'b']}]
PATIENTS = {'a': 'p', 'b': 'p', 'c': 'q'}


def test_splits_are_written_as_nnunet_reads_them(tmp_path):
  path = tmp_path / 'splits_final.json'
  nnunet.write_splits(path, [{k: tuple(v) for k, v in f.items()} for f in FOLDS])
  assert json.loads(path.read_text()) == FOLDS
  assert nnunet.read_splits(path, PATIENTS) == FOLDS


@pytest.mark.parametrize(
  ('content', 'error', 'words'),
  [
    ('{', DamagedFileError, 'no JSON'),
    ('{}', InputError, 'no list of folds'),
    ('[]', InputError, 'no list of folds'),
    ('["train"]', InputError, 'fold 0 has not just train and val'),
    ('[{"train": ["a"]}]', InputError, 'fold 0 has not just train and val'),
    ('[{"train": ["a"], "val": []}]', InputError, 'fold 0, val: no list of names'),
    ('[{"train": "abc", "val": ["a"]}]', InputError, 'train: no list of names'),
    ('[{"train": [1], "val": ["a"]}]', InputError, 'train: no list of names'),
    ('[{"train": ["a", "a"], "val": ["c"]}]', InputError, 'names a case twice'),
    ('[{"train": ["a", "x"], "val": ["c"]}]', InputError, 'unknown cases x'),
    ('[{"train": ["a", "c"], "val": ["c"]}]', LeakError, 'c train and validate'),
    ('[{"train": ["a"], "val": ["b"]}]', LeakError, 'patients p train and validate'),
  ],
)
def test_what_are_no_splits(tmp_path, content, error, words):
  path = tmp_path / 'splits_final.json'
  path.write_text(content)
  with pytest.raises(error, match=words):
    nnunet.read_splits(path, PATIENTS)


def test_a_leak_is_not_written(tmp_path):
  path = tmp_path / 'splits_final.json'
  with pytest.raises(LeakError):
    nnunet.write_splits(path, [{'train': ['a'], 'val': ['b', 'c']}], PATIENTS)
  assert not path.exists()
  with pytest.raises(InputError, match='no such file'):
    nnunet.read_splits(path)


# Raw datasets.


def test_dataset_by_hand(tmp_path):
  folder = dataset(tmp_path / 'Dataset001_X')
  found = imported(folder, tmp_path / 'out')
  images, labels = folder / 'imagesTr', folder / 'labelsTr'
  assert [i.row for i in found.values()] == [
    ManifestRow('a', 'a', images / 'a_0000.nii.gz', None, labels / 'a.nii.gz'),
    ManifestRow('b', 'b', images / 'b_0000.nii.gz', None, labels / 'b.nii.gz'),
    ManifestRow('c', 'c', folder / 'imagesTs' / 'c_0000.nii.gz'),
  ]
  assert not (tmp_path / 'out').exists()  # Nothing had to be converted.


def test_patients_are_told_by_a_table(tmp_path):
  folder = dataset(tmp_path / 'd')
  (folder / 'patients.csv').write_text('case,patient_id\na,p\nb,p\nc,q\n')
  rows = [i.row for i in imported(folder, tmp_path).values()]
  assert [r.patient_id for r in rows] == ['p', 'p', 'q']
  (folder / 'patients.csv').write_text('case,patient_id\na,p\nb,p\n')
  with pytest.raises(InputError, match=r'c: not in patients\.csv'):
    nnunet_raw.find_dataset(folder)
  (folder / 'patients.csv').write_text('case,patient_id\na,p\nb\nc,q\n')
  with pytest.raises(DamagedFileError, match='without patient_id'):
    nnunet_raw.find_dataset(folder)
  (folder / 'patients.csv').write_text('name,patient\na,p\n')
  with pytest.raises(DamagedFileError, match='columns'):
    nnunet_raw.find_dataset(folder)


LABELS = {'background': 0, 'ggo': 1, 'consolidation': 2, 'effusion': 3}


@pytest.mark.parametrize(
  ('labels', 'chosen', 'infected'),
  [
    (LABELS, ['ggo', 'consolidation'], {1, 2}),
    (LABELS, ['effusion'], {3}),
    ({**LABELS, 'infection': [1, 2]}, [], {1, 2}),  # A region; by its name.
    ({'background': 0, 'lung': 3, 'infection': 2}, [], {2}),
    ({'background': 0, 'lesion': 1}, [], {1}),  # The only one.
  ],
)
def test_labels_are_chosen_by_name(tmp_path, labels, chosen, infected):
  mask = mask_of((0, 0, 0)) + mask_of((1, 0, 0), label=2) + mask_of((2, 0, 0), label=3)
  folder = dataset(tmp_path / 'd', labels=labels, mask=mask)
  scan = imported(folder, tmp_path / 'out', *chosen)['a']
  written, _ = nifti.read_volume(scan.row.infection_mask, scan_id='a')
  np.testing.assert_array_equal(written > 0, np.isin(mask, list(infected)))
  left = sorted({1, 2, 3} - infected)
  assert scan.notes == (f'labels {left} of a.nii.gz are no infection',)


@pytest.mark.parametrize(
  ('about', 'chosen', 'words'),
  [
    ({'labels': LABELS}, [], 'several labels, ggo, consolidation, effusion'),
    ({'labels': LABELS}, ['ggo', 'x'], 'no label x'),
    ({'labels': {'background': 0, 'infection': 1, 'ignore': 2}}, [], 'ignore'),
    ({'labels': {'0': 'background', '1': 'infection'}}, [], 'write them as v2'),
    ({'labels': {'background': 0, 'infection': 0}}, [], 'number them from 1'),
    ({'channels': {'0': 'CT', '1': 'PET'}}, [], 'one channel'),
  ],
)
def test_unclear_datasets_are_refused(tmp_path, about, chosen, words):
  folder = dataset(tmp_path / 'd', **about)
  with pytest.raises(InputError, match=words):
    nnunet_raw.find_dataset(folder, chosen)


def test_incomplete_datasets_are_refused(tmp_path):
  with pytest.raises(InputError, match=r'looked for dataset\.json and imagesTr/CASE'):
    nnunet_raw.find_dataset(tmp_path)
  folder = dataset(tmp_path / 'd')
  (folder / 'labelsTr' / 'b.nii.gz').unlink()
  with pytest.raises(InputError, match=r'b: no labelsTr/b\.nii\.gz'):
    nnunet_raw.find_dataset(folder)
  (folder / 'imagesTr' / 'b_0000.nii.gz').rename(folder / 'imagesTr' / 'b.nii.gz')
  with pytest.raises(InputError, match=r'imagesTr/b\.nii\.gz is no new case'):
    nnunet_raw.find_dataset(folder)


def dicom_row(folder, rng):
  """A DICOM series of whole HU, its mask, and what they hold."""
  hu = rng.integers(-1000, 300, SHAPE).astype(np.float32)
  affine = np.diag([0.8, 0.9, 2.5, 1.0])
  affine[:3, 3] = -20.0, -30.0, 40.0
  grid = Grid(SHAPE, affine)
  (folder / 'ct').mkdir(parents=True)
  header = {'PatientID': 'p', 'WindowCenter': [-600], 'WindowWidth': [1200]}
  write_series(folder / 'ct', hu, grid, header=header, seed_uid='1')
  mask = rng.integers(0, 2, SHAPE).astype(np.uint8)
  nifti.write_volume(folder / 'mask.nii.gz', mask, grid, dtype=np.uint8)
  row = ManifestRow('p', 's', folder / 'ct', infection_mask=folder / 'mask.nii.gz')
  return row, hu, mask, grid


def test_dicom_to_nnunet_and_back(tmp_path):
  row, hu, mask, grid = dicom_row(tmp_path / 'in', np.random.default_rng(0))
  out = tmp_path / 'Dataset501_Covid'
  written = nnunet_raw.write_case(out, row)
  nnunet_raw.write_description(out, [written.row])
  assert 'windows -600/1200' in ' '.join(written.notes)
  assert json.loads((out / 'dataset.json').read_text()) == {
    'channel_names': {'0': 'CT'},
    'labels': {'background': 0, 'infection': 1},
    'numTraining': 1,
    'file_ending': '.nii.gz',
  }
  again = imported(out, tmp_path / 'x')['s'].row
  assert again == written.row
  assert again.patient_id == 'p'
  values, own = nifti.read_volume(again.image, scan_id='s')
  np.testing.assert_allclose(values, hu, atol=1e-3)
  np.testing.assert_allclose(own.affine, grid.affine, atol=1e-5)
  np.testing.assert_array_equal(
    nifti.read_mask(again.infection_mask, own, scan_id='s'), mask
  )


def test_scans_without_a_mask_are_for_testing_and_domains_stay(tmp_path):
  image = save(tmp_path / 'scan.nii.gz', np.full(SHAPE, -500.0))
  row = ManifestRow('p', 's', image, window=Window(-500, 1500, 'x'), domain='8bit')
  written = nnunet_raw.write_case(tmp_path / 'd', row)
  nnunet_raw.write_description(tmp_path / 'd', [written.row])
  assert written.notes == ()
  again = imported(tmp_path / 'd', tmp_path / 'x')['s'].row
  assert (again.patient_id, again.domain, again.infection_mask) == ('p', '8bit', None)
  assert again.image == tmp_path / 'd' / 'imagesTs' / 's_0000.nii.gz'
