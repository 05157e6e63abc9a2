"""Inception-v3 features (pool3, 2048 values) from a weights file that the user brings.

Two networks with the same layer names are in use, and their distances must not be mixed:

| kind | outputs | file | differs by |
| --- | --- | --- | --- |
| fid | 1008 | the port of TensorFlow's 2015 network, e.g. pt_inception-2015-12-05-6726825d.pth | see below |
| torchvision | 1000 | torchvision's `inception_v3` state dict | no difference |

In the pooling branches of blocks A, C and the first E the TensorFlow network averages over the existing pixels
only (no zeros from the border). Its second block E takes a maximum instead. Published FIDs
are those of `fid`. Both networks want values in [-1, 1]: the first by its documentation; the second because
`transform_input=True`, with which it was trained, turns ImageNet's normalisation back into this range.

Images are resized to 299 x 299 bilinearly, `align_corners=False`, without antialiasing, as pytorch-fid does.

Source: Szegedy et al., "Rethinking the Inception Architecture", 2016; the differences as documented by
pytorch-fid (Seitzer, 2020). The file is read without unpickling objects.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import inception as blocks

from degan.data.files import sha256_of_file
from degan.errors import WeightsError

FEATURES = 2048
_SIDE = 299
_KINDS = {1008: "fid", 1000: "torchvision"}
_WANTED = (
    "expected torchvision's inception_v3 or pytorch-fid's pt_inception-2015-12-05 state dict, .pth or .safetensors"
)


class InceptionFeatures:
    """The network up to its last pooling, from a weights file.

    Args:
        path: a state dict, saved by torch or as safetensors.
        device: the device of the computations.

    Attributes:
        kind: "fid" or "torchvision".
        sha256: of the file.

    Raises:
        WeightsError: the file is missing, not readable, or of another network.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        path = Path(path).expanduser()
        state = _read(path)
        self.kind = _kind(path, state)
        self.sha256 = sha256_of_file(path)
        self._device = torch.device(device)
        self._network = _build(path, self.kind, state).to(self._device)

    @torch.no_grad()
    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """float32 `(batch, 1 or 3, H, W)` in [-1, 1] to float32 `(batch, 2048)`; grey is repeated three times.

        Raises:
            ValueError: the samples are not images of 1 or 3 channels.
        """
        if samples.ndim != 4 or samples.shape[1] not in (1, 3):
            raise ValueError(f"Inception looks at images (batch, 1 or 3, H, W), got {tuple(samples.shape)}")
        images = samples.to(self._device, torch.float32).expand(-1, 3, -1, -1)
        return self._network(F.interpolate(images, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False))


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors by name. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"no Inception weights file {path}; {_WANTED}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of TorchScript archives; the error below has more detail
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds
        raise WeightsError(f"{path}: not a state dict ({type(error).__name__}); {_WANTED}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a state dict; {_WANTED}")
    return state


def _kind(path: Path, state: dict[str, torch.Tensor]) -> str:
    """The kind of the network, by its number of outputs."""
    last = state.get("fc.weight")
    if last is None or last.ndim != 2 or last.shape[0] not in _KINDS:
        came = "no layer fc" if last is None else f"fc.weight of shape {tuple(last.shape)}"
        raise WeightsError(f"{path}: {came}, not 1000 or 1008 outputs; {_WANTED}")
    return _KINDS[last.shape[0]]


def _build(path: Path, kind: str, state: dict[str, torch.Tensor]) -> nn.Module:
    """The network with these weights, in evaluation mode."""
    with torch.device("meta"):  # no random numbers, no work: the values come from the file
        network = _Pool3(kind)
    wanted = network.state_dict()
    given = {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if not name.startswith(("AuxLogits.", "fc."))
    }
    for name in wanted:  # older files lack this counter of the training
        if name.endswith(".num_batches_tracked"):
            given.setdefault(name, torch.zeros((), dtype=torch.int64))
    wrong = next((n for n in wanted if n not in given or given[n].shape != wanted[n].shape), None)
    wrong = wrong or next((n for n in given if n not in wanted), None)
    if wrong is not None:
        came = tuple(given[wrong].shape) if wrong in given else "nothing"
        expected = tuple(wanted[wrong].shape) if wrong in wanted else "nothing"
        raise WeightsError(f"{path}: {wrong} should be {expected}, is {came}; {_WANTED}")
    network.load_state_dict(given, assign=True)
    return network.eval().requires_grad_(False)


# --- the network --------------------------------------------------------------------------------


class _Pool3(nn.Module):
    """Inception-v3 from the image to pool3; layers named as in the files."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        conv, fid = blocks.BasicConv2d, kind == "fid"
        a, c = (_InceptionA, _InceptionC) if fid else (blocks.InceptionA, blocks.InceptionC)
        e1, e2 = (_InceptionEAverage, _InceptionEMax) if fid else (blocks.InceptionE, blocks.InceptionE)
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.maxpool1 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.maxpool2 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Mixed_5b = a(192, pool_features=32)
        self.Mixed_5c = a(256, pool_features=64)
        self.Mixed_5d = a(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = c(768, channels_7x7=128)
        self.Mixed_6c = c(768, channels_7x7=160)
        self.Mixed_6d = c(768, channels_7x7=160)
        self.Mixed_6e = c(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = e1(1280)
        self.Mixed_7c = e2(2048)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 299, 299) to (batch, 2048)."""
        for layer in self.children():  # in the order of their definition
            images = layer(images)
        return images.mean(dim=(2, 3))


def _average(x: torch.Tensor) -> torch.Tensor:
    """3 x 3 average over the existing pixels."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _InceptionA(blocks.InceptionA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(_average(x)),
            ],
            dim=1,
        )


class _InceptionC(blocks.InceptionC):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
                self.branch_pool(_average(x)),
            ],
            dim=1,
        )


class _InceptionEAverage(blocks.InceptionE):
    def pool(self, x: torch.Tensor) -> torch.Tensor:
        return _average(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(self.pool(x)),
            ],
            dim=1,
        )


class _InceptionEMax(_InceptionEAverage):
    def pool(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)
