"""Makes transformer.safetensors: numbers from PyTorch that the decoder must reproduce.

    python3 transformer.py      needs torch 2.15.0 (CPU); writes the file beside this script

For each of two networks of 2 blocks, `relative` (Music Transformer, pre-norm, GELU) and `learned`
(learned positions, post-norm, ReLU, tied output): its weights under the names that they have in
weight files, the input `rows`, `targets` and `logits` `[batch, steps]`, the `loss`, and every gradient
as `d.<name>`.
"""

import json
import math
import os
import struct

import torch
import torch.nn.functional as F

SEED = 20261126
torch.manual_seed(SEED)
torch.set_num_threads(1)
BATCH, STEPS, VOCAB, WIDTH, HEADS, FF, LAYERS, CONTEXT = 2, 11, 9, 12, 3, 20, 2, 16
out = {}


def case(name, relative, pre, activation, tied):
    weights = {}

    def weight(key, *shape, mean=0.0):
        weights[key] = (mean + 0.4 * torch.randn(shape)).requires_grad_()
        return weights[key]

    def norm(x, key):
        return F.layer_norm(x, (WIDTH,), weights[key + ".weight"], weights[key + ".bias"], 1e-5)

    def linear(x, key):
        return F.linear(x, weights[key + ".weight"], weights[key + ".bias"])

    weight("embedding", VOCAB + 1, WIDTH)
    if not relative:
        weight("positions", CONTEXT, WIDTH)
    for layer in range(LAYERS):
        block = f"block.{layer}."
        for part, to, wide in (("qkv", 3 * WIDTH, WIDTH), ("proj", WIDTH, WIDTH),
                               ("up", FF, WIDTH), ("down", WIDTH, FF)):
            weight(block + part + ".weight", to, wide)
            weight(block + part + ".bias", to)
        for part in ("norm1", "norm2"):
            weight(block + part + ".weight", WIDTH, mean=1.0)
            weight(block + part + ".bias", WIDTH)
        if relative:
            weight(block + "er", HEADS, CONTEXT, WIDTH // HEADS)
    if pre:
        weight("norm.weight", WIDTH, mean=1.0)
        weight("norm.bias", WIDTH)
    if not tied:
        weight("out.weight", VOCAB, WIDTH)

    def attend(x, block):
        q, k, v = linear(x, block + "qkv").view(BATCH, STEPS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2)
        if relative:
            qe = torch.einsum("bhtd,hsd->bhts", q, weights[block + "er"][:, CONTEXT - STEPS:])
            # The skew of Huang et al. 2018.
            logits = logits + F.pad(qe, (1, 0)).reshape(BATCH, HEADS, STEPS + 1, STEPS)[:, :, 1:]
        hidden = torch.ones(STEPS, STEPS, dtype=torch.bool).triu(1)
        logits = (logits / math.sqrt(WIDTH // HEADS)).masked_fill(hidden, float("-inf"))
        a = (logits.softmax(-1) @ v).transpose(1, 2).reshape(BATCH, STEPS, WIDTH)
        return linear(a, block + "proj")

    rows = torch.randint(VOCAB, (BATCH, STEPS))
    rows[:, 0] = VOCAB  # the start of a piece
    targets = torch.randint(VOCAB, (BATCH, STEPS))
    x = weights["embedding"][rows]
    if not relative:
        x = x + weights["positions"][:STEPS]
    for layer in range(LAYERS):
        block = f"block.{layer}."
        feed = lambda h: linear(activation(linear(h, block + "up")), block + "down")
        if pre:
            x = x + attend(norm(x, block + "norm1"), block)
            x = x + feed(norm(x, block + "norm2"))
        else:
            x = norm(x + attend(x, block), block + "norm1")
            x = norm(x + feed(x), block + "norm2")
    if pre:
        x = norm(x, "norm")
    logits = F.linear(x, weights["embedding"][:VOCAB] if tied else weights["out.weight"])
    loss = F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))
    loss.backward()
    for key, w in weights.items():
        out[f"{name}.{key}"] = w.detach()
        out[f"{name}.d.{key}"] = w.grad
    out.update({f"{name}.rows": rows, f"{name}.targets": targets, f"{name}.logits": logits.detach(),
                f"{name}.loss": loss.detach().view(1)})


def write(path):
    header = {"__metadata__": {"torch": torch.__version__, "seed": str(SEED)}}
    data = b""
    for name, t in out.items():
        bytes_ = t.float().contiguous().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(t.shape),
                        "data_offsets": [len(data), len(data) + len(bytes_)]}
        data += bytes_
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


case("relative", True, True, F.gelu, False)
case("learned", False, False, F.relu, True)
write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "transformer.safetensors"))
