"""Reads a cohort before anyone trains on it, and says what is wrong with it.

  python -m covid3way.main --config=configs/check.py --workdir=runs/check \
    --config.input=MANIFEST.csv

`input` is a manifest, a folder of scans or a scan. Prints a table of all scans, what
was found of them and what to do about it; writes `check.csv`, a row per scan, and
`check.json`. Four scans of 512 x 512 pixels took 18 s and 0.8 GiB on 2 cores. What was
measured of a scan is kept in `check/` until its files change.

The exit code is 0 where there is no error, warnings or not, and 1 where some scans have
one: `failures.json` names them.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/check.py:smoke` is the job itself: it has nothing to shorten."""
  return default.pick('check', variant, 'input', 'space.shape', 'window')
