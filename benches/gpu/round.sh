#!/usr/bin/env bash
# One round on a GPU, from what pack.sh has built: are the kernels right, how fast are they, how fast is
# PyTorch at the same shapes, and what do the sanitizers say. Each part has a limit, and goes on when
# another fails.
#
#     round.sh [SECONDS] [PARTS]   400 seconds and "parity bench torch table sanitize" if not told
#
# FILTER=attention keeps the benches to names with that in them; CASE is the longest time for one of them,
# in seconds; OUT names the folder for the logs.
set -u
here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:-400}
parts=${2:-parity bench torch table sanitize}
out=${OUT:-$here/out}
filter=${FILTER:-}
case_seconds=${CASE:-0.02}
mkdir -p "$out"
began=$SECONDS
left() { echo $((seconds - SECONDS + began)); }
# Seconds for a part: a share in percent of the whole, and no more than what is left.
share() {
    local part=$((seconds * $1 / 100)) rest
    rest=$(left)
    [ "$part" -lt "$rest" ] || part=$rest
    [ "$part" -gt 1 ] || part=1
    echo "$part"
}
say() { printf '%s\n' "$*" | tee -a "$out/round.log"; }

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv,noheader 2>&1 | tee "$out/round.log"
chmod +x "$here"/gpu_* 2>/dev/null

parity() {
    # A process for each family: after a fault on the GPU a process can do nothing more.
    local family end=$((SECONDS + $(share 25)))
    : >"$out/parity.log"
    for family in $("$here/gpu_parity" --families); do
        [ "$SECONDS" -lt "$end" ] || { say "parity: no time for $family"; continue; }
        timeout $((end - SECONDS)) "$here/gpu_parity" "$family/" >"$out/one.log" 2>&1
        local status=$?
        cat "$out/one.log" >>"$out/parity.log"
        say "parity $family: status $status, $(tail -n 1 "$out/one.log")"
        grep -E 'FAILED|panicked|should be|EMU|error' "$out/one.log" | head -n 12
    done
    rm -f "$out/one.log"
}

bench() {
    local family end=$((SECONDS + $(share 35)))
    : >"$out/etude.jsonl"
    : >"$out/bench.log"
    for family in $("$here/gpu_bench" --families); do
        [ "$SECONDS" -lt "$end" ] || { say "bench: no time for $family"; continue; }
        case $family in
        copy | peak) chosen=$family ;; # the ceilings of the table
        *) [[ -z $filter || $filter == "$family"* ]] || continue; chosen=${filter:-$family/} ;;
        esac
        timeout $((end - SECONDS)) "$here/gpu_bench" "$chosen" --seconds "$case_seconds" >>"$out/etude.jsonl" 2>"$out/one.log"
        local status=$?
        cat "$out/one.log" >>"$out/bench.log"
        say "bench $family: status $status, $(tail -n 1 "$out/one.log")"
    done
    rm -f "$out/one.log"
}

pytorch() {
    local limit
    limit=$(share 30)
    timeout $((limit + 10)) python3 "$here/compare.py" run --seconds "$limit" --filter "$filter" \
        >"$out/torch.jsonl" 2>"$out/torch.log"
    say "torch: status $?, $(wc -l <"$out/torch.jsonl") cases, $(tail -n 1 "$out/torch.log")"
}

sanitize() {
    # Memory freed goes back to the driver at once, and blocks have their exact sizes.
    local tool family end=$((SECONDS + $(share 100)))
    export ETUDE_GPU_EXACT_MEMORY=1
    : >"$out/sanitizer.log"
    for tool in memcheck racecheck synccheck; do
        for family in $("$here/gpu_parity" --families); do
            [ "$SECONDS" -lt "$end" ] || { say "$tool: no time for $family"; continue; }
            local limit=$((end - SECONDS))
            [ "$limit" -lt 30 ] || limit=30
            timeout "$limit" compute-sanitizer --tool "$tool" --print-limit 3 "$here/gpu_parity" "$family/" \
                >"$out/one.log" 2>&1
            local status=$?
            { echo "== $tool $family"; cat "$out/one.log"; } >>"$out/sanitizer.log"
            say "$tool $family: status $status, $(grep -hE 'SUMMARY' "$out/one.log" | tail -n 1)"
        done
    done
    rm -f "$out/one.log"
    unset ETUDE_GPU_EXACT_MEMORY
}

for part in $parts; do
    case $part in
    parity) parity ;;
    bench) bench ;;
    torch) pytorch ;;
    sanitize) sanitize ;;
    table)
        touch "$out/etude.jsonl" "$out/torch.jsonl"
        python3 "$here/compare.py" table "$out/etude.jsonl" "$out/torch.jsonl" >"$out/table.txt" 2>&1
        cat "$out/table.txt"
        ;;
    *) say "no part is named $part" ;;
    esac
    say "--- $part done, $(left) s left"
done
