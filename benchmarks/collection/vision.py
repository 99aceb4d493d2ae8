"""Convolutional networks and autoencoders without batch normalisation; event cameras."""

from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from snntorch import functional as SF  # noqa: N812
from snntorch import surrogate, utils
from torch import Tensor, nn

from . import events, frames, images, program


@program(images(1, 28, 28), T=10)
class StaticConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        spike_grad = surrogate.fast_sigmoid(slope=25)
        self.conv1, self.lif1 = nn.Conv2d(1, 12, 5), snn.Leaky(beta=0.5, spike_grad=spike_grad)
        self.conv2, self.lif2 = nn.Conv2d(12, 32, 5), snn.Leaky(beta=0.5, spike_grad=spike_grad)
        self.fc1, self.lif3 = nn.Linear(32 * 4 * 4, 10), snn.Leaky(beta=0.5, spike_grad=spike_grad)

    def forward(self, x: Tensor) -> Any:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spk3_rec, mem3_rec = [], []
        for _ in range(10):
            cur1 = F.max_pool2d(self.conv1(x), 2)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = F.max_pool2d(self.conv2(spk1), 2)
            spk2, mem2 = self.lif2(cur2, mem2)
            cur3 = self.fc1(spk2.view(x.size(0), -1))
            spk3, mem3 = self.lif3(cur3, mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec), torch.stack(mem3_rec)


def forward_pass(net: Any, data: Tensor, y: Tensor) -> Tensor:
    spk_rec = []
    utils.reset(net)
    for step in range(data.size(0)):
        spk_out, _mem_out = net(data[step])
        spk_rec.append(spk_out)
    return SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)(torch.stack(spk_rec), y)


@program(events(2, 34, 34), forward_pass, T=20, B=16, whole=True)
def event_camera() -> nn.Module:
    def neuron(**options: Any) -> nn.Module:
        return snn.Leaky(beta=0.5, spike_grad=surrogate.atan(), init_hidden=True, **options)

    return nn.Sequential(
        nn.Conv2d(2, 12, 5), nn.MaxPool2d(2), neuron(),
        nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), neuron(),
        nn.Flatten(), nn.Linear(32 * 5 * 5, 10), neuron(output=True),
    )  # fmt: skip


@program(events(2, 32, 32, classes=11), T=16, B=8)
class Gestures(nn.Module):
    """Strided convolutions, average pooling and dropout on frames of events."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList([nn.Conv2d(2, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)])
        self.lif = nn.ModuleList(snn.Leaky(beta=0.7, threshold=0.2, learn_beta=True) for _ in range(4))
        self.pool, self.drop, self.fc = nn.AvgPool2d(2), nn.Dropout(0.25), nn.Linear(32 * 4, 11)

    def forward(self, x: Tensor) -> Tensor:
        mem = [lif.init_leaky() for lif in self.lif]
        votes: Any = 0.0
        out = []
        for t in range(x.shape[0]):
            h = x[t]
            for i, conv in enumerate(self.conv):
                h, mem[i] = self.lif[i](self.pool(conv(h)), mem[i])
            votes, mem[3] = self.lif[3](self.fc(self.drop(h.flatten(1))), mem[3])
            out.append(votes)
        return torch.stack(out)


def of_pictures(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(x), x)


@program(images(1, 28, 28), of_pictures, T=5)
class Autoencoder(nn.Module):
    """Two loops: the second decodes what the first has recorded. The picture is the last membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.dec1, self.dec2 = nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        self.l1, self.l2, self.l3 = (snn.Leaky(beta=0.5, init_hidden=True) for _ in range(3))
        self.l4 = snn.Leaky(beta=0.5, init_hidden=True, output=True, threshold=20000)

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self)
        latent = []
        for _ in range(5):
            latent.append(self.l2(self.enc2(self.l1(self.enc1(x)))))
        for z in latent:
            _, picture = self.l4(self.dec2(self.l3(self.dec1(z))))
        return picture


@program(frames(3, 16, 16), T=8, B=16)
class GroupNormed(nn.Module):
    """Residual blocks with GroupNorm; the layers hold their states."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(5))
        self.lifs = nn.ModuleList(snn.Leaky(beta=0.6, init_hidden=True) for _ in range(5))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for lif in self.lifs:
            lif.reset_mem()
        out = []
        for frame in x.unbind(0):
            h = self.lifs[0](self.norms[0](self.stem(frame)))
            for i in (0, 2):
                skip = h
                h = self.lifs[i + 1](self.norms[i + 1](self.convs[i](h)))
                h = self.lifs[i + 2](self.norms[i + 2](self.convs[i + 1](h)) + skip)
            out.append(self.head(h.mean((2, 3))))
        return torch.stack(out)
