#!/usr/bin/env python3
"""Pack a folder of corpora into the compressed files that the program carries.

    corpora/pack.py CORPUS            write corpora/*/*.xz
    corpora/pack.py CORPUS --check    only compare what is packed with CORPUS

A pack is xz over: the line `ETUDE-CORPUS 1`, one line `path TAB length` for each piece in order of
its path, an empty line, then the pieces' bytes one after the other. Same input, same pack.
"""

import lzma
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# 8 MiB holds each pack whole, and is what a reader has to set aside.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 23, "lc": 3, "lp": 0, "pb": 0}]
# corpus: folders, each with the split of its files if the path does not name one, and a prefix.
PACKS = {
    "folk": [("folk", None, "")],
    "chorales": [("jsb", None, "")],
    "bands": [("band", None, "")],
    "grooves": [("groove", None, "")],
    "leadsheets": [("leadsheets", None, "")],
    "piano": [("piano_performance", None, ""), ("piano_scores_pd", "train", "score_")],
}
PLAIN = {
    "chorales/satb.json.xz": "jsb/Jsb16thSeparated.json",
    "chorales/quarter.json.xz": "jsb/jsb-chorales-quarter.json",
}


def pack(corpus, folders):
    pieces = {}
    for folder, split, prefix in folders:
        for file in (corpus / folder).rglob("*.mid"):
            name = file.relative_to(corpus / folder)
            part = split or name.parts[0]
            assert part in ("train", "valid", "test"), file
            path = f"{part}/{prefix}{name.name}"
            assert path not in pieces and "\t" not in path and "\n" not in path, path
            pieces[path] = file.read_bytes()
    order = sorted(pieces)
    index = "".join(f"{path}\t{len(pieces[path])}\n" for path in order)
    return f"ETUDE-CORPUS 1\n{index}\n".encode() + b"".join(pieces[path] for path in order)


def main():
    corpus = pathlib.Path(sys.argv[1])
    wanted = {f"{name}/pieces.xz": pack(corpus, folders) for name, folders in PACKS.items()}
    wanted |= {name: (corpus / source).read_bytes() for name, source in PLAIN.items()}
    good = True
    for name, data in wanted.items():
        target = HERE / name
        if "--check" in sys.argv[2:]:
            same = target.exists() and lzma.decompress(target.read_bytes()) == data
            good &= same
            print(f"{name}: {'as it should be' if same else 'DIFFERS'}")
        else:
            packed = lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=FILTERS)
            target.write_bytes(packed)
            print(f"{name}: {len(data)} bytes, packed {len(packed)}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
