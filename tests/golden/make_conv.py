"""Makes conv.safetensors: convolutions from PyTorch that the engine must reproduce.

    python3 make_conv.py        needs torch 2.15.0 (CPU); writes the file beside this script

Names in the file: `<name>.{x, w, b, y}` and the gradients `<name>.{d_x, d_w, d_b}` of sum(u * y) with
u[i] = ((37 i) mod 16 - 7.5) / 8; `penalty.*` for the gradient penalty of a critic of two convolutions:
the parameters, the penalty and its gradients, which are second derivatives.
"""

import json
import os
import struct

import torch
import torch.nn.functional as F

SEED = 20261125
torch.manual_seed(SEED)
torch.set_num_threads(1)
out = {}


def put(name, t):
    assert name not in out, name
    out[name] = t.detach().clone().float().contiguous()


def case(name, f, x, w, channels, **options):
    operands = [torch.randn(x), torch.randn(w), torch.randn(channels)]
    operands = [t.requires_grad_() for t in operands]
    y = f(*operands, **options)
    i = torch.arange(y.numel())
    u = (((37 * i) % 16).float() - 7.5).reshape(y.shape) / 8
    grads = torch.autograd.grad((u * y).sum(), operands)
    for n, t, d in zip("xwb", operands, grads):
        put(f"{name}.{n}", t)
        put(f"{name}.d_{n}", d)
    put(f"{name}.y", y)


def penalty():
    """((|d critic / d x| - 1)^2).mean() over samples, as in WGAN-GP."""
    x = torch.randn(3, 2, 4, 6, 6).requires_grad_()
    params = {
        "w1": torch.randn(5, 2, 1, 1, 3) / 2, "b1": torch.randn(5),
        "w2": torch.randn(4, 5, 2, 3, 1) / 4, "b2": torch.randn(4),
    }
    params = {n: p.requires_grad_() for n, p in params.items()}
    h = F.leaky_relu(F.conv3d(x, params["w1"], params["b1"], stride=(1, 1, 3)), 0.2)
    y = torch.tanh(F.conv3d(h, params["w2"], params["b2"], padding=(1, 1, 0)))
    (d_x,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss = ((d_x.flatten(1).norm(dim=1) - 1) ** 2).mean()
    put("penalty.x", x)
    put("penalty.loss", loss.reshape(1))
    put("penalty.d_x", d_x)
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    for (n, p), d in zip(params.items(), grads):
        put(f"penalty.{n}", p)
        put(f"penalty.d_{n}", d if d is not None else torch.zeros_like(p))


def write(path):
    header = {"__metadata__": {"torch": torch.__version__, "seed": str(SEED)}}
    data = b""
    for name, t in out.items():
        bytes_ = t.numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(t.shape),
                        "data_offsets": [len(data), len(data) + len(bytes_)]}
        data += bytes_
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


case("conv1d", F.conv1d, (2, 3, 11), (5, 3, 4), 5, stride=2, padding=3, dilation=2)
case("conv2d", F.conv2d, (2, 5, 7, 6), (9, 5, 3, 3), 9, padding=1)
case("conv2d_strided", F.conv2d, (2, 4, 5, 13), (6, 2, 2, 3), 6, stride=(2, 3), padding=(1, 0), groups=2)
case("conv3d", F.conv3d, (2, 3, 4, 5, 6), (4, 3, 2, 1, 3), 4, stride=(1, 2, 1), padding=(0, 0, 1))
case("conv_transpose1d", F.conv_transpose1d, (2, 3, 6), (3, 4, 4), 4, stride=3, padding=1, output_padding=2)
case("conv_transpose2d", F.conv_transpose2d, (2, 5, 4, 3), (5, 3, 4, 4), 3, stride=2, padding=1)
case("conv_transpose2d_groups", F.conv_transpose2d, (2, 4, 3, 4), (4, 3, 2, 3), 6, groups=2, dilation=(1, 2))
case("conv_transpose3d", F.conv_transpose3d, (2, 4, 2, 3, 1), (4, 2, 1, 4, 12), 2, stride=(1, 4, 12))
penalty()
write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "conv.safetensors"))
