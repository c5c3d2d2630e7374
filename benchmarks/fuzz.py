"""Coverage-guided fuzzing of every reader of files: new paths through their code are sought, not only damage.

Needs atheris, which is no dependency: ``pip install atheris`` into an environment of its own that has hatrack.

    python benchmarks/fuzz.py --seconds 60                    # every reader, a process each
    python benchmarks/fuzz.py --seconds 600 --reader matlab   # one of them
    python benchmarks/fuzz.py --reader matlab --file crash    # what a file that was found does

A file that makes a reader fail with anything but an error of hatrack's, print a warning, execute something, or take too
long is kept in ``--out``, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from recording import write_record

TESTS = Path(__file__).parents[1] / "tests"
SECONDS_PER_FILE = 20
MEGABYTES = 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--file", type=Path, help="read this file, and fail as its reader fails")
    parser.add_argument("--json", type=Path, help="write what was done")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    if options.corpus is not None:
        return search(options.reader[0], options.seconds, options.out, options.corpus)
    from support import damage

    if options.file is not None:
        print(damage.attempt(damage.READERS[options.reader[0]], options.file.read_bytes()))
        return 0
    results = {}
    for name in options.reader or damage.READERS:
        corpus = options.out / name.replace(" ", "-").replace("'", "") / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(damage.READERS[name].files):
            (corpus / f"whole-{number}").write_bytes(content)
        results[name] = supervised(name, options.seconds, corpus)
        print(name, json.dumps(results[name]), flush=True)
        if options.json is not None:
            write_record(options.json, results, indent=2)
    return int(any(result["found"] for result in results.values()))


def supervised(name: str, seconds: int, corpus: Path) -> dict[str, object]:
    """Search in a process of its own, which libFuzzer ends as it likes."""
    command = [sys.executable, __file__, "--reader", name, "--seconds", str(seconds)]
    began = time.monotonic()
    ended = subprocess.run(
        [*command, "--out", str(corpus.parent), "--corpus", str(corpus)], capture_output=True, text=True, check=False
    )
    said = ended.stdout + ended.stderr
    (corpus.parent / "log.txt").write_text(said)
    runs = re.findall(r"^#(\d+)\s", said, re.MULTILINE)
    covered = re.findall(r"cov: (\d+)", said)
    return {
        "runs": int(runs[-1]) if runs else 0,
        "edges": int(covered[-1]) if covered else 0,
        "edges at first": int(covered[0]) if covered else 0,
        "seconds": round(time.monotonic() - began),
        "found": sorted(path.name for path in corpus.parent.glob("*-*") if path.is_file()),
        "exit code": ended.returncode,
    }


def search(name: str, seconds: int, out: Path, corpus: Path) -> int:
    import atheris

    with atheris.instrument_imports(include=["hatrack", "json", "csv", "zipfile", "tarfile", "tomllib", "PIL"]):
        from support import damage

    reader = damage.READERS[name]
    arguments = [
        *(sys.argv[0], f"-max_total_time={seconds}", f"-timeout={SECONDS_PER_FILE}", f"-rss_limit_mb={MEGABYTES}"),
        *("-len_control=0", "-max_len=20000", f"-artifact_prefix={out}/", "-print_final_stats=1", str(corpus)),
    ]

    def attempt(content: bytes) -> None:
        damage.attempt(reader, content)

    atheris.Setup(arguments, attempt)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
