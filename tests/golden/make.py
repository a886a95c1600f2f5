"""Makes golden.safetensors: numbers from PyTorch that the engine must reproduce.

    python3 make.py        needs torch 2.15.0 (CPU); writes the file beside this script

Names in the file: `op.<name>.{x0, x1, .., y, d0, d1, ..}` for single operations, where the d are the
gradients of sum(w * y) with w[i] = ((37 i) mod 16 - 7.5) / 8; `<model>.<..>` for models, see below.
"""

import json
import os
import struct

import torch
import torch.nn.functional as F

SEED = 20261122
torch.manual_seed(SEED)
torch.set_num_threads(1)
out = {}


def put(name, t):
    assert name not in out, name
    out[name] = t.detach().clone().float().contiguous()


def weights(y):
    i = torch.arange(y.numel())
    return (((37 * i) % 16).float() - 7.5).reshape(y.shape) / 8


def op(name, f, *inputs):
    xs = [x.clone().requires_grad_() for x in inputs]
    y = f(*xs)
    grads = torch.autograd.grad((weights(y) * y).sum(), xs)
    for i, (x, d) in enumerate(zip(xs, grads)):
        put(f"op.{name}.x{i}", x)
        put(f"op.{name}.d{i}", d)
    put(f"op.{name}.y", y)


def ops():
    x = torch.randn(3, 17)
    far = torch.linspace(-12, 12, 49)
    positive = torch.rand(3, 17) * 3 + 0.1
    unary = {
        "exp": torch.exp, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": F.relu,
        "gelu": F.gelu, "sin": torch.sin, "cos": torch.cos, "erf": torch.erf, "abs": torch.abs,
        "neg": torch.neg, "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    }
    for name, f in unary.items():
        op(name, f, x)
    for name in ["tanh", "sigmoid", "gelu", "erf"]:
        op(name + "_far", unary[name], far)
    for name, f in {"log": torch.log, "sqrt": torch.sqrt, "recip": torch.reciprocal,
                    "pow": lambda x: x ** 1.7}.items():
        op(name, f, positive)
    a, b = torch.randn(4, 1, 5), torch.randn(3, 1)
    op("add", torch.add, a, b)
    op("sub", torch.sub, a, b)
    op("mul", torch.mul, a, b)
    op("div", torch.div, a, b.abs() + 0.5)
    op("maximum", torch.maximum, a, b)
    op("minimum", torch.minimum, a, b)
    op("sum", lambda x: x.sum((0, 2)), torch.randn(3, 5, 7))
    op("mean", lambda x: x.mean(1, keepdim=True), torch.randn(3, 5, 7))
    op("matmul", torch.matmul, torch.randn(2, 5, 7), torch.randn(2, 7, 3))
    op("linear", F.linear, torch.randn(2, 5, 7), torch.randn(11, 7), torch.randn(11))
    op("softmax", lambda x: F.softmax(x, -1), torch.randn(5, 13) * 4)
    op("log_softmax", lambda x: F.log_softmax(x, -1), torch.randn(5, 13) * 4)
    op("layer_norm", lambda x, w, b: F.layer_norm(x, (13,), w, b, 1e-5),
       torch.randn(5, 13) * 3 + 1, torch.randn(13), torch.randn(13))
    targets = torch.tensor([3, -100, 0, 12, 5])
    op("cross_entropy", lambda x: F.cross_entropy(x, targets), torch.randn(5, 13) * 4)
    soft = torch.tensor([0.0, 1.0, 0.25]).repeat(5)
    op("binary_cross_entropy", lambda x: F.binary_cross_entropy_with_logits(x, soft),
       torch.randn(15) * 4)
    ids = torch.tensor([4, 0, 4, 8, 1, 4])
    op("embedding", lambda w: F.embedding(ids, w), torch.randn(9, 5))


STEPS, BATCH, INPUTS, HIDDEN, VOCAB = 7, 5, 11, 13, 9


def model(name, kind, **options):
    """Two recurrent layers, a linear layer, cross-entropy with every sixth target ignored.

    `init.*`, `grad.*` and `final.*` hold the parameters, their first gradients, and what they are
    after 10 steps of Adam at rate 0.01 with the gradient norm clipped to 0.5; `losses`, `norms` what
    was measured before each step; `y`, `h`, `c` the first forward.
    """
    layers = kind(INPUTS, HIDDEN, num_layers=2, **options)
    head = torch.nn.Linear(HIDDEN, VOCAB)
    x = torch.randn(STEPS, BATCH, INPUTS)
    targets = torch.arange(STEPS * BATCH) * 5 % VOCAB
    targets[::6] = -100
    params = dict(layers.named_parameters())
    params |= {"head." + n: p for n, p in head.named_parameters()}
    put(f"{name}.x", x)
    for n, p in params.items():
        put(f"{name}.init.{n}", p)
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    losses, norms = [], []
    for step in range(10):
        y, state = layers(x)
        loss = F.cross_entropy(head(y).reshape(-1, VOCAB), targets)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            put(f"{name}.y", y)
            for n, s in zip("hc", state if isinstance(state, tuple) else (state,)):
                put(f"{name}.{n}", s)
            for n, p in params.items():
                put(f"{name}.grad.{n}", p.grad)
        losses.append(loss.detach())
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), 0.5))
        optimizer.step()
    put(f"{name}.losses", torch.stack(losses))
    put(f"{name}.norms", torch.stack(norms))
    for n, p in params.items():
        put(f"{name}.final.{n}", p)


