"""Whatever hangs says so."""

import re
import time

from covid3way import progress


def test_a_block_that_hangs_says_what_it_is_at_and_since_when(capsys):
  with progress.beating('view xy', every_s=0.05) as now:
    now.is_('step 3: waiting for its batch')
    time.sleep(0.4)
  told = capsys.readouterr().err
  assert len(re.findall(r'view xy, step 3: waiting for its batch for 0 s', told)) >= 3
  time.sleep(0.15)
  assert not capsys.readouterr().err


def test_a_quick_block_says_nothing(capsys):
  with progress.beating('view xy', every_s=30.0):
    pass
  assert not capsys.readouterr().err


def test_a_process_that_is_not_the_first_is_quiet(capsys, monkeypatch):
  monkeypatch.setattr(progress, '_quiet', '')
  progress.say('aloud')
  progress.be_quiet('process 3')
  progress.say('not')
  assert capsys.readouterr().err == 'aloud\n'
  with progress.beating('view xy', every_s=0.05):
    time.sleep(0.2)
  assert 'process 3: view xy, starting for 0 s\n' in capsys.readouterr().err
