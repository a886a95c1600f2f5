#!/usr/bin/env bash
# One round on a GPU, from what pack.sh has built: are the kernels right, how fast are they, how fast is
# PyTorch at the same shapes, and what do the sanitizers say. Each part has a limit, and goes on when
# another fails.
#
#     round.sh [SECONDS] [PARTS]   400 seconds and "parity bench torch table sanitize" if not told
#
# FILTER=attention keeps the benches to names with that in them; CASE is the longest time for one of them,
# in seconds; OUT names the folder for the logs; RACED="wrappers copy" names families that racecheck has
# seen before: the others come first, before memcheck.
set -u
here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:-400}
parts=${2:-parity bench torch table sanitize}
out=${OUT:-$here/out}
filter=${FILTER:-}
RACED=${RACED:-}
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
# The programs come packed; the folder may be one that cannot be written.
programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT
for program in gpu_parity gpu_bench; do
    gzip -dc "$here/$program.gz" >"$programs/$program" && chmod +x "$programs/$program" || exit 1
done

# The seconds that a family's checks may take: `recurrent`, the last, has 40 % of the part; the others share
# the rest, each no more than half of what is left of it, so that one that hangs leaves time for the next.
family_limit() { # FAMILY, END of the part, its LENGTH
    local left=$(($2 - SECONDS)) kept=$(($3 * 40 / 100)) limit
    if [ "$1" = recurrent ]; then
        limit=$left
    else
        limit=$(((left - kept) / 2))
    fi
    [ "$limit" -gt 3 ] || limit=3
    echo "$limit"
}

parity() {
    # A process for each family: after a fault on the GPU a process can do nothing more.
    local family length end
    length=$(share 25)
    end=$((SECONDS + length))
    : >"$out/parity.log"
    for family in $("$programs/gpu_parity" --families); do
        [ "$SECONDS" -lt "$end" ] || { say "parity: no time for $family"; continue; }
        timeout "$(family_limit "$family" "$end" "$length")" "$programs/gpu_parity" "$family/" >"$out/one.log" 2>&1
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
    for family in $("$programs/gpu_bench" --families); do
        [ "$SECONDS" -lt "$end" ] || { say "bench: no time for $family"; continue; }
        case $family in
        copy | peak) chosen=$family ;; # the ceilings of the table
        *) [[ -z $filter || $filter == "$family"* ]] || continue; chosen=${filter:-$family/} ;;
        esac
        timeout $((end - SECONDS)) "$programs/gpu_bench" "$chosen" --seconds "$case_seconds" >>"$out/etude.jsonl" 2>"$out/one.log"
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

# One tool over families, 30 seconds each.
sanitizer() { # TOOL, END, FAMILIES
    local tool=$1 end=$2 family limit status
    shift 2
    for family in "$@"; do
        [ "$SECONDS" -lt "$end" ] || { say "$tool: no time for $family"; continue; }
        limit=$((end - SECONDS))
        [ "$limit" -lt 30 ] || limit=30
        timeout "$limit" compute-sanitizer --tool "$tool" --print-limit 3 "$programs/gpu_parity" "$family/" \
            >"$out/one.log" 2>&1
        status=$?
        { echo "== $tool $family"; cat "$out/one.log"; } >>"$out/sanitizer.log"
        say "$tool $family: status $status, $(grep -hE 'SUMMARY' "$out/one.log" | tail -n 1)"
    done
}

sanitize() {
    # Memory freed goes back to the driver at once, and blocks have their exact sizes.
    local family families end=$((SECONDS + $(share 100))) fresh=() seen=()
    families=$("$programs/gpu_parity" --families)
    for family in $families; do
        case " $RACED " in
        *" $family "*) seen+=("$family") ;;
        *) fresh+=("$family") ;;
        esac
    done
    export ETUDE_GPU_EXACT_MEMORY=1
    : >"$out/sanitizer.log"
    sanitizer racecheck "$end" ${fresh[@]+"${fresh[@]}"}
    # shellcheck disable=SC2086
    sanitizer memcheck "$end" $families
    sanitizer racecheck "$end" ${seen[@]+"${seen[@]}"}
    # shellcheck disable=SC2086
    sanitizer synccheck "$end" $families
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
