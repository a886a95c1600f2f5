#!/usr/bin/env python3
"""Makes the PTX that the program embeds, and checks what becomes of it on every kind of GPU.

    python3 kernels/cuda/build.py              # all families: check, and write prebuilt/ where it differs
    python3 kernels/cuda/build.py gemm conv    # these families
    python3 kernels/cuda/build.py --check      # write nothing; a difference is a fault
    python3 kernels/cuda/build.py --budget     # also write budget/ for kernels that have none yet

For each family: nvcc makes PTX for sm_80 and sm_90a, its `.version` is lowered so that older drivers take
it, and ptxas assembles that text for every target, with spills and local memory as errors. Registers and
instructions are compared with budget/<family>.toml, and the older ptxas has to take the text too. Where
both texts are the same but for their headers, only the one for sm_80 is kept.

The compilers are pinned wheels in a virtual environment, made on first use; ETUDE_CUDA_VENV names another
place for it than target/cuda-venv.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WHEELS = [
    "nvidia-cuda-nvcc==13.0.88", "nvidia-nvvm==13.0.88", "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cccl==13.0.85", "nvidia-cuda-cuobjdump==13.2.51",
    "nvidia-cuda-nvdisasm==13.2.51",
    "nvidia-cuda-nvcc-cu12==12.9.86",  # the older ptxas
]
# PTX of this architecture gets this version, and is what these devices run.
SHIPPED = {"80": ("7.0", ["80", "86", "89", "100", "120"]), "90a": ("8.0", ["90a"])}
# What the two texts of one source differ in where it has nothing for sm_90a alone.
HEADER = re.compile(r"^(\.version|\.target) .*$", re.M)
NEVER = ["LDL", "STL"]  # local memory: registers that did not suffice, or an array indexed at run time
STRICT = "-v,-warn-spills,-warn-lmem-usage,-Werror".split(",")


class Fault(Exception):
    pass


class Toolkit:
    def __init__(self):
        venv = pathlib.Path(os.environ.get("ETUDE_CUDA_VENV") or ROOT / "target" / "cuda-venv")
        if not list(venv.glob("lib/python3*/site-packages/nvidia/cu13/bin/nvcc")):
            print(f"installing the compilers into {venv}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run(pip + WHEELS, check=True)
        packages = next(venv.glob("lib/python3*/site-packages/nvidia"))
        self.bin = packages / "cu13" / "bin"
        self.old_ptxas = packages / "cuda_nvcc" / "bin" / "ptxas"


def run(command):
    """Standard output and error of a command that has to succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"{pathlib.Path(command[0]).name} failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout + done.stderr


