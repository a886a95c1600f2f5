#!/usr/bin/env python3
"""Takes out each barrier and each wait of the CUDA kernels in turn; a check must then fail.

    python3 kernels/cuda/emu/mutate.py            # families whose checks are fast, within --seconds
    python3 kernels/cuda/emu/mutate.py --all      # all families, however long it takes
    python3 kernels/cuda/emu/mutate.py gemm conv  # these
    python3 kernels/cuda/emu/mutate.py --list     # what would be taken out

All of them are compiled in at once, each behind a number that the environment chooses, so there is one
build; then the checks of the family run under the greedy schedule and, if they pass, first in first out.
Without --all a family counts as fast if its checks pass within --slow seconds with nothing taken out, the
fastest family comes first, and what there was no time for is printed.
What may escape stands in exceptions/<family>.toml, one table each, with its reason:

    [[exception]]
    file = "gemm.cu"
    call = "__syncwarp()"  # as it is printed
    nth = 1                # which one of its kind in the file
    reason = "why no check can see it, and why it stays"
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
CUDA = HERE.parent
ROOT = CUDA.parent.parent
WORK = ROOT / "target" / "mutate"
CALL = re.compile(
    r"\b(__syncthreads\(\)|__syncwarp\([^;{}]*\)|(?:named|grid|mbar|cluster)\w*_(?:barrier|sync|arrive|wait)\w*\([^;{}]*\)|"
    r"\w*barrier\w*\([^;{}]*\)|\w+_wait(?:_all)?(?:<[^;{}]*>)?\([^;{}]*\)|\w+_wait<[^;{}]*>\(\))\s*;")
# Source files whose name does not begin with the family that checks them.
FAMILY = {"gemv": "gemm", "reduce": "rows", "channels": "norm", "layout": "conv"}


def included(path, seen=None):
    """The headers that a file includes, and theirs."""
    seen = set() if seen is None else seen
    for name in re.findall(r'#include "([^"]+)"', path.read_text()):
        for header in (path.parent / name, CUDA / name):
            if header.exists() and header.resolve() not in seen:
                seen.add(header.resolve())
                included(header, seen)
    return seen


def sites(wanted):
    """Every statement to take out: file, the families that must see it, line, text, place."""
    families = re.findall(r'\("(\w+)", \w+::CHECKS\)', (ROOT / "kernels/tests/cuda/mod.rs").read_text())
    checks = {}
    for path in sorted(CUDA.glob("*.cu")):
        family = FAMILY.get(path.stem, path.stem.split("_")[0])
        if family not in families:
            sys.exit(f"{path.name}: which family checks it? Its name should begin with one of {families}")
        if wanted and family not in wanted:
            continue
        for file in [path.resolve(), *included(path)]:
            if "emu" not in file.relative_to(CUDA).parts and family not in checks.setdefault(file, []):
                checks[file].append(family)
    found = []
    for path, by in sorted(checks.items()):
        name = str(path.relative_to(CUDA))
        if name in ("common/ptx.cuh", "common/reduce.cuh"):
            by = [family for family in by if family == "wrappers"]  # its checks see all of them
            if not by:
                continue
        text = path.read_text()
        # Of the wrappers, what stands behind the last #endif is compiled in both ways.
        start = max(text.rfind("\n#endif"), 0) if name.startswith("common/ptx") else 0
        seen = {}
        for match in CALL.finditer(text, start):
            before = text[:match.start()]
            line = before.count("\n") + 1
            code = before[before.rfind("\n") + 1:]
            if "//" in code or code.lstrip().startswith(("*", "#")):
                continue
            if re.search(r"\b(void|inline|__forceinline__|u32|int|return)\s+$", before):
                continue  # a declaration
            call = " ".join(match.group(1).split())
            seen[call] = seen.get(call, 0) + 1
            found.append({"file": name, "checks": by, "line": line, "call": call, "nth": seen[call],
                          "start": match.start(1), "end": match.end(1)})
    for number, site in enumerate(found, 1):
        site["number"] = number
    return found


def write_copy(found):
    """The sources with each statement behind its number."""
    copy = WORK / "cuda"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CUDA, copy, ignore=shutil.ignore_patterns("prebuilt", "__pycache__", "*.py", "budget"))
    for name in {site["file"] for site in found}:
        text = (copy / name).read_text()
        for site in sorted((s for s in found if s["file"] == name), key=lambda s: -s["start"]):
            call = text[site["start"]:site["end"]]
            kept = f"(emu::taken_out == {site['number']} ? (void)0 : (void)({call}))"
            text = text[:site["start"]] + kept + text[site["end"]:]
        (copy / name).write_text(text)
    core = copy / "emu" / "cuda_emu.h"
    text = core.read_text()
    mark = "inline thread_local Block *block = nullptr;"
    assert mark in text
    core.write_text(text.replace(mark, "inline const int taken_out = getenv(\"ETUDE_EMU_TAKEN_OUT\") ? "
                                       "atoi(getenv(\"ETUDE_EMU_TAKEN_OUT\")) : 0;\n" + mark))
    return copy


def compile_tests(copy):
    """The test program with everything built in."""
    environment = dict(os.environ, ETUDE_EMU_SOURCES=str(copy))
    done = subprocess.run(["cargo", "test", "--locked", "--no-run", "--message-format=json", "-p", "etude-kernels",
                           "--features", "emu", "--test", "emu_parity", "--target-dir", str(WORK / "target")],
                          cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("the copy does not build")
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "emu_parity")


def caught(program, number, check, schedule, timeout):
    """Whether the checks fail with this statement taken out, and how."""
    environment = dict(os.environ, ETUDE_EMU_TAKEN_OUT=str(number), RUST_BACKTRACE="0")
    command = [program, f"{check}/", "--schedule", schedule, "--fail-fast"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return None
    return "deadlock" if "EMU ERROR" in done.stderr else "wrong"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="all, where none is named")
    parser.add_argument("--list", action="store_true", help="only list the statements")
    parser.add_argument("--schedules", default="lifo,fifo")
    parser.add_argument("--all", action="store_true", help="slow families too, and no end in time")
    parser.add_argument("--seconds", type=float, default=240, help="for all runs, without the build")
    parser.add_argument("--slow", type=float, default=6, help="seconds for the checks of a fast family")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    found = sites(options.families)
    if options.list:
        for site in found:
            print(f"{site['file']}:{site['line']}: {site['call']}")
        return 0
    program = compile_tests(write_copy(found))
    schedules = options.schedules.split(",")
    allowed = [exception for path in sorted((HERE / "exceptions").glob("*.toml"))
               for exception in tomllib.loads(path.read_text())["exception"]]
    end = time.monotonic() + (float("inf") if options.all else options.seconds)
    bounded = not options.all and not options.families
    usual = {}  # seconds of a family's checks with nothing taken out
    for check in sorted({check for site in found for check in site["checks"]}):
        for schedule in schedules:
            began = time.monotonic()
            how = caught(program, 0, check, schedule, options.slow if bounded else 900)
            usual[check] = max(usual.get(check, 0), time.monotonic() - began)
            if how == "hangs" and bounded:
                print(f"{check}: left out, its checks take more than {options.slow:g} s")
                del usual[check]
                break
            if how:
                sys.exit(f"{check}: the checks fail under {schedule} with nothing taken out")
    left_out = [site for site in found if not all(check in usual for check in site["checks"])]
    found = [site for site in found if all(check in usual for check in site["checks"])]
    found.sort(key=lambda site: (sum(usual[check] for check in site["checks"]), site["number"]))

    def judge(site):
        if time.monotonic() > end:
            return "left out"
        for schedule in schedules:
            for check in site["checks"]:
                # Other runs beside it may slow it down; what takes this long goes round and round.
                how = caught(program, site["number"], check, schedule, 10 + 4 * usual[check])
                if how:
                    return f"{how} under {schedule}"
        return None

    escaped, excused, used = [], 0, []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for site, verdict in zip(found, pool.map(judge, found)):
            place = f"{site['file']}:{site['line']:<4} {site['call']}"
            if verdict == "left out":
                left_out.append(site)
                continue
            if verdict is None:
                reason = next((e for e in allowed if e["file"] == site["file"] and e["call"] == site["call"] and
                               e["nth"] == site["nth"]), None)
                if reason:
                    excused += 1
                    used.append(reason)
                    verdict = f"escapes, as told: {reason['reason']}"
                else:
                    escaped.append(place)
                    verdict = f"ESCAPES (number {site['nth']} of its kind in the file)"
            print(f"{place:80} {verdict}", flush=True)
    found = [site for site in found if site not in left_out]
    for site in left_out:
        print(f"left out: {site['file']}:{site['line']} {site['call']}")
    total = len(found)
    print(f"{total} taken out, {total - len(escaped) - excused} caught, {excused} excused, {len(escaped)} escaped, "
          f"{len(left_out)} left out")
    if not total:
        sys.exit("there was no time for any of them")
    judged = [(site["file"], site["call"], site["nth"]) for site in found]
    for reason in allowed:
        if reason not in used and (reason["file"], reason["call"], reason["nth"]) in judged:
            print(f"an exception that is none: {reason['file']} {reason['call']} {reason['nth']}")
            escaped.append("")
    return bool(escaped)


if __name__ == "__main__":
    sys.exit(main())
