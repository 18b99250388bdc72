"""Makes a manifest of a public collection, or an nnU-Net dataset of a manifest.

  python -m covid3way.main --config=configs/convert.py --workdir=runs/seg20 \
    --config.format=covid-seg-20 --config.input=DOWNLOADS/zenodo-3757476

  python -m covid3way.main --config=configs/convert.py --workdir=runs/slices \
    --config.format=slices --config.input=DOWNLOADS/covid-seg20-slices

  python -m covid3way.main --config=configs/convert.py \
    --workdir=nnUNet_raw/Dataset501_Covid --config.format=to-nnunet \
    --config.input=runs/cohort/manifest.csv

Writes `manifest.csv`, what had to be converted, and `notes.json`: all that was assumed,
found or lost on the way. Files that need no change are referred to. Formats:

  slices        PATIENT/{ct,infection,lungs}/*.png, 8-bit: a domain of their own
  covid-seg-20  COVID-19-CT-Seg-20 (Zenodo 3757476), its zip files unpacked
  mosmed        MosMedData, `studies/` and `masks/`
  covid-19-20   the COVID-19-20 challenge, `Train/` and `Validation/`
  medseg        MedSeg's 100 slices (`tr_im.nii.gz`) and 9 volumes (`rp_im/`)
  nnunet        an nnU-Net v2 raw dataset, `DatasetNNN_NAME/`
  to-nnunet     any input of the preprocess job -> such a dataset, in the workdir

A dataset of nnU-Net with several labels needs to be told which of them are infection,
by name: --config.infection_labels=ground_glass,consolidation.

PNG files hold no spacing: 1.4 x 1.4 x 1 mm is assumed of patients who are not in the
table that --config.spacing=FILE.csv gives.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/convert.py:smoke` is the job itself: it has nothing to shorten."""
  return default.pick(
    'convert', variant, 'input', 'format', 'infection_labels', 'spacing'
  )
