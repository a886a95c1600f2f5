#!/usr/bin/env bash
# Puts everything that a round on a GPU needs into target/gpu-round: it runs where there is a GPU, CUDA's
# driver and Python with PyTorch, but no Rust. `benches/gpu/pack.sh`, then carry the folder over and run
# `bash target/gpu-round/round.sh`.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/gpu-round
rm -rf "$out"
mkdir -p "$out"
built() { # the path of what cargo has just built
    "$@" --message-format=json | python3 -c '
import json, sys
paths = [m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")]
print(paths[-1])'
}
flags=(--locked --release -p etude-kernels --features cuda)
cp "$(built cargo test --no-run "${flags[@]}" --test gpu_parity)" "$out/gpu_parity"
cp "$(built cargo build "${flags[@]}" --example gpu_bench)" "$out/gpu_bench"
strip "$out/gpu_parity" "$out/gpu_bench"
gzip -9 "$out/gpu_parity" "$out/gpu_bench"
cp benches/gpu/round.sh benches/gpu/compare.py "$out"
mkdir "$out/cuda"
cp -r kernels/cuda/*.cu kernels/cuda/common "$out/cuda"
find kernels/cuda -maxdepth 1 -name '*.cuh' -exec cp {} "$out/cuda" \;
du -sh "$out"
