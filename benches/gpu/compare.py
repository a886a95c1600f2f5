#!/usr/bin/env python3
"""PyTorch at the shapes of the GPU benches, and the table that sets both side by side.

    python3 compare.py run [--seconds 60] [--filter attention] >torch.jsonl
    python3 compare.py table etude.jsonl torch.jsonl

`run` times what a user of PyTorch would call: cuBLAS, cuDNN, scaled_dot_product_attention, fused Adam.
Each case is one name of `kernels/src/cuda/bench`. Times are medians of CUDA events.
"""
import argparse
import json
import re
import statistics
import sys
import time

SQUARES = [1024, 2048, 4096, 8192]
GEMMS = [(n, n, n) for n in SQUARES] + [(16384, 2048, 512), (16384, 512, 2048), (64, 2048, 512)]
ATTENTIONS = [(b, h, s, d) for d in (64, 128)
              for b, h, s in ((4, 16, 2048), (4, 16, 4096), (2, 8, 1024), (2, 16, 8192))]
RELATIVES = [(2, 8, 1024, 64), (4, 8, 2048, 64), (2, 8, 4096, 64)]
RECURRENTS = [(768, 16, 1024), (512, 64, 256), (128, 128, 256), (1024, 1, 256)]
# Batch, channels in and out, size, kernel, stride, padding, as in benches/conv.rs.
CONVS = [
    (16, 16, 64, (96, 84), (3, 3), (1, 1), (1, 1)),
    (16, 64, 64, (48, 42), (3, 3), (1, 1), (1, 1)),
    (16, 128, 128, (24, 21), (3, 3), (1, 1), (1, 1)),
    (16, 1, 16, (4, 48, 84), (1, 1, 12), (1, 1, 12), (0, 0, 0)),
    (16, 16, 16, (4, 48, 7), (1, 4, 1), (1, 4, 1), (0, 0, 0)),
    (16, 16, 32, (4, 48, 7), (1, 4, 1), (1, 4, 1), (0, 0, 0)),
    (16, 80, 64, (4, 12, 7), (1, 1, 4), (1, 1, 1), (0, 0, 0)),
    (16, 32, 64, (4, 12, 7), (1, 1, 4), (1, 1, 1), (0, 0, 0)),
    (16, 64, 64, (4, 12, 4), (1, 3, 1), (1, 3, 1), (0, 0, 0)),
    (16, 64, 64, (4, 4, 4), (1, 1, 4), (1, 1, 4), (0, 0, 0)),
    (16, 128, 256, (4, 4, 1), (1, 4, 1), (1, 4, 1), (0, 0, 0)),
    (16, 128, 256, (4, 1, 1), (2, 1, 1), (1, 1, 1), (0, 0, 0)),
    (16, 64, 128, (48, 42), (4, 4), (2, 2), (1, 1)),
    (16, 64, 128, (4, 48, 7), (1, 4, 1), (1, 4, 1), (0, 0, 0)),
    (16, 90, 128, (256,), (5,), (1,), (2,)),
]
ROWS = [(16384, 1024), (65536, 1024), (8192, 8192), (2048, 32768)]


class Timer:
    """Medians of CUDA events around rounds of calls."""

    def __init__(self, torch, seconds, wanted):
        self.torch, self.end, self.wanted = torch, time.monotonic() + seconds, wanted
        self.skipped = 0

    def wants(self, *names):
        return any(self.wanted in name for name in names)

    def time(self, make):
        """Milliseconds of the call that `make()` returns."""
        call = make()
        for _ in range(3):
            call()
        once = max(self.round(call, 1), 1e-4)
        runs = max(1, min(1000, int(2.0 / once + 1)))
        started, rounds = time.monotonic(), []
        while len(rounds) < 15 and (len(rounds) < 3 or time.monotonic() - started < 0.1):
            rounds.append(self.round(call, runs))
        return statistics.median(rounds)

    def case(self, name, make, note="", off=0):
        """Times `make()`, which returns the call, if the name is wanted and there is time left. `off`
        milliseconds of it are taken off."""
        if not self.wants(name):
            return
        if time.monotonic() > self.end:
            self.skipped += 1
            return
        try:
            whole = self.time(make)
            print(json.dumps({"case": name, "ms": whole - off, "whole_ms": whole, "note": note}), flush=True)
        except Exception as why:  # a case that PyTorch cannot do keeps no other from running
            print(f"{name}: {str(why).splitlines()[0]}", file=sys.stderr)
        finally:
            self.torch.cuda.empty_cache()

    def round(self, call, runs):
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(runs):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / runs


def forward_and_backward(torch, forward, leaves, gradient):
    """Calls for the backward pass alone (the forward pass done once) and for both."""
    kept = forward()

    def backward():
        torch.autograd.grad(kept, leaves, gradient, retain_graph=True)

    def both():
        torch.autograd.grad(forward(), leaves, gradient)

    return backward, both


