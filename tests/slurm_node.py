"""A Slurm of one node, on this machine and for one test session."""

import contextlib
import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import foreign
from conftest import ROOT

PATH = f'{os.environ["PATH"]}:/usr/local/sbin:/usr/sbin'
DAEMONS = ('munged', 'slurmctld', 'slurmd')
# States of a job that has not failed.
WELL = ('PENDING', 'CONFIGURING', 'RUNNING', 'COMPLETING', 'REQUEUED', 'COMPLETED')
# No cgroups, no accounting, no ports but on loopback: a plain container is enough. A
# job that queues itself again waits until its old credentials have expired, two minutes
# by default. Programs find each other by the node's name.
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
  """Commands of a running Slurm."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.env = os.environ | {'PATH': PATH, 'SLURM_CONF': str(folder / 'slurm.conf')}

  def command(self, *words: str, **env: str) -> str:
    """What a command of Slurm prints."""
    done = subprocess.run(
      words, cwd=ROOT, env=self.env | env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

  def submit(self, script: str, *flags: str, options=(), after='', **env: str) -> str:
    """Submits one of the project's scripts; the job's number."""
    options = [f'--output={self.folder}/log-%j', *options]
    if after:
      options.append(f'--dependency=afterok:{after}')
    script = f'launch/slurm/{script}.sbatch'
    return self.command('sbatch', '--parsable', *options, script, *flags, **env)

  def show(self, job: str) -> list[dict[str, str]]:
    """What Slurm knows of a job, or of each task of an array."""
    lines = self.command('scontrol', '--oneliner', 'show', 'job', job).splitlines()
    return [dict(w.split('=', 1) for w in line.split() if '=' in w) for line in lines]

  def wait(self, until, *jobs: str, timeout_s: float = 120) -> None:
    """Waits until something is so, while none of some jobs ends badly."""
    deadline = time.monotonic() + timeout_s
    while not until():
      tasks = [task for job in jobs for task in self.show(job)]
      well = all(task['JobState'] in WELL for task in tasks)
      told = '\n'.join(f'{task}\n{self.log(task["JobId"])}' for task in tasks)
      assert well and time.monotonic() < deadline, told
      time.sleep(0.1)

  def finish(self, *jobs: str, timeout_s: float = 120) -> None:
    """Waits until jobs have ended well."""

    def done():
      tasks = [task for job in jobs for task in self.show(job)]
      return all(task['JobState'] == 'COMPLETED' for task in tasks)

    self.wait(done, *jobs, timeout_s=timeout_s)

  def log(self, job: str) -> str:
    """What a job has printed, in all of its runs."""
    path = self.folder / f'log-{job}'
    return path.read_text() if path.exists() else ''


@contextlib.contextmanager
def one_node_slurm():
  """Starts the daemons; all that was started has ended in the end."""
  absent = [name for name in DAEMONS if not shutil.which(name, path=PATH)]
  if absent:
    foreign.absent(', '.join(absent), 'install the Debian packages slurm-wlm and munge')
  with contextlib.ExitStack() as stack:
    # A socket's path has to be short. Munge wants to know who may write there.
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o755)
    slurm = Slurm(folder)
    _configure(folder)
    stack.callback(_end_jobs, slurm)
    munged = [
      f'--{name}={folder}/munge.{name.removesuffix("-file")}'
      for name in ('socket', 'key-file', 'pid-file', 'log-file', 'seed-file')
    ]
    daemons = []
    for command in (
      ('munged', '--foreground', '--force', *munged),
      ('slurmctld', '-D'),
      ('slurmd', '-D'),
    ):
      log = stack.enter_context((folder / f'{command[0]}.out').open('w'))
      daemon = subprocess.Popen(
        command, env=slurm.env, stdout=log, stderr=log, start_new_session=True
      )
      stack.callback(_end, daemon)
      daemons.append(daemon)
      if command[0] == 'munged':
        _wait(slurm, daemons, (folder / 'munge.socket').exists)
    _wait(slurm, daemons, lambda: 'idle' in _sinfo(slurm))
    yield slurm


def _configure(folder: pathlib.Path) -> None:
  (folder / 'state').mkdir()
  (folder / 'spool').mkdir()
  (folder / 'munge.key').touch(0o600)
  (folder / 'munge.key').write_bytes(os.urandom(128))
  with socket.create_server(('127.0.0.1', 0)) as a:
    with socket.create_server(('127.0.0.1', 0)) as b:
      ports = [s.getsockname()[1] for s in (a, b)]
  conf = CONF.format(
    folder=folder,
    ports=ports,
    host=socket.gethostname().split('.')[0],
    user=getpass.getuser(),
  )
  (folder / 'slurm.conf').write_text(conf)


def _sinfo(slurm: Slurm) -> str:
  """The node's state; while slurmctld is starting, its answer may take minutes."""
  words = ('sinfo', '--noheader', '--format=%T')
  try:
    done = subprocess.run(
      words, env=slurm.env, capture_output=True, text=True, timeout=5
    )
  except subprocess.TimeoutExpired:
    return ''
  return done.stdout


def _wait(slurm: Slurm, daemons: list[subprocess.Popen], until) -> None:
  deadline = time.monotonic() + 60
  while not until():
    told = '\n'.join(f'{p.name}: {p.read_text()}' for p in slurm.folder.glob('*.out'))
    alive = all(daemon.poll() is None for daemon in daemons)
    assert alive and time.monotonic() < deadline, f'Slurm does not start:\n{told}'
    time.sleep(0.1)


def _end(daemon: subprocess.Popen) -> None:
  daemon.terminate()
  try:
    daemon.wait(timeout=10)
  except subprocess.TimeoutExpired:
    daemon.kill()
    daemon.wait()


def _end_jobs(slurm: Slurm) -> None:
  """Ends what jobs have left: the daemons' children, with this Slurm's environment."""
  mark = f'SLURM_CONF={slurm.env["SLURM_CONF"]}'.encode()
  for _ in range(100):
    left = []
    for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
      with contextlib.suppress(OSError):
        if mark in path.read_bytes().split(b'\0'):
          left.append(int(path.parent.name))
    if not left:
      return
    for pid in left:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
