"""python -m tests.fuzz [--seconds S | --inputs N] [--guided S] [--seed K] [--out FOLDER] [TARGET ...]

Untrusted bytes into every decoder and reader. Only the documented error may come out, on one line and within 50 ms;
what the wire accepts must be encoded to the same bytes again. Prints a line for each target; any defect: exit status 1.

    --seconds S   for each target
    --inputs N    over all targets, by their shares (default 1000000)
    --guided S    first, for each target, S seconds of atheris, whose corpus then is a part of the seeds
    --seed K      of the damage (default 1)
    --out FOLDER  where corpora are kept, and every input that is a defect (default .fuzz)
    --list        the names of the targets

NUMBA_BOUNDSCHECK=1 (with a NUMBA_CACHE_DIR of its own) finds reads out of bounds in the compiled code as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.fuzz.drive import SLOW, Tally, Target, drive
from tests.fuzz.targets import TARGETS

HEAD = "| target | inputs | inputs/s | accepted | crashes | slowest, ms | over 50 ms |\n|---" + 6 * "|---:" + "|"


def shares(targets: list[Target], inputs: int) -> dict[str, int]:
    """How many inputs each target gets."""
    whole = sum(target.share for target in targets)
    return {target.name: max(1, round(inputs * target.share / whole)) for target in targets}


def line(name: str, tally: Tally) -> str:
    """Of the table."""
    rate = tally.inputs / tally.seconds if tally.seconds else 0.0
    return (
        f"| {name} | {tally.inputs} | {rate:.0f} | {tally.accepted / max(1, tally.inputs):.3f} | {len(tally.crashes)} "
        f"| {1e3 * tally.slowest:.1f} | {len(tally.slow)} |"
    )


def guided(name: str, folder: Path, seconds: float) -> Tally:
    """What came of a target under atheris, and its corpus."""
    report = folder.with_suffix(".json")
    report.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.guided", name, str(folder), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not report.exists():
        raise SystemExit(f"{name} under atheris: {done.stderr[-2000:]}")
    found = json.loads(report.read_text())
    tally = Tally(found["inputs"], found["accepted"], found["seconds"], found["slowest"])
    tally.crashes = {(i,): (bytes.fromhex(data), what) for i, (data, what) in enumerate(found["crashes"])}
    tally.slow = [(bytes.fromhex(data), took) for data, took in found["slow"]]
    if done.returncode:
        tally.crashes[()] = b"", f"atheris left with {done.returncode}: {done.stderr[-2000:]}"
    return tally


def keep(name: str, tally: Tally, folder: Path) -> None:
    """Write what is a defect, and say so."""
    found = [(data, what) for data, what in tally.crashes.values()]
    found += [(data, f"{1e3 * took:.0f} ms, expected at most {1e3 * SLOW:g}") for data, took in tally.slow]
    for data, what in found:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"defect-{sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"\n{name}: {path}\n{what}\n", file=sys.stderr, flush=True)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--guided", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".fuzz"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    options = parser.parse_args()
    if options.list:
        print("\n".join(TARGETS))
        return 0
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; --list names them")
    logging.disable(logging.CRITICAL)
    chosen = [TARGETS[name] for name in options.targets] or list(TARGETS.values())
    counts = shares(chosen, options.inputs)
    whole, defects = Tally(), 0
    print(HEAD, flush=True)
    for target in chosen:
        name, folder, corpus = target.name, options.out / target.name.replace(" ", "-"), list[bytes]()
        tallies = {}
        if options.guided and target.case.rows is None:
            tallies[f"{name}, guided"] = guided(name, folder, options.guided)
        if folder.is_dir():
            corpus = [path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith("defect-")]
        inputs, seconds = (counts[name], float("inf")) if options.seconds is None else (2**62, options.seconds)
        tallies[name] = drive(target, inputs, options.seed, seconds, corpus)
        for title, tally in tallies.items():
            print(line(title, tally), flush=True)
            keep(name, tally, folder)
            defects += len(tally.crashes) + len(tally.slow)
            whole.inputs, whole.accepted = whole.inputs + tally.inputs, whole.accepted + tally.accepted
            whole.seconds, whole.slowest = whole.seconds + tally.seconds, max(whole.slowest, tally.slowest)
            whole.crashes |= {(len(whole.crashes), i): crash for i, crash in enumerate(tally.crashes.values())}
            whole.slow += tally.slow
    print(line("all", whole), flush=True)
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
