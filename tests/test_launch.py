"""What schedulers are given: how SIGTERM is answered, the manifests for Kubernetes."""

import importlib
import re
import signal
import subprocess
import sys

import pytest
import yaml
from absl import flags
from conftest import ROOT

import covid3way.main  # noqa: F401, defines the flags

PREEMPTIBLE = 'launch/preemptible.sh'
# Keeps its state and ends with the given code, as a training ends with 0.
PROGRAM = """
import signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print('ready', flush=True)
while len(told) < int(sys.argv[1]):
  time.sleep(0.01)
print('kept', flush=True)
sys.exit(int(sys.argv[2]))
"""


def start(*command):
  return subprocess.Popen(
    [PREEMPTIBLE, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )


@pytest.mark.parametrize('code', [0, 1, 2])
def test_a_program_that_is_left_alone_ends_with_its_own_code(code):
  with start(sys.executable, '-c', PROGRAM, '0', str(code)) as process:
    assert process.communicate()[0] == 'ready\nkept\n'
  assert process.returncode == code


@pytest.mark.parametrize('signals', [1, 3])
@pytest.mark.parametrize('code,expected', [(0, 143), (1, 1), (2, 2)])
def test_one_that_got_sigterm_is_waited_for_and_never_ends_with_0(
  signals, code, expected
):
  with start(sys.executable, '-c', PROGRAM, str(signals), str(code)) as process:
    assert process.stdout.readline() == 'ready\n'
    for _ in range(signals):
      # Signals that come at once are one.
      with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
      process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == 'kept\n'
  assert process.returncode == expected


def test_one_that_sigterm_ends_tells_so():
  with start('bash', '-c', 'echo ready; exec sleep 60') as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
  assert process.returncode == 143


SCRIPTS = sorted([*ROOT.glob('launch/**/*.sh'), *ROOT.glob('launch/**/*.sbatch')])


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_batch_scripts_can_be_preempted(path):
  subprocess.run(['bash', '-n', path], check=True)
  if path.suffix == '.sbatch':
    text = path.read_text()
    for option in ('requeue', 'open-mode=append', 'signal=B:TERM@120'):
      assert f'\n#SBATCH --{option}\n' in text
    assert '"$@"' in text


def read(name):
  """A manifest, and its job: of a JobSet, that of its only replicated job."""
  manifest = yaml.safe_load((ROOT / 'launch/kubernetes' / f'{name}.yaml').read_text())
  if manifest['kind'] == 'Job':
    assert manifest['apiVersion'] == 'batch/v1'
    return manifest, manifest['spec']
  assert manifest['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  (replicated,) = manifest['spec']['replicatedJobs']
  assert replicated['replicas'] == 1
  return manifest, replicated['template']['spec']


def arguments(job):
  (container,) = job['template']['spec']['containers']
  assert container['command'] == [PREEMPTIBLE, 'python', '-m', 'covid3way.main']
  return dict(flag.removeprefix('--').split('=', 1) for flag in container['args'])


@pytest.mark.parametrize('name', ['shards', 'hosts'])
def test_manifests_name_what_there_is(name):
  _, job = read(name)
  pod, given = job['template']['spec'], arguments(job)
  assert job['completionMode'] == 'Indexed'  # Gives JOB_COMPLETION_INDEX.
  used = re.findall(r'\$\((\w+)\)', ' '.join(given.values()))
  assert used == ['JOB_COMPLETION_INDEX']
  module = given['config'].removesuffix('.py').replace('/', '.')
  config = importlib.import_module(module).get_config()
  for flag in given:
    section, *path = flag.split('.')
    assert section in flags.FLAGS
    for field in path:
      assert field in config
  mounts = {mount['name'] for mount in pod['containers'][0]['volumeMounts']}
  assert mounts == {volume['name'] for volume in pod['volumes']}


def rules(job):
  """What a job does about a pod that ended badly, by exit code or condition."""
  found = {}
  for rule in job['podFailurePolicy']['rules']:
    for code in rule.get('onExitCodes', {}).get('values', []):
      found.setdefault(code, rule['action'])
    for condition in rule.get('onPodConditions', []):
      found.setdefault(condition['type'], rule['action'])
  return found


@pytest.mark.parametrize('name', ['shards', 'hosts'])
def test_pods_that_are_preempted_have_time_and_come_back(name):
  manifest, job = read(name)
  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never'  # The rules ask for it.
  assert pod['terminationGracePeriodSeconds'] >= 120
  if name == 'shards':
    assert rules(job) == {143: 'Ignore', 'DisruptionTarget': 'Ignore', 2: 'FailIndex'}
  else:
    assert rules(job) == {143: 'FailJob', 'DisruptionTarget': 'FailJob'}
    assert job['backoffLimit'] == 0
    (rule,) = manifest['spec']['failurePolicy']['rules']
    assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
    assert rule['onJobFailureReasons'] == ['PodFailurePolicy']


def test_shards_and_processes_are_as_many_as_pods():
  _, job = read('shards')
  assert arguments(job)['shard'] == f'$(JOB_COMPLETION_INDEX)/{job["completions"]}'
  manifest, job = read('hosts')
  given, name = arguments(job), manifest['metadata']['name']
  assert int(given['num_processes']) == job['completions'] == job['parallelism']
  assert given['process_id'] == '$(JOB_COMPLETION_INDEX)'
  host = f'{name}-{manifest["spec"]["replicatedJobs"][0]["name"]}-0-0.{name}'
  assert re.fullmatch(rf'{re.escape(host)}:\d+', given['coordinator_address'])


def test_the_image_has_what_its_pods_run():
  lines = (ROOT / 'launch/kubernetes/Dockerfile').read_text().splitlines()
  copied = {line.split()[1] for line in lines if line.startswith('COPY ')}
  assert copied == {'requirements.txt', 'configs', 'covid3way', PREEMPTIBLE}
  assert all((ROOT / path).exists() for path in copied)
