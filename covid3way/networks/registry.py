"""The methods that are compared (paper, Tables II to VI): one row each.

A method is one or more parts, trained one after the other. What a part is shown is its
sampling: `slices`, stacks of slices normal to an axis; `planes`, oblique planes;
`volumes`, sub-volumes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn

from covid3way.networks.dense_unet import HDenseUNet
from covid3way.networks.unet import UNet
from covid3way.networks.unet3d import UNet3D
from covid3way.networks.vnet3d import VNet3D


@dataclasses.dataclass(frozen=True)
class Part:
  """What one network, or one stage of its training, looks at.

  Attributes:
    sampling: `slices`, `planes` or `volumes`.
    view: of slices, `xy`, `yz` or `xz`.
  """

  sampling: str
  view: str = ''


@dataclasses.dataclass(frozen=True)
class Method:
  """One method.

  Attributes:
    title: in tables and pictures.
    network: class of its networks.
    parts: by name, in the order in which they are trained.
    staged: whether the parts are stages of one network, each going on with the weights
      of the one before, the last of which predicts.
    neighbours: slices of a stack in voxels, where the method has its own; else the
      config's `offsets_mm`.
  """

  title: str
  network: type[nn.Module]
  parts: Mapping[str, Part]
  staged: bool = False
  neighbours: tuple[int, ...] | None = None

  def predicting(self, parts: Sequence[str]) -> tuple[str, ...]:
    """Those of the trained parts that give a probability map each."""
    return tuple(parts[-1:]) if self.staged else tuple(parts)


_VIEWS = {view: Part('slices', view) for view in ('xy', 'yz', 'xz')}
METHODS = {
  'three_way': Method('Ours', UNet, _VIEWS),
  'unet_2d': Method('2D U-Net', UNet, {'xy': _VIEWS['xy']}, neighbours=(0,)),
  'h_dense_unet': Method(
    'H-DenseUNet',
    HDenseUNet,
    {
      'planes': Part('slices', 'xy'),
      'volumes': Part('volumes'),
      'hybrid': Part('volumes'),
    },
    staged=True,
    neighbours=(-1, 0, 1),
  ),
  'mpunet': Method('MPUnet', UNet, {'oblique': Part('planes')}),
  'unet_3d': Method('3D U-Net', UNet3D, {'volume': Part('volumes')}),
  'vnet_3d': Method('3D V-Net', VNet3D, {'volume': Part('volumes')}),
}


def make_network(method: str, features: Sequence[int], width: float) -> nn.Module:
  """The network of a method, of its last stage.

  Args:
    method: a key of `METHODS`.
    features: channels, as the network's class has them.
    width: factor of all of them.
  """
  scaled = tuple(max(1, round(f * width)) for f in features)
  return METHODS[method].network(features=scaled)
