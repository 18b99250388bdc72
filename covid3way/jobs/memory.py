"""Memory of a long computation on a CPU: kept from step to step."""

import ctypes

# Numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> None:
  """Has freed memory kept for whoever asks next, instead of given back.

  A step of a training, or a slice of a prediction, takes some hundred MiB at once; else
  the system hands them out anew, page by page and filled with zeros, which is up to a
  fifth of the time. To be called before JAX has threads: one that has memory of its own
  keeps to that. Without glibc nothing happens.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    for parameter, value in (
      (_ARENA_MAX, 1),  # All threads share what is kept.
      (_MMAP_MAX, 0),  # It is never a mapping of its own, which ends when it is freed.
      (_TRIM_THRESHOLD, 2**31 - 1),
    ):
      mallopt(parameter, value)