def check_source(path):
    """What no compiler refuses and the emulator cannot see."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        code = line.split("//")[0]
        for word, why in [(r"\b__shared__\b", "static shared memory: take DYN_SMEM, which the emulator poisons"),
                          (r"\basm\b", "inline assembly: it belongs into a wrapper with two bodies"),
                          (r"#include\s*<", "a header from outside: the kernels need none")]:
            if re.search(word, code):
                raise Fault(f"{path.name}:{number}: {why}")
        if len(line) > 100:
            raise Fault(f"{path.name}:{number}: {len(line)} columns; at most 100")


def resources(text):
    """Registers of each kernel in the report of `ptxas -v`."""
    found = {}
    for part in text.split("Compiling entry function '")[1:]:
        found[part.split("'")[0]] = int(re.search(r"Used (\d+) registers", part).group(1))
    return found


def instructions(text):
    """The set of instruction names of each kernel in the report of `cuobjdump -sass`."""
    found = {}
    for part in re.split(r"\n\s*Function : ", text)[1:]:
        name, code = part.split("\n", 1)
        found[name.strip()] = set(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)",
                                             code, re.M))
    return found


def has(names, wanted):
    """Whether an instruction of this name is there: LDG.E.128 also as LDG.E.128.CONSTANT or LDG.E.NA.128."""
    parts = wanted.split(".")
    return any(n.split(".")[0] == parts[0] and set(parts) <= set(n.split(".")) for n in names)


def assemble(tools, scratch, family, ptx, target):
    """Registers and instructions of each kernel on one target."""
    cubin = scratch / f"{family}.{target}.cubin"
    report = run([tools.bin / "ptxas", *STRICT, f"-arch=sm_{target}", ptx, "-o", cubin])
    run([tools.old_ptxas, *STRICT, f"-arch=sm_{target}", ptx, "-o", scratch / f"{family}.{target}.old"])
    return resources(report), instructions(run([tools.bin / "cuobjdump", "-sass", cubin]))


def check_budget(family, target, registers, sass, budget, faults):
    for kernel, used in registers.items():
        for word in NEVER:
            if has(sass.get(kernel, ()), word):
                faults.append(f"{family}: {kernel} on sm_{target} has {word}: local memory")
        rule = budget.get(kernel)
        if rule is None:
            faults.append(f"{family}: {kernel} has no budget; `build.py --budget {family}` writes one")
            continue
        if used > rule["registers"]:
            faults.append(f"{family}: {kernel} on sm_{target} uses {used} registers; "
                          f"its budget is {rule['registers']}")
        for word in rule.get("must", []):
            if not has(sass.get(kernel, ()), word):
                faults.append(f"{family}: {kernel} on sm_{target} has no {word}")
        for word in rule.get("must_not", []):
            if has(sass.get(kernel, ()), word):
                faults.append(f"{family}: {kernel} on sm_{target} has {word}")


def write_budget(path, family, budget, measured):
    """Entries for kernels that have none: registers rounded up to what the hardware hands out, and the
    instructions that the kernel is built around, where every target has them."""
    new = {k: m for k, m in measured.items() if k not in budget}
    if not new:
        return
    text = path.read_text() if path.exists() else \
        f"# {family}.cu: most registers on any target, and instructions that must be there on all of them.\n"
    for kernel, (used, names) in sorted(new.items()):
        must = [w for w in ("HMMA", "LDSM", "LDGSTS", "HGMMA", "UTMALDG", "LDG.E.128", "STG.E.128")
                if all(has(n, w) for n in names)]
        text += f"\n[{kernel}]\nregisters = {(used + 7) // 8 * 8}\n"
        if must:
            text += "must = [" + ", ".join(f'"{w}"' for w in must) + "]\n"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    budget.update(tomllib.loads(text))


def build(tools, scratch, family, options):
    """All of one family. Returns faults and a line for each kernel."""
    faults, measured = [], {}
    for path in [HERE / f"{family}.cu", *HERE.glob("*.cuh")]:
        check_source(path)
    texts = {}
    for arch, (version, targets) in SHIPPED.items():
        raw = scratch / f"{family}.{arch}.raw.ptx"
        run([tools.bin / "nvcc", "-std=c++17", "-O3", f"-I{HERE}", f"-arch=compute_{arch}", "-Werror",
             "all-warnings", "-ptx", "-o", raw, HERE / f"{family}.cu"])
        text = re.sub(r"^\.version .*$", f".version {version}", raw.read_text(), flags=re.M)
        # Tells a later optimiser which bytes of a load matter; older assemblers do not know it.
        text = re.sub(r"^\s*\.pragma \"used_bytes_mask \w+\";\n", "", text, flags=re.M)
        # Names of internal variables hold a hash of where the source lies.
        text = re.sub(r"_ZN\d+_INTERNAL_[0-9a-f]+_", "_ZN36_INTERNAL_00000000_", text)
        ptx = scratch / f"{family}.sm{arch}.ptx"
        ptx.write_text(text)
        texts[ptx.name] = text
        for target in targets:
            registers, sass = assemble(tools, scratch, family, ptx, target)
            for kernel, used in registers.items():
                measured.setdefault(kernel, {})[target] = (used, sass.get(kernel, set()))
    path = HERE / "budget" / f"{family}.toml"
    budget = tomllib.loads(path.read_text()) if path.exists() else {}
    if options.budget:
        worst = {k: (max(u for u, _ in m.values()), [n for _, n in m.values()]) for k, m in measured.items()}
        write_budget(path, family, budget, worst)
    for kernel, by_target in measured.items():
        for target, (used, names) in by_target.items():
            check_budget(family, target, {kernel: used}, {kernel: names}, budget, faults)
    for kernel in set(budget) - set(measured):
        faults.append(f"{family}: {kernel} has a budget, but there is no such kernel")
    newer = texts[f"{family}.sm90a.ptx"]
    if HEADER.sub("", newer) == HEADER.sub("", texts[f"{family}.sm80.ptx"]):
        texts[f"{family}.sm90a.ptx"] = None
    for name, text in texts.items():
        kept = HERE / "prebuilt" / name
        if (kept.read_text() if kept.exists() else None) == text:
            continue
        if options.check:
            faults.append(f"{family}: prebuilt/{name} is not what the source gives; run build.py")
        elif text is None:
            kept.unlink()
            print(f"removed prebuilt/{name}, which was that for sm_80 again", flush=True)
        else:
            kept.write_text(text)
            print(f"wrote prebuilt/{name}, {len(text)} bytes", flush=True)
    lines = [f"{kernel:48} registers " + " ".join(f"sm_{t} {u}" for t, (u, _) in sorted(m.items()))
             for kernel, m in sorted(measured.items())]
    return sorted(set(faults)), lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="all, where none is named")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--install", action="store_true", help="only fetch the compilers")
    parser.add_argument("--budget", action="store_true", help="write budgets for new kernels")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    try:
        tools = Toolkit()
    except (subprocess.CalledProcessError, StopIteration, OSError) as why:
        print(f"the compilers cannot be installed: {why}")
        return True
    if options.install:
        return False
    families = options.families or sorted(path.stem for path in HERE.glob("*.cu"))
    faults = []
    if not options.families:
        for path in sorted((HERE / "prebuilt").glob("*.ptx")):
            if path.name.split(".")[0] not in families:
                faults.append(f"prebuilt/{path.name} has no source")
    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = {family: pool.submit(build, tools, pathlib.Path(scratch), family, options) for family in families}
        for family, job in jobs.items():
            try:
                found, lines = job.result()
                print(f"{family}\n  " + "\n  ".join(lines), flush=True)
                faults += found
            except Fault as fault:
                faults.append(f"{family}: {fault}")
    for fault in faults:
        print(f"fault: {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
