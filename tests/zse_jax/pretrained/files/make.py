"""Makes the files of this folder; needs PyTorch. They were made once, with PyTorch 2.15.

python tests/zse_jax/pretrained/files/make.py
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent


class Inner(nn.Module):
    """A module with a buffer, and with a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("size", torch.tensor(224.0).half())
        self.mask = torch.full((2, 2), float("-inf"))

    def forward(self, x):
        """Uses every attribute."""
        return self.fc(x) + self.mask.exp()[0] + self.size


class Unnamed(nn.Module):
    """A module that declares no parameters, but has a tensor."""

    def __init__(self):
        super().__init__()
        self.scale = torch.ones(2)

    def forward(self, x):
        """Uses the tensor."""
        return x * self.scale


class Outer(nn.Module):
    """Modules in a list, and one under two names."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.tied = self.blocks[0].fc
        self.last = Unnamed()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x):
        """Uses every module."""
        for block in self.blocks:
            x = block(x)
        return self.last(self.tied(x)) + self.weight.sum()


def main() -> None:
    """Writes every file."""
    base = torch.arange(24, dtype=torch.float32)
    tensors = OrderedDict(
        base=base,
        view=base[4:16].view(3, 4).t(),
        shared=base,
        scalar=torch.tensor(3.5),
        empty=torch.empty(0, 3),
        bfloat16=torch.arange(5).to(torch.bfloat16),
        half=torch.tensor([0.5, -2.0]).half(),
        double=torch.tensor([0.1], dtype=torch.float64),
        int8=torch.tensor([-1, 2], dtype=torch.int8),
        uint16=torch.tensor([65535], dtype=torch.uint16),
        float8=torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
        long=torch.tensor(7),
        bool=torch.tensor([True, False]),
        complex=torch.tensor([1 + 2j]).conj(),
        parameter=nn.Parameter(torch.ones(2, 2)),
        expanded=torch.ones(1).expand(4),
    )
    contents = {
        "model": tensors,
        "map_all": np.float64(0.5),
        "precision": np.float32(0.25),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i4"),
        "dtype": np.dtype("f4"),
        "size": torch.Size([1, 2]),
        "type": torch.float16,
        "device": torch.device("cpu"),
        "others": (1, "a", None, True, 2.5, 1j, b"ab", 2**70, [{}]),
    }
    torch.save(contents, HERE / "zip.pth")
    torch.save(contents, HERE / "protocol5.pth", pickle_protocol=5)
    torch.save(contents, HERE / "stacked.pth", _use_new_zipfile_serialization=False)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    weights = network.state_dict()
    lightning = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict((f"model.{name}", x) for name, x in weights.items()),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "hyper_parameters": {"lr": 1e-3},
    }
    torch.save(lightning, HERE / "lightning.ckpt")
    averages = {name: x + 1 for name, x in weights.items()}
    torch.save({"model": weights, "model_ema": averages, "epoch": 3}, HERE / "averages.pth.tar")
    torch.save(network, HERE / "whole_model.pth")
    torch.save({"a": torch.eye(3).to_sparse()}, HERE / "sparse.pth")
    torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
               HERE / "quantized.pth")  # fmt: skip
    torch.serialization.set_crc32_options(False)
    torch.save(weights, HERE / "without_sums.pth")
    torch.serialization.set_crc32_options(True)

    module = Outer()
    for number, parameter in enumerate(module.parameters()):
        nn.init.constant_(parameter, number)
    torch.jit.script(module).save(HERE / "script.pt")
    torch.jit.trace(module, torch.ones(1, 2)).save(HERE / "trace.pt")
    names = list(torch.jit.load(HERE / "script.pt").state_dict())
    assert names == list(torch.jit.load(HERE / "trace.pt").state_dict())
    print(names)


if __name__ == "__main__":
    main()
