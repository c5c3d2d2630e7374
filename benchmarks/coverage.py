"""Coverage: which public networks can be attached without rules of the user's, and what they keep of their units.

python benchmarks/coverage.py [--families timm vit_pytorch] [--only 'vit*'] [--again] [--attach]
    [--lines coverage.jsonl] [--out benchmarks/results/coverage.json] [--seconds 300] [--gigabytes 6] [--table]

Needs the packages of the families: ``pip install -c constraints.txt 'transformers>=4.48'``, ``pip install --no-deps
timm vit-pytorch`` and ``pip install einops pyyaml``. Without dependencies, since both ask for torchvision, which must
fit the build of torch and is large: ``python benchmarks/coverage_models/stub_torchvision.py`` writes a stand-in.

Every model runs in a process of its own, one thread, random weights. It is attached (which includes the leak test);
two tasks are trained for three steps each with AdamW and weight decay; the first one's logits must keep every bit; it
is extracted, and must agree to 1e-4. A line per model is appended to ``--lines``; models that have one are left out
unless ``--again``. Then the table of all lines is printed and written to ``--out``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import resource
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from coverage_models import FAMILIES, Model, all_models
from recording import write_record
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from hatrack import HATNetwork, UnsupportedError
from hatrack.support.environment import describe_environment
from hatrack.units import Role, UnitGraph

FORKED = multiprocessing.get_context("fork")
STEPS, SAMPLES, CLASSES = 3, 4, 3
TOLERANCE = 1e-4
"""Largest deviation of an extracted network, relative to the largest logit."""

COLLAPSED = 8
"""Smallest number of outputs of a layer that one unit alone may not stand for."""


def measure(model: Model, attach_alone: bool) -> dict[str, Any]:
    """Attach a model, train two tasks, extract the first one; stops at what fails."""
    torch.manual_seed(0)
    backbone, example = model.build(), model.example()
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in backbone.parameters())}
    forward = forward_time(backbone, example)
    begin = time.process_time()
    try:
        net = HATNetwork(backbone, example, s_max=50.0)
    except Exception as error:
        return {**found, "attached": False, "why": described(error)}
    took = time.process_time() - begin
    found |= {"attached": True, "seconds": round(took, 2), "forwards": round(took / forward, 1)}
    found |= units_of(net.masking.graph, backbone)
    if attach_alone:
        return found
    try:
        found |= law_of(net, inputs_like(example, model.classes))
    except Exception as error:
        found |= {"law": False, "why": f"law: {described(error)}"}
    return found


def law_of(net: HATNetwork, x: Tensor) -> dict[str, Any]:
    """Train two tasks, and compare the first one's logits and its extraction."""
    learn(net, "one", x)
    with torch.no_grad():
        before = net.eval()(x, "one").clone()
    backbone = {name: p.detach().clone() for name, p in net.backbone.named_parameters()}
    learn(net, "two", x)
    with torch.no_grad():
        after = net.eval()(x, "one")
    moved = sum(int((p != backbone[name]).sum()) for name, p in net.backbone.named_parameters())
    found: dict[str, Any] = {
        "law": torch.equal(before, after) and bool(torch.isfinite(after).all()),
        "moved": round(moved / sum(p.numel() for p in backbone.values()), 3),
    }
    try:
        with torch.no_grad():
            network = net.extract("one", x)
            found["deviation"] = float((network(x) - after).abs().max() / after.abs().max())
        found["extracts"] = found["deviation"] <= TOLERANCE
        found["uncut"] = len(network.summary.whole)
    except Exception as error:
        found |= {"extracts": False, "why": f"extraction: {described(error)}"}
    return found


def learn(net: HATNetwork, name: str, x: Tensor) -> None:
    net.add_task(name, CLASSES)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(name), lr=1e-3, weight_decay=0.1))
    y = torch.arange(len(x)) % CLASSES
    net.train()
    for step in range(STEPS):
        net.anneal(step / (STEPS - 1))
        optimizer.zero_grad()
        (F.cross_entropy(net(x, name), y) + 0.1 * net.regularization()).backward()
        optimizer.step()
    net.consolidate(name)


def units_of(graph: UnitGraph, backbone: nn.Module) -> dict[str, Any]:
    """Count entries frozen wholly, units, and where the outputs of layers went that are not units of their own.

    ``always``: outputs that every task uses. ``merged``: outputs that share a unit with others of their layer, as in a
    head of attention. ``shared``: outputs that share one with another layer's, as in skip connections and depthwise
    convolutions. ``unseen``: outputs of layers that are not called, or that are not followed themselves.
    """
    sizes = dict.fromkeys(Role, 0)
    for name, role in graph.roles.items():
        sizes[role] += graph.shapes[name].numel()
    widths, known, lost = 0, set[int](), Counter[str]()
    for name, module in backbone.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        widths += width
        if name not in graph.outputs:
            lost["unseen"] += width
            continue
        gated = [unit for unit in graph.outputs[name].tolist() if unit != graph.num_units]
        lost["always"] += width - len(gated)
        lost["merged"] += len(gated) - len(set(gated))
        lost["shared"] += len(set(gated) & known)
        known |= set(gated)
    collapsed = [f"{group.name[:80]} ({group.outputs})" for group in graph.groups if is_collapsed(group)]
    total = sum(sizes.values())
    return {
        **{"whole": round(sizes[Role.WHOLE] / max(total, 1), 4), "units": graph.num_units, "widths": widths},
        **{"lost": dict(lost), "collapsed": collapsed, "groups": len(graph.groups)},
    }


def is_collapsed(group: Any) -> bool:
    return group.size == 1 and group.outputs >= COLLAPSED


