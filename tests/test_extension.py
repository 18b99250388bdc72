"""README, "Extending the simulator": another law by its name, through all jobs."""

import importlib
import json

import extension_law
import numpy as np
import pytest
import serial_scans
from absl import flags
from conftest import run_job
from ml_collections import config_flags

from covid3way.jobs import simulate
from covid3way.scans import store

NAME = 'extension_law.LAW'
OWN = {'simulator': {'law': NAME}}
NINE = set(extension_law.LAW.bounds)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """A workdir in which one patient's two scans were fitted and augmented."""
  folder = tmp_path_factory.mktemp('study')
  manifest = serial_scans.write_cohort(folder, p1=(0.0, 1.0))
  space = {'shape': serial_scans.SPACE.shape}
  run_job('fit', folder, input=str(manifest), space=space, **OWN)
  run_job('augment', folder, input=str(manifest), **OWN)
  return folder


def test_the_study_fits_nine_parameters(study):
  fits = json.loads((study / 'fits' / 'p1.json').read_text())
  assert fits['law'] == NAME and len(fits['pairs']) == 2
  for pair in fits['pairs']:
    assert set(pair['W']) == NINE and len(NINE) == 9
    bound = extension_law.LAW.bounds['clearing']
    assert bound.low < pair['W']['clearing'] < bound.high


def test_its_simulated_scans_say_which_nine(study):
  fits = json.loads((study / 'fits' / 'p1.json').read_text())
  fitted = {pair['to_scan']: pair['W'] for pair in fits['pairs']}
  made = sorted((study / 'store').glob('*-sim-*'))
  assert len(made) == 4
  for path in made:
    about = store.open_group(path).attributes['simulated']
    assert about['law'] == NAME and about['W'] == fitted[about['to_scan']]


def course(manifest, workdir, *given):
  """Signals of the infected voxels after a day, as the command line gives it."""
  arguments = [
    f'--config.input={manifest}',
    f'--config.space.shape={serial_scans.SPACE.shape}',
    f'--config.simulator.law={NAME}',
    *(f'--config.simulation.{name}' for name in ('days=1', 'every_days=1', 'frames=2')),
    *given,
  ]
  config = importlib.import_module('configs.simulate').get_config('smoke').lock()
  values, argv = flags.FlagValues(), ['main', *arguments]
  config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
  values(argv)
  simulate.run(values.config, workdir)
  *_, last = map(store.open_group, store.list_groups(workdir / 'course'))
  signal, infection = (
    last.volumes[name].read().result() for name in ('signal', 'infection')
  )
  return signal[infection > 0].astype(float), last.attributes['simulated']['W']


def test_the_ninth_parameter_is_given_on_the_command_line_and_matters(study, tmp_path):
  manifest = serial_scans.write_cohort(tmp_path / 'scan', p1=(0.0,))
  fit = f'--config.simulation.fit={study / "fits" / "p1.json"}'
  outcomes = {}
  for clearing in (1e-4, 2e-3):
    given = json.dumps({'clearing': clearing})
    workdir = tmp_path / str(clearing)
    outcomes[clearing], w = course(
      manifest, workdir, fit, f'--config.simulation.W={given}'
    )
    assert set(w) == NINE and w['clearing'] == pytest.approx(clearing)
  dense = {c: np.mean(s > extension_law.DENSE) for c, s in outcomes.items()}
  assert dense[2e-3] < 0.5 * dense[1e-4]
