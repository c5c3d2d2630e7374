"""Draw what `hatrack demo` shows, for the README.

python benchmarks/demo_picture.py docs/demo.svg
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import torch
from rich.console import Console

from hatrack.cli.app import DEMO_TITLES
from hatrack.experiments import RunRequest, prepare, run
from hatrack.report import accuracy_table, forgetting_line


def main(target: Path) -> None:
    torch.set_num_threads(1)
    console = Console(record=True, width=72, file=io.StringIO(), force_terminal=True)
    for method, title in DEMO_TITLES.items():
        prepared = prepare(RunRequest("demo", method))
        for _ in run(prepared):
            pass
        console.print(accuracy_table(prepared.result, title))
        console.print(forgetting_line(prepared.result), "\n", highlight=False)
    svg = console.export_svg(title="hatrack demo")
    without_web_fonts = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code,", "")
    target.write_text(without_web_fonts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
