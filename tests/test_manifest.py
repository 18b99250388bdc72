import pytest

from covid3way.base import ManifestError, Window
from covid3way.scans import manifest
from covid3way.scans.manifest import ManifestRow


def write(folder, text):
  for name in ('a.nii', 'b.nii', 'mask.nii'):
    (folder / name).touch()
  path = folder / 'cohort.csv'
  path.write_text(text)
  return path


def refused(path, *words):
  with pytest.raises(ManifestError) as caught:
    manifest.read_manifest(path)
  assert caught.value.remedy
  for word in (path.name, *words):
    assert word in str(caught.value)


def test_all_columns_by_hand(tmp_path):
  path = write(
    tmp_path,
    'patient_id,scan_id,day,image,infection_mask,lung_mask,lobe_mask,susceptible_mask,'
    'window_level_hu,window_width_hu,stage,scanner,site,domain\n'
    'p1,p1-a,-2.5,a.nii,mask.nii,,a.nii,b.nii,-600,1200,early,GE,north,equalised-8bit\n'
    '\n'
    'p1,p1-b,,b.nii,,,,,,,,,,\n',
  )
  assert manifest.read_manifest(path) == (
    ManifestRow(
      patient_id='p1',
      scan_id='p1-a',
      image=tmp_path / 'a.nii',
      day=-2.5,
      infection_mask=tmp_path / 'mask.nii',
      lobe_mask=tmp_path / 'a.nii',
      susceptible_mask=tmp_path / 'b.nii',
      window=Window(-600, 1200, 'manifest'),
      stage='early',
      scanner='GE',
      site='north',
      domain='equalised-8bit',
    ),
    ManifestRow('p1', 'p1-b', tmp_path / 'b.nii'),
  )


def test_three_columns_are_enough_in_any_order(tmp_path):
  path = write(tmp_path, '\ufeffimage,scan_id,patient_id\r\n a.nii ,s,p\r\n')
  assert manifest.read_manifest(path) == (ManifestRow('p', 's', tmp_path / 'a.nii'),)


def test_what_is_written_reads_back_from_anywhere(tmp_path):
  text = 'patient_id,scan_id,image,day,window_level_hu,window_width_hu,stage,'
  text += 'susceptible_mask,lobe_mask,domain\n'
  text += 'p,s,a.nii,0.1,-550.5,1600,"mild, early",mask.nii,b.nii,8bit\n'
  text += 'q,t,b.nii,,,,,,,\n'
  rows = manifest.read_manifest(write(tmp_path, text))
  copy = tmp_path / 'deep' / 'copy.csv'
  manifest.write_manifest(copy, rows)
  assert '../a.nii' in copy.read_text()
  again = manifest.read_manifest(copy)
  assert [r.image.resolve() for r in again] == [r.image.resolve() for r in rows]
  assert again[0].susceptible_mask.resolve() == tmp_path / 'mask.nii'
  assert again[0].lobe_mask.resolve() == tmp_path / 'b.nii'
  assert again[1].susceptible_mask is again[1].lobe_mask is None
  assert [(r.day, r.window, r.stage, r.domain) for r in again] == [
    (r.day, r.window, r.stage, r.domain) for r in rows
  ]
  assert [r.domain for r in again] == ['8bit', '']


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('patient_id,image\np,a.nii', ['line 1', 'column scan_id', 'missing']),
    ('patient_id;scan_id;image\np;s;a.nii', ['line 1', 'patient_id', 'commas']),
    ('patient_id,scan_id,image,dya\np,s,a.nii,1', ['line 1', 'dya', 'unknown', 'day']),
    ('patient_id,scan_id,image,day,day\np,s,a.nii,1,1', ['line 1', 'twice']),
    ('patient_id,scan_id,image\n,s,a.nii', ['line 2', 'column patient_id', 'empty']),
    ('patient_id,scan_id,image\np,s', ['line 2', 'column image', 'empty']),
    ('patient_id,scan_id,image\np,s,a.nii,1', ['line 2', 'more cells']),
    (
      'patient_id,scan_id,image\np,s,a.nii\nq,s,b.nii',
      ['line 3', 'column scan_id', "'s' again", 'own scan_id'],
    ),
    (
      'patient_id,scan_id,image\np,s,c.nii',
      ['line 2', 'column image', 'no file c.nii'],
    ),
    (
      'patient_id,scan_id,image,lung_mask\np,s,a.nii,x.nii',
      ['line 2', 'column lung_mask', 'no file x.nii'],
    ),
    (
      'patient_id,scan_id,image,lobe_mask\np,s,a.nii,x.nii',
      ['line 2', 'column lobe_mask', 'no file x.nii'],
    ),
    (
      'patient_id,scan_id,image,susceptible_mask\np,s,a.nii,x.nii',
      ['line 2', 'column susceptible_mask', 'no file x.nii'],
    ),
    (
      'patient_id,scan_id,image,day\np,s,a.nii,2020-03-01',
      ['line 2', 'day', 'no number'],
    ),
    ('patient_id,scan_id,image,day\np,s,a.nii,nan', ['line 2', 'day', 'no number']),
    (
      'patient_id,scan_id,image,window_level_hu\np,s,a.nii,-600',
      ['line 2', 'window_width_hu', 'half a window'],
    ),
    (
      'patient_id,scan_id,image,window_level_hu,window_width_hu\np,s,a.nii,-600,0',
      ['line 2', 'window_width_hu', 'above 0'],
    ),
    ('patient_id,scan_id,image\np,../s,a.nii', ['line 2', 'scan_id', 'unfit']),
    ('patient_id,scan_id,image\np,Jané,a.nii', ['line 2', 'scan_id', 'unfit']),
    ('patient_id,scan_id,image\n', ['no line']),
    ('', ['line 1', 'patient_id', 'missing']),
  ],
)
def test_mistakes_are_named(tmp_path, text, words):
  refused(write(tmp_path, text), *words)


def test_what_is_no_table(tmp_path):
  refused(tmp_path / 'absent.csv', 'no such file')
  (tmp_path / 'cohort.csv').write_bytes(b'patient_id,scan_id,image\n\xff\xfe\x00,1')
  refused(tmp_path / 'cohort.csv', 'UTF-8')
