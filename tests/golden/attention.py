"""Makes attention.safetensors: numbers from PyTorch that attention must reproduce.

    python3 attention.py        needs torch 2.15.0 (CPU); writes the file beside this script

Names in the file: `<mask>.{q, k, v, er, y, d_q, d_k, d_v, d_er}`, where the d are the gradients of
sum(w * y) with w[i] = ((37 i) mod 16 - 7.5) / 8; `er` and `d_er` for relative logits alone.
"""

import json
import math
import os
import struct

import torch
import torch.nn.functional as F

SEED = 20261125
torch.manual_seed(SEED)
torch.set_num_threads(1)
out = {}


def put(name, t):
    out[name] = t.detach().clone().float().contiguous()


def case(name, shape, keys, sees, relative=0):
    batch, heads, queries, dim = shape
    q = torch.randn(shape, requires_grad=True)
    k, v = (torch.randn(batch, heads, keys, dim, requires_grad=True) for _ in range(2))
    operands = {"q": q, "k": k, "v": v}
    logits = q @ k.transpose(-1, -2)
    if relative:
        assert queries == keys
        er = torch.randn(heads, relative, dim, requires_grad=True)
        operands["er"] = er
        qe = torch.einsum("bhtd,hsd->bhts", q, er[:, relative - keys:])
        # The skew of Huang et al. 2018.
        logits = logits + F.pad(qe, (1, 0)).reshape(batch, heads, keys + 1, keys)[:, :, 1:]
    p = torch.arange(queries)[:, None] + keys - queries
    hidden = ~sees(p, torch.arange(keys)[None])
    logits = (logits / math.sqrt(dim)).masked_fill(hidden, float("-inf"))
    y = logits.softmax(-1) @ v
    if name == "causal":
        fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert torch.allclose(fused, y, atol=1e-5)
    i = torch.arange(y.numel())
    w = (((37 * i) % 16).float() - 7.5).reshape(y.shape) / 8
    grads = torch.autograd.grad((w * y).sum(), list(operands.values()))
    put(f"{name}.y", y)
    for (key, x), d in zip(operands.items(), grads):
        put(f"{name}.{key}", x)
        put(f"{name}.d_{key}", d)


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


case("full", (2, 2, 19, 12), 23, lambda p, j: (j >= 0) & (p > -99))
case("causal", (2, 2, 53, 8), 53, lambda p, j: j <= p)
case("late", (1, 2, 7, 8), 21, lambda p, j: j <= p)
case("window", (1, 2, 40, 8), 40, lambda p, j: (j <= p) & (p - j < 9))
case("strided", (1, 2, 60, 8), 60, lambda p, j: (j <= p) & ((j // 8 == p // 8) | (j % 5 == 4)))
case("relative", (2, 2, 53, 8), 53, lambda p, j: j <= p, relative=61)
write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "attention.safetensors"))
