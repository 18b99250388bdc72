"""Predicts infection masks, on each scan's own grid, and quantifies them.

  python -m covid3way.main --config=configs/predict.py --workdir=runs/results \
    --config.model=runs/quickstart/model --config.input=DICOM_FOLDER

A chest of 148 slices took 13 s on 2 cores with the quickstart's model, and 2 min 40 s
and 4.4 GiB at 512 x 512 x 512 voxels with networks of the released size.

`input` is a DICOM folder, a folder of such folders, a zip, a NIfTI file or a manifest.
Writes `<scan_id>/` with `infection.nii.gz`, `probability.nii.gz`, `lungs.nii.gz`,
`quantification.json`, `overview.png`; and `quantification.csv`, one row per scan.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/predict.py:smoke` is the job itself: it has nothing to shorten."""
  return default.pick('predict', variant, 'input', 'model', 'window', 'prediction')