def run_gemm(torch, timer):
    kinds = [("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("f32", torch.float32, False)]
    for name, dtype, tf32 in kinds:
        for m, n, k in GEMMS:
            for layout in ("nn", "nt", "tn") if name == "bf16" else ("nn",):
                def make(m=m, n=n, k=k, layout=layout, dtype=dtype, tf32=tf32):
                    torch.backends.cuda.matmul.allow_tf32 = tf32
                    a = torch.randn((k, m) if layout[0] == "t" else (m, k), device="cuda", dtype=dtype)
                    b = torch.randn((n, k) if layout[1] == "t" else (k, n), device="cuda", dtype=dtype)
                    a = a.T if layout[0] == "t" else a
                    b = b.T if layout[1] == "t" else b
                    out = torch.empty(m, n, device="cuda", dtype=dtype)
                    return lambda: torch.matmul(a, b, out=out)
                timer.case(f"gemm/{name} {layout}/{m}x{n}x{k}", make, "cuBLAS")
    torch.backends.cuda.matmul.allow_tf32 = False


def skewed(torch, q, k, v, er):
    """Relative attention as the Music Transformer's authors compute it: q Er^T, skewed by padding."""
    b, h, s, d = q.shape
    rel = torch.nn.functional.pad(q @ er.transpose(-1, -2), (1, 0)).view(b, h, s + 1, s)[:, :, 1:]
    scores = (q @ k.transpose(-1, -2) + rel) * d ** -0.5
    mask = torch.ones(s, s, dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(mask, float("-inf")), -1) @ v


def run_attention(torch, timer):
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def tensors(b, h, s, d):
        return [torch.randn(b, h, s, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(4)]

    for kind, shapes in (("causal", ATTENTIONS), ("full", ATTENTIONS[:2] + ATTENTIONS[4:6]), ("relative", RELATIVES)):
        for b, h, s, d in shapes:
            name = f"{kind}/b{b} h{h} s{s} d{d}"

            def make(which, b=b, h=h, s=s, d=d, kind=kind):
                q, k, v, gradient = tensors(b, h, s, d)
                leaves = [q, k, v]
                if kind == "relative":
                    er = torch.randn(h, s, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                    leaves.append(er)
                    forward = lambda: skewed(torch, q, k, v, er)
                else:
                    forward = lambda: sdpa(q, k, v, is_causal=kind == "causal")
                if which == "forward":
                    def without_gradient():
                        with torch.no_grad():
                            forward()
                    return without_gradient
                return forward_and_backward(torch, forward, leaves, gradient.detach())[0]

            note = "skew in eager mode" if kind == "relative" else "SDPA"
            timer.case(f"attention/forward {name}", lambda: make("forward"), note)
            timer.case(f"attention/backward {name}", lambda: make("backward"), note)


def run_recurrent(torch, timer):
    kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    for hidden, batch, steps in RECURRENTS:
        for kind, cell in kinds.items():
            for dtype_name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
                def make(which, cell=cell, hidden=hidden, batch=batch, steps=steps, dtype=dtype):
                    torch.backends.cudnn.allow_tf32 = False
                    layer = cell(hidden, hidden).cuda().to(dtype)
                    layer.flatten_parameters()
                    x = torch.randn(steps, batch, hidden, device="cuda", dtype=dtype, requires_grad=True)
                    leaves = [x, *layer.parameters()]
                    gradient = torch.randn(steps, batch, hidden, device="cuda", dtype=dtype)
                    if which == "forward":
                        def without_gradient():
                            with torch.no_grad():
                                layer(x)
                        return without_gradient
                    backward, both = forward_and_backward(torch, lambda: layer(x)[0], leaves, gradient)
                    return backward if which == "backward" else both
                gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind]

                def product(gates=gates, hidden=hidden, batch=batch, steps=steps, dtype=dtype):
                    x = torch.randn(steps * batch, hidden, device="cuda", dtype=dtype)
                    w = torch.randn(gates * hidden, hidden, device="cuda", dtype=dtype)
                    return lambda: torch.nn.functional.linear(x, w)

                # cuDNN's time holds the products of the input, which are a matrix product by themselves
                # here: one forwards, two backwards. They are measured apart and taken off.
                shape = f"{dtype_name}/T{steps} B{batch} H{hidden}"
                once = timer.time(product) if timer.wants(f"recurrent/{kind}", f"recurrent/{kind} forward {shape}") else 0
                for which, products in (("forward", 1), ("backward", 2)):
                    timer.case(f"recurrent/{kind} {which} {shape}", lambda which=which: make(which),
                               "cuDNN without the input's products", products * once)


def text(sizes):
    return "x".join(map(str, sizes))


def run_conv(torch, timer):
    for batch, cin, cout, size, kernel, stride, padding in CONVS:
        convolve = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d,
                    3: torch.nn.functional.conv3d}[len(size)]
        short = [n for i, n in enumerate(kernel) if any(k != 1 for k in kernel[:i + 1])] or [1]
        steps = [n for i, n in enumerate(stride) if any(k != 1 for k in stride[:i + 1])] or [1]
        for tf32 in (True, False):
            def make(which, tf32=tf32, batch=batch, cin=cin, cout=cout, size=size, kernel=kernel, stride=stride,
                     padding=padding, convolve=convolve):
                torch.backends.cudnn.allow_tf32 = tf32
                torch.backends.cudnn.benchmark = True
                x = torch.randn(batch, cin, *size, device="cuda", requires_grad=True)
                w = torch.randn(cout, cin, *kernel, device="cuda", requires_grad=True)
                forward = lambda: convolve(x, w, stride=stride, padding=padding)
                gradient = torch.randn_like(forward())
                if which == "forward":
                    def without_gradient():
                        with torch.no_grad():
                            forward()
                    return without_gradient
                return forward_and_backward(torch, forward, [x if which == "data" else w], gradient)[0]
            shape = f"{text(short)}/{text(steps)}-{cin}x{cout}-{text(size)} b{batch}"
            for which in ("forward", "data", "filter"):
                timer.case(f"conv/{which} {shape}{'' if tf32 else ' f32'}", lambda which=which: make(which),
                           "cuDNN, tf32" if tf32 else "cuDNN, f32")


def run_rows(torch, timer):
    f = torch.nn.functional
    for rows, cols in ROWS:
        for dtype_name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            shape = f"{dtype_name}/{rows}x{cols}"

            def x(grad=False, rows=rows, cols=cols, dtype=dtype):
                return torch.randn(rows, cols, device="cuda", dtype=dtype, requires_grad=grad)

            def row(grad=False, cols=cols, dtype=dtype):
                return torch.randn(cols, device="cuda", dtype=dtype, requires_grad=grad)

            def plain(op, x=x):
                def make():
                    a = x()
                    return lambda: op(a)
                return make

            def back(op, x=x):
                def make():
                    a = x(grad=True)
                    return forward_and_backward(torch, lambda: op(a), [a], torch.randn_like(a))[0]
                return make

            def entropy(rows=rows, cols=cols, x=x):
                a, target = x(grad=True), torch.randint(cols, (rows,), device="cuda")
                return lambda: torch.autograd.grad(f.cross_entropy(a, target), a)

            def layer_norm(which, cols=cols, x=x, row=row):
                a, weight, bias = x(which == "backward"), row(which == "backward"), row(which == "backward")
                forward = lambda: f.layer_norm(a, (cols,), weight, bias)
                if which == "forward":
                    return forward
                return forward_and_backward(torch, forward, [a, weight, bias], torch.randn_like(a))[0]

            def biased(which, x=x, row=row):
                a, bias, other = x(which == "backward"), row(which == "backward"), x()
                if which == "forward":
                    return lambda: other + f.gelu(a + bias)
                return forward_and_backward(torch, lambda: f.gelu(a + bias), [a, bias], torch.randn_like(a))[0]

            timer.case(f"rows/softmax forward {shape}", plain(lambda a: f.softmax(a, -1)))
            timer.case(f"rows/softmax backward {shape}", back(lambda a: f.softmax(a, -1)))
            timer.case(f"rows/log-softmax forward {shape}", plain(lambda a: f.log_softmax(a, -1)))
            timer.case(f"rows/cross-entropy {shape}", entropy)
            timer.case(f"norm/layer norm forward {shape}", lambda: layer_norm("forward"))
            timer.case(f"norm/layer norm backward {shape}", lambda: layer_norm("backward"))
            if cols != 1024:
                continue
            timer.case(f"map/gelu {shape}", plain(f.gelu))
            timer.case(f"map/gelu tanh {shape}", plain(lambda a: f.gelu(a, approximate="tanh")))
            timer.case(f"map/silu {shape}", plain(f.silu))
            timer.case(f"map/gelu backward {shape}", back(f.gelu))
            timer.case(f"map/bias, gelu and residual {shape}", lambda: biased("forward"))
            timer.case(f"map/bias and gelu backward {shape}", lambda: biased("backward"))
    for vocab, rows, width in ((388, 65536, 512), (32768, 65536, 1024)):
        def embedding(which, vocab=vocab, rows=rows, width=width):
            table = torch.randn(vocab, width, device="cuda", requires_grad=which == "backward")
            ids = torch.randint(vocab, (rows,), device="cuda")
            if which == "forward":
                return lambda: f.embedding(ids, table)
            gradient = torch.randn(rows, width, device="cuda")
            return forward_and_backward(torch, lambda: f.embedding(ids, table), [table], gradient)[0]
        for which in ("forward", "backward"):
            timer.case(f"embedding/{which} f32/{vocab}, {rows}x{width}", lambda which=which: embedding(which))
    for tensors, count in ((1, 1 << 26), (150, 600_000)):
        def adam(tensors=tensors, count=count):
            parameters = [torch.randn(count, device="cuda", requires_grad=True) for _ in range(tensors)]
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            return torch.optim.AdamW(parameters, lr=1e-3, fused=True).step
        timer.case(f"optim/adam without shadow/{tensors} tensors of {count}", adam, "fused AdamW")
    for n in (1 << 24, 1 << 26):
        timer.case(f"random/uniform f32/{n}", lambda n=n: torch.empty(n, device="cuda").uniform_)
        timer.case(f"random/normal f32/{n}", lambda n=n: torch.empty(n, device="cuda").normal_)

        def dropout(n=n):
            a = torch.randn(n, device="cuda")
            return lambda: f.dropout(a, 0.1, True)
        timer.case(f"random/dropout f32/{n}", dropout)

    def copy():
        a = torch.randn(1 << 28, device="cuda")
        b = torch.empty_like(a)
        return lambda: b.copy_(a)
    timer.case("copy/16 bytes a thread/1024 MiB", copy)


def run(options):
    import torch
    print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}", file=sys.stderr)
    torch.manual_seed(0)
    timer = Timer(torch, options.seconds, options.filter)
    for part in (run_attention, run_recurrent, run_gemm, run_conv, run_rows):
        part(torch, timer)
    if timer.skipped:
        print(f"{timer.skipped} cases left out for want of time", file=sys.stderr)


def records(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines if line.startswith("{")]


def table(options):
    """The fastest variant of each case beside PyTorch, with its share of the ceiling measured in this run."""
    ours, theirs = records(options.etude), {r["case"]: r for r in records(options.torch)}
    best = {}
    for record in ours:
        kept = best.setdefault(record["case"], record)
        if record["ms"] < kept["ms"]:
            best[record["case"]] = record
    speed = {name: r["flops"] / r["ms"] * 1e-9 for name, r in best.items() if r["flops"] and r["ms"]}
    moved = {name: r["bytes"] / r["ms"] * 1e-9 for name, r in best.items() if r["bytes"] and r["ms"]}
    copy = max((v for name, v in moved.items() if name.startswith("copy/")), default=None)
    peaks = {kind: speed.get(f"peak/{kind}/registers") for kind in ("bf16", "tf32", "f32")}
    print(f"ceilings: copy {copy or 0:.2f} TB/s" +
          "".join(f", {kind} {peak or 0:.0f} TFLOP/s" for kind, peak in peaks.items()) + " (mma.sync for the first two)")
    print(f"{'case':50} {'variant':36} {'ms':>9} {'TFLOP/s':>8} {'TB/s':>6} {'share':>6} {'torch ms':>9} {'torch/etude':>11}")
    for name, record in best.items():
        flops, tera = speed.get(name), moved.get(name)
        kind = next((k for k in ("bf16", "tf32") if re.search(rf"\b{k}\b", name + " " + record["variant"])),
                    "bf16" if name.startswith("attention/") else "f32")
        shares = [flops / peaks[kind] if flops and peaks[kind] else 0, tera / copy if tera and copy else 0]
        other = theirs.get(name)
        print(f"{name:50} {record['variant'][:36]:36} {record['ms']:9.4f} {flops or 0:8.1f} {tera or 0:6.2f} "
              f"{max(shares):6.0%} {other['ms'] if other else 0:9.4f} " +
              (f"{other['ms'] / record['ms']:11.2f}" if other else f"{'':>11}"))
    print("\nvariants, ms:")
    for name in best:
        variants = {r["variant"]: r["ms"] for r in ours if r["case"] == name}
        if len(variants) > 1:
            print(f"{name}: " + ", ".join(f"{v} {ms:.4f}" for v, ms in sorted(variants.items(), key=lambda p: p[1])))
    alone = [name for name in theirs if name not in best]
    if alone:
        print("\nonly PyTorch: " + "; ".join(f"{name} {theirs[name]['ms']:.4f}" for name in alone))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    timing = parts.add_parser("run")
    timing.add_argument("--seconds", type=float, default=120, help="no case is begun after that")
    timing.add_argument("--filter", default="")
    both = parts.add_parser("table")
    both.add_argument("etude")
    both.add_argument("torch")
    options = parser.parse_args()
    run(options) if options.part == "run" else table(options)


if __name__ == "__main__":
    main()
