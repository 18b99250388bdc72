"""Numbers, picture and page of masks that are there already, without any network.

  python -m covid3way.main --config=configs/quantify.py --workdir=runs/numbers \
    --config.input=manifest.csv

`input` is a manifest with infection masks, and lung and lobe masks if there are any;
without lung masks the lungs are looked for. With `--config.predictions=FOLDER`, the
workdir of a predict job, `input` may be whatever predict takes: both masks are read
there. Writes what predict writes, but for probabilities. What was written of masks that
have changed since is written again.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/quantify.py:smoke` is the job itself: it has nothing to shorten."""
  return default.pick('quantify', variant, 'input', 'predictions', 'window', 'export')
