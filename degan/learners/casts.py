"""float32 to half precision and back by torch, which uses the processor's instructions for this.

numpy converts float16 one value at a time: 10.8 ms for 4.24 million values, against 0.9 ms.
"""

from __future__ import annotations

import numpy as np
import torch


def torch_cast(source: np.ndarray, target: np.ndarray) -> None:
    """Write the values of `source` into `target`, both one-dimensional; neither is copied.

    Rounds to nearest even. float32 and float16 are themselves; uint16 stands for bfloat16, which numpy lacks.
    """
    as_tensor(target).copy_(as_tensor(source))


def as_tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.uint16:
        return as_tensor(array.view(np.int16)).view(torch.bfloat16)
    if not array.flags.writeable:
        # torch has no read-only tensors, and warns. Nothing here writes to this memory.
        array = np.asarray(_Writeable(array))
    return torch.from_numpy(array)


class _Writeable:
    """The same memory, marked as writeable."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