def stack(name, kind):
    """Two layers in both directions over rows of different lengths, with initial states.

    `w.*` the weights, `d.*` the gradients of `sum(y * weights) + sum(h * weights)`, padding zero.
    """
    layers = kind(INPUTS, HIDDEN, num_layers=2, bidirectional=True)
    x = torch.randn(STEPS, BATCH, INPUTS, requires_grad=True)
    states = [torch.randn(4, BATCH, HIDDEN, requires_grad=True) for _ in range(2 if kind is torch.nn.LSTM else 1)]
    lengths = torch.tensor([7, 3, 5, 1, 7])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, last = layers(packed, tuple(states) if len(states) == 2 else states[0])
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=STEPS)
    last = last if isinstance(last, tuple) else (last,)
    weights = lambda t: ((torch.arange(t.numel()) * 37 % 16 - 7.5) / 8).reshape(t.shape)
    (sum((t * weights(t)).sum() for t in (y, *last))).backward()
    put(f"{name}.x", x)
    put(f"{name}.y", y)
    put(f"{name}.d.x", x.grad)
    for n, state, end in zip("hc", states, last):
        put(f"{name}.{n}0", state)
        put(f"{name}.{n}", end)
        put(f"{name}.d.{n}0", state.grad)
    for n, p in layers.named_parameters():
        put(f"{name}.w.{n}", p)
        put(f"{name}.d.{n}", p.grad)


def optimizers():
    """10 steps on sum((p - 1)^2 * scale); `optim.<name>` is where p ends."""
    start = torch.randn(23)
    scale = torch.rand(23) + 0.1
    put("optim.start", start)
    put("optim.scale", scale)
    for name, make in {
        "sgd": lambda p: torch.optim.SGD([p], lr=0.05),
        "momentum": lambda p: torch.optim.SGD([p], lr=0.05, momentum=0.9),
        "adam": lambda p: torch.optim.Adam([p], lr=0.05),
        "adamw": lambda p: torch.optim.AdamW([p], lr=0.05, weight_decay=0.1),
    }.items():
        p = start.clone().requires_grad_()
        optimizer = make(p)
        for _ in range(10):
            optimizer.zero_grad()
            ((p - 1) ** 2 * scale).sum().backward()
            optimizer.step()
        put("optim." + name, p)


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


ops()
model("lstm", torch.nn.LSTM)
model("gru", torch.nn.GRU)
model("rnn", torch.nn.RNN)
model("rnn_relu", torch.nn.RNN, nonlinearity="relu")
optimizers()
stack("lstm_stack", torch.nn.LSTM)
stack("gru_stack", torch.nn.GRU)
stack("rnn_stack", torch.nn.RNN)
write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.safetensors"))