def inputs_like(example: Tensor, classes: int) -> Tensor:
    """Draw a batch of the shape and type of an example."""
    shape = (SAMPLES, *example.shape[1:])
    return torch.randn(shape) if example.is_floating_point() else torch.randint(0, classes, shape, dtype=example.dtype)


def forward_time(backbone: nn.Module, example: Tensor) -> float:
    """Return the median processor time of a forward pass."""
    training = backbone.training
    backbone.eval()
    times = []
    with torch.no_grad():
        for _ in range(4):
            begin = time.process_time()
            backbone(example)
            times.append(time.process_time() - begin)
    backbone.train(training)
    return max(statistics.median(times[1:]), 1e-4)


def described(error: BaseException) -> str:
    """Return an error in one line: a refusal with all its causes, of others the first line."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines) if isinstance(error, UnsupportedError) else lines[0]}"[:2000]


def in_own_process(model: Model, seconds: int, gigabytes: float, attach_alone: bool) -> dict[str, Any]:
    """Measure a model in a process of its own, with limits; forked, so that nothing is imported again."""
    receiver, sender = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=send_measures, args=(sender, model, gigabytes, attach_alone))
    begin = time.monotonic()
    process.start()
    sender.close()
    found: dict[str, Any] = {"attached": False}
    try:
        if receiver.poll(seconds):
            found = receiver.recv()
        else:
            found["why"] = f"took more than {seconds} s"
    except EOFError:
        process.join()
        found["why"] = f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    return {**found, "wall": round(time.monotonic() - begin, 1)}


def send_measures(sender: Any, model: Model, gigabytes: float, attach_alone: bool) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = measure(model, attach_alone)
        except Exception as error:
            found = {"attached": False, "why": described(error)}
    found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sender.send(found)


def read(lines: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Read the last result of every model."""
    rows = map(json.loads, lines.read_text().splitlines()) if lines.exists() else ()
    return {(row["family"], row["name"]): row for row in rows}


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize a family."""
    attached = [row for row in rows if row["attached"]]
    widths = [row["units"] / row["widths"] for row in attached if row["widths"]]
    causes: Counter[str] = sum((Counter(row["lost"]) for row in attached), Counter())
    total = sum(row["widths"] for row in attached) or 1
    return {
        "models": len(rows),
        "attached": len(attached),
        "trained": sum("law" in row for row in attached),
        "law": sum(bool(row.get("law")) for row in attached),
        "extracts": sum(bool(row.get("extracts")) for row in attached),
        "whole": median(row["whole"] for row in attached),
        "units / widths": round(statistics.median(widths), 3) if widths else None,
        "of widths": {cause: round(count / total, 3) for cause, count in causes.most_common()},
        "collapsed": sum(bool(row["collapsed"]) for row in attached),
        "forwards": median(row["forwards"] for row in attached),
        "seconds": median(row["seconds"] for row in attached),
        "megabytes": median(row["megabytes"] for row in attached),
    }


def median(values: Iterable[float]) -> float | None:
    known = list(values)
    return round(statistics.median(known), 4) if known else None


def table_of(summaries: dict[str, dict[str, Any]]) -> str:
    columns = [name for name in next(iter(summaries.values())) if name != "of widths"]
    rows = [["family", *columns]]
    rows += [[family, *(str(summary[name]) for name in columns)] for family, summary in summaries.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for family, summary in summaries.items():
        shares = ", ".join(f"{cause} {share:.1%}" for cause, share in summary["of widths"].items())
        lines.append(f"{family}: outputs of layers that are no units of their own: {shares or 'none'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--only", nargs="+", default=["*"], help="names or patterns of models")
    parser.add_argument("--again", action="store_true", help="also models that have a result")
    parser.add_argument("--failed", action="store_true", help="also models whose result is not all good")
    parser.add_argument("--attach", action="store_true", help="only attach, which takes a fifth of the time")
    parser.add_argument("--lines", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--table", action="store_true", help="nothing but the table of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = read(options.lines)
    for model in [] if options.table else all_models(tuple(options.families)):
        known = results.get((model.family, model.name))
        again = options.again or (options.failed and known is not None and not is_good(known))
        if not any(fnmatch.fnmatch(model.name, pattern) for pattern in options.only) or (known and not again):
            continue
        found = in_own_process(model, options.seconds, options.gigabytes, options.attach)
        row = {"family": model.family, "name": model.name, **found}
        results[model.family, model.name] = row
        with options.lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{model.family} {model.name}: {found.get('why') or brief(found)}", flush=True)
    families = {family: [row for (own, _), row in results.items() if own == family] for family in options.families}
    summaries = {family: summary_of(rows) for family, rows in families.items() if rows}
    if summaries:
        print(table_of(summaries))
    if options.out:
        content = {"environment": describe_environment(), "families": summaries, "models": list(results.values())}
        write_record(options.out, content)


def is_good(row: dict[str, Any]) -> bool:
    return row["attached"] and bool(row.get("law")) and bool(row.get("extracts")) and not row["collapsed"]


def brief(found: dict[str, Any]) -> str:
    law = "law" if found.get("law") else "law not tried" if "law" not in found else "NOT THE LAW"
    extracts = "extracts" if found.get("extracts") else "NOT EXTRACTED"
    units = f"{found['units']} units of {found['widths']}, whole {found['whole']:.1%}"
    collapsed = f", collapsed: {', '.join(found['collapsed'])}" if found["collapsed"] else ""
    return f"{law}, {extracts}, {units}, {found['forwards']} forwards{collapsed}"


if __name__ == "__main__":
    main()
