"""covid3way: a job's config and a working directory in, that job done.

Usage: python -m covid3way.main --config=configs/JOB.py --workdir=DIR

Exit codes: 0 all done, or a training kept after SIGTERM, which the same command goes on
with; 1 some scans or patients failed and the others are done (named in failures.json,
or a shard's own), or a defect of the program, with its traceback; 2 wrong use or wrong
input, told in one line, also where the only scan that there is fails; but for check and
evaluate, whose tables tell of it: 1.
"""

import contextlib
import gc
import hashlib
import importlib
import os
import pathlib
import platform
import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from covid3way.base import ConfigError, Covid3wayError
from covid3way.jobs import usage

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='The job: configs/JOB.py, or configs/JOB.py:smoke.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the job writes.')
_SHARD = flags.DEFINE_string(
  'shard',
  None,
  'i/n: only every n-th scan, patient, view or run, from the i-th (0 to n - 1) on. '
  'Shards may run at the same time; the same command without --shard gathers what they '
  'did.',
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Train together with the other processes that srun started.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of the first of several training processes.'
)
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many they are.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which this is, from 0 on.')
_DEBUG = flags.DEFINE_bool('debug', False, 'Show tracebacks and debug lines.')


def parse(argv: list[str]) -> list[str]:
  """Parses flags; a mistake among them is one line and exit code 2."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is None or _WORKDIR.value is None:
      raise ConfigError('command line', '--config or --workdir missing', 'give both')
    _CONFIG.value.job  # noqa: B018, raises now if the file could not be loaded
    if rest[1:]:
      raise ConfigError('command line', f'{rest[1:]} is no flag', 'use --flag=value')
    _joins()  # Raises now what it raises.
    usage.check(_CONFIG.value, _SHARD.value)
    return rest
  except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as e:
    if '--debug' in argv:
      traceback.print_exc()
    end(f'command line: {_one_line(e)}; see --help and the config file')
  except Covid3wayError as error:
    if '--debug' in argv:
      traceback.print_exc()
    end(str(error))


def main(_: list[str]) -> None:
  """Runs the config's job."""
  from covid3way.jobs.batch import SomeFailedError
  from covid3way.training import devices
  from covid3way.training.preemption import PreemptedError

  # Libraries log through absl far more than a user wants to read, and repeat as
  # tracebacks the errors that are told below.
  logging.set_verbosity(logging.DEBUG if _DEBUG.value else logging.FATAL)
  config = _CONFIG.value
  _keep_compiled()
  job = importlib.import_module(f'covid3way.jobs.{config.job}')
  # Tracing and DICOM headers make so many objects, and keep them, that it takes long to
  # look for unused ones after every 700.
  gc.freeze()
  gc.set_threshold(10_000)
  told = None
  try:
    options = {}
    if _joins():
      _join(config.job)
    if _SHARD.value is not None:
      options['shard'] = usage.Shard.parse(_SHARD.value)
    job.run(config, pathlib.Path(_WORKDIR.value), **options)
    devices.leave()
  except PreemptedError as error:
    devices.leave()
    told, code = str(error), 0
  except (Covid3wayError, SomeFailedError) as error:
    if _DEBUG.value:
      traceback.print_exc()
    told, code = str(error), 1 if isinstance(error, SomeFailedError) else 2
  except Exception as error:
    if not _joins():
      raise
    # A plain exit would wait for the other processes, which wait for this one.
    traceback.print_exc()
    end(f'{type(error).__name__} in one of several processes', code=1)
  if told is not None:
    # What the error held on to is let go: semaphores of processes, which would be told
    # of after the last line.
    gc.collect()
    end(told, code=code)


def _keep_compiled() -> None:
  """Compiled code is kept in the user's cache, unless JAX has been told of a place.

  Processors of a cluster may share that folder, and not each other's code.
  """
  cpu = pathlib.Path('/proc/cpuinfo')
  can = re.search(r'flags\s*:.*', cpu.read_text()) if cpu.exists() else None
  kind = f'{platform.machine()} {can and can[0]}'.encode()
  name = f'jax-{hashlib.sha256(kind).hexdigest()[:8]}'
  with contextlib.suppress(OSError, RuntimeError):  # Else nothing is kept.
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(cache, 'covid3way', name)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')


def _joins() -> bool:
  """Whether this process is to be one of several.

  Raises:
    ConfigError: only some of the flags that say so are given.
  """
  given = [_COORDINATOR.value, _PROCESSES.value, _PROCESS.value]
  if len({value is None for value in given}) > 1:
    raise ConfigError(
      'command line',
      'only some of --coordinator_address, --num_processes, --process_id',
      'give all three, or --distributed under srun',
    )
  return _DISTRIBUTED.value or given[0] is not None


def _join(job: str) -> None:
  """Makes this process one of several that do one training."""
  import jax

  from covid3way import progress
  from covid3way.training import devices

  if job != 'train':
    raise ConfigError(
      '--distributed', f'{job} runs in one process', 'leave it out, or use --shard'
    )
  devices.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  if not devices.is_first():
    progress.be_quiet(f'process {jax.process_index()}')


def end(message: str, *, code: int = 2) -> None:
  """Ends the program with one line, and nothing after it."""
  # Threads of libraries still tell of the error in their own words: from here on, to
  # nobody.
  sys.stdout.flush()
  sys.stderr.flush()
  with os.fdopen(os.dup(2), 'w') as stderr:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    print(f'covid3way: {message}', file=stderr)
  os._exit(code)


def _one_line(error: Exception) -> str:
  """The last line: what ml_collections puts before it is a traceback."""
  told = str(error.args[-1] if error.args else error).strip()
  if isinstance(error, KeyError | AttributeError):
    field = re.search(r'\w+', told)
    return f'this config has no field {field.group()!r}' if field else told
  return told.splitlines()[-1].strip()


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
