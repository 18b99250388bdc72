"""Predicts infection masks, on each scan's own grid, and quantifies them.

  python -m covid3way.main --config=configs/predict.py --workdir=runs/results \
    --config.model=runs/quickstart/model --config.input=DICOM_FOLDER

A chest of 148 slices took 88 s on 2 cores at 512 x 512 x 512 voxels, with every output
and networks of the released size, and 2.6 GiB; the first time, with compilation, 121 s.
A test holds a scan of 512 x 512 x 600 voxels to 5 GiB.

`input` is a DICOM folder, a folder of such folders, a zip, a NIfTI file or a manifest.
Writes `<scan_id>/` with `infection.nii.gz`, `probability.nii.gz`, `lungs.nii.gz`,
`quantification.json`, `overview.png`, `report.html`; `quantification.csv`, one row per
scan; and `courses/<patient_id>/` for each patient whom a manifest gives several days.

`--config.export.dicom=True` adds `infection.dcm`, `probability.dcm` (DICOM SEG) and
`measurements.dcm` (SR, TID 1500) of the DICOM series. They name the patient, as a PACS
needs, only with `--config.export.identified=True`.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/predict.py:smoke` is the job itself: it has nothing to shorten."""
  return default.pick(
    'predict', variant, 'input', 'model', 'window', 'prediction', 'export'
  )
