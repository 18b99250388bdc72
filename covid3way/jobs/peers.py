"""What others' tools take for the same, in the same run; only where they are installed.

`opencv` is the route of the authors' released code: each slice resized by
`cv2.resize` with INTER_LANCZOS4, axis by axis. `torch` and `torch_train` are the
released U-Net in PyTorch: float32, channels last, as many threads as cores. Neither is
needed by anything else here: `pip install torch opencv-python-headless`.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way.base import ConfigError
from covid3way.jobs.stages import Given, Work
from covid3way.standard.space import EXTENT_MM

_FEATURES, _DEPTH = (16, 32, 64, 128, 256), 5
_SLICES = 16  # Of which the rate is taken: PyTorch would need minutes for all.
_STEPS = 8


def _imported(name: str, package: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ConfigError(
      'config.benchmark.cases', f'{package} is not installed', f'pip install {package}'
    ) from error


def make(stage: str, case: str, config: ConfigDict, folder: Path) -> Work:
  """A stage, as `stages.make` makes those of this project.

  Args:
    stage: a key of `STAGES`.
    case: pixels a side, and the slices of a batch, as '512-8'; without them as many as
      `batch_size` of `config.prediction` or `config.training`.
    config: of the benchmark.
    folder: to write to.

  Raises:
    ConfigError: the tool is not installed.
  """
  side, _, size = case.partition('-')
  return STAGES[stage](int(side), int(size or 0), config, folder)


def _opencv(n: int, _: int, config: ConfigDict, folder: Path) -> Work:
  """A scan on its own grid -> n^3 voxels of the standard space, axis by axis."""
  cv2 = _imported('cv2', 'opencv-python-headless')
  scan = Given(n, config, folder).scan
  spacing = np.divide(EXTENT_MM, n)
  sides = np.rint(np.multiply(scan.hu.shape, scan.grid.spacing_mm) / spacing).astype(
    int
  )

  def run() -> int:
    x, y, z = (int(side) for side in sides)
    hu, method = scan.hu, cv2.INTER_LANCZOS4
    planes = np.empty((x, y, hu.shape[2]), np.float32)
    for k in range(hu.shape[2]):
      plane = np.ascontiguousarray(hu[:, :, k])
      planes[:, :, k] = cv2.resize(plane, (y, x), interpolation=method)
    result = np.full((n, n, n), -1024, np.float32)
    for i in range(min(x, n)):
      plane = cv2.resize(planes[i], (z, y), interpolation=method)
      result[i, : min(y, n), : min(z, n)] = plane[:n, :n]
    return 1

  return Work(run, 'scans/s')


def _torch(n: int, size: int, config: ConfigDict, folder: Path) -> Work:
  del folder
  size = size or config.prediction.batch_size
  torch, network, stacks = _released(n, size)
  network.eval()

  def run() -> int:
    with torch.inference_mode():
      for _ in range(0, _SLICES, size):
        network(stacks).softmax(1)
    return -(-_SLICES // size) * size

  return Work(run, 'slices/s')


def _torch_train(n: int, size: int, config: ConfigDict, folder: Path) -> Work:
  """Steps of Adam on weighted cross-entropy, data in memory."""
  del folder
  size = size or config.training.batch_size
  torch, network, stacks = _released(n, size)
  optimiser = torch.optim.Adam(network.parameters(), config.training.learning_rate)
  weights = torch.tensor(config.training.class_weights)
  labels = torch.randint(0, 2, (size, n, n))

  def run() -> int:
    for _ in range(_STEPS):
      optimiser.zero_grad(set_to_none=True)
      logits = network(stacks)
      loss = torch.nn.functional.cross_entropy(logits, labels, weights)
      infected, found = labels == 1, logits.softmax(1)[:, 1]
      dice = 2 * (found * infected).sum() / (found.sum() + infected.sum())
      (loss + 1 - dice).backward()
      optimiser.step()
    return _STEPS * size

  return Work(run, 'slices/s')


def _released(n: int, size: int) -> tuple[ModuleType, Any, Any]:
  """PyTorch, the released U-Net to be trained, and a batch of stacks."""
  torch = _imported('torch', 'torch')
  torch.set_num_threads(os.cpu_count())
  stacks = torch.randn(size, _DEPTH, n, n)
  network, stacks = (
    each.to(memory_format=torch.channels_last) for each in (_unet(torch), stacks)
  )
  return torch, network, stacks


def _unet(torch: ModuleType) -> Any:
  """The released U-Net; see `networks.unet`."""
  nn = torch.nn

  def twice(before: int, width: int) -> Any:
    layers = []
    for channels in (before, width):
      layers += [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
      ]
    return nn.Sequential(*layers)

  class UNet(nn.Module):
    def __init__(self):
      super().__init__()
      inputs = (_DEPTH, *_FEATURES)
      self.down = nn.ModuleList(map(twice, inputs, _FEATURES))
      pairs = list(zip(_FEATURES[:0:-1], _FEATURES[-2::-1], strict=True))
      self.doubled = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
      self.up = nn.ModuleList(twice(2 * b, b) for _, b in pairs)
      self.head = nn.Conv2d(_FEATURES[0], 2, 1)

    def forward(self, x):
      skips = []
      for level in self.down[:-1]:
        skips.append(level(x))
        x = nn.functional.max_pool2d(skips[-1], 2)
      x = self.down[-1](x)
      for double, level in zip(self.doubled, self.up, strict=True):
        x = level(torch.cat([skips.pop(), double(x)], 1))
      return self.head(x)

  return UNet()


STAGES: Mapping[str, Callable[..., Work]] = {
  'opencv': _opencv,
  'torch': _torch,
  'torch_train': _torch_train,
}
