"""Export of a task, or of all tasks, to a file that runs without hatrack; logits are compared before it is written."""

from __future__ import annotations

import importlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hatrack.compact.decompositions import without_adaptive_maxima
from hatrack.compact.onnx_names import rename_doors, unused
from hatrack.errors import GuaranteeError, InputError, UnsupportedError
from hatrack.gating.mixing import layer_that_mixes, mixed_norms
from hatrack.storage.atomic import require_place, write_atomically
from hatrack.support.inputs import Inputs, constants_in, device_of, map_tensors, tensors_in
from hatrack.support.modes import evaluation_mode, plain_modes

if TYPE_CHECKING:
    from hatrack.models.hat import HATNetwork
    from hatrack.models.weight_masked import WeightMaskedNetwork

__all__ = ["PARITY", "AllTasks", "Exported", "Labels", "export_all_tasks", "export_task"]

PARITY = 1e-4
"""Tolerance of a file's logits, relative to the network's and to the largest: runtimes sum in other orders."""

LOGITS = "logits"
"""Name of the output of a file in ONNX; with underscores behind it where an input has this name."""

_INSIDE = "hatrack_door_"
"""Beginning of the names that inputs and outputs have until the whole graph is known, whose values have names, too."""

SUFFIXES = (".onnx", ".pt2", ".safetensors")


@dataclass(frozen=True)
class Labels:
    """Labels to store in an exported file.

    Attributes:
        classes: names of the outputs: of classes, labels or columns.
        preprocessing: preparation of samples for the network, as JSON values, such as mean and standard deviation.
        objective: meaning of the outputs, as JSON values, such as mean and deviation of columns of numbers, whose
            outputs are standardised; empty where all is about classes.
    """

    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """Report on an exported file.

    Attributes:
        path: the file.
        samples: number of samples that were compared.
        deviation: largest difference of a logit, relative to the largest logit.
        parameters: number of parameters in the file.
    """

    path: Path
    samples: int
    deviation: float
    parameters: int


class AllTasks(nn.Module):
    """Whole network with the number of a task for every sample as a second input.

    Args:
        net: the network; it is used, not copied.

    Raises:
        UnsupportedError: the network does not keep the samples of a batch apart, or heads do not read vectors.
        InputError: a task has a head of its own.
    """

    masks: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, net: HATNetwork) -> None:
        super().__init__()
        masking = net.masking
        if not masking.mixes_samples():
            tried = masking.graph.num_units, masking.example, masking.interface.take
            where = layer_that_mixes(masking.attachment, net.backbone, *tried)
            raise UnsupportedError(f"this network does not keep samples apart{where}; export its tasks one by one")
        states = net.tasks.consolidated
        self.net = net
        self._norms = [net.masking.norms(state) for state in states]
        counts = [state.count_classes() for state in states]
        if net.masking.example_features().dim() != 2:
            raise UnsupportedError("heads of this network do not read features (N, F); export its tasks one by one")
        self.register_buffer("masks", torch.stack([state.mask for state in states]))
        heads = [(state.linear_head, max(counts) - count) for state, count in zip(states, counts, strict=True)]
        pad = nn.functional.pad
        weights = [pad(head.weight.detach(), (0, 0, 0, missing)) for head, missing in heads]
        shifts = [pad(head.bias.detach(), (0, missing), value=float("-inf")) for head, missing in heads]
        self.register_buffer("weight", torch.stack(weights))
        self.register_buffer("bias", torch.stack(shifts))

    def forward(self, x: Inputs, task: Tensor) -> Tensor:
        """Compute logits ``(N, most classes)`` for tasks, int64 ``(N,)``; they are −inf behind a task's last class."""
        norms = mixed_norms(self._norms, task)
        features = self.net.masking.attachment.run(self.net.backbone, x, self.masks[task], norms)
        return torch.bmm(self.weight[task], features.unsqueeze(2)).squeeze(2) + self.bias[task]


@plain_modes()
def export_task(
    net: HATNetwork | WeightMaskedNetwork, task: str, path: str | Path, x: Inputs, labels: Labels
) -> Exported:
    """Write a task's extracted network: ``.onnx``, ``.pt2`` (torch.export), or ``.safetensors`` (weights alone).

    The batch size is dynamic. Metadata holds the task's name, its classes, the preprocessing, and how large it is; and
    what among several inputs is no tensor, which the file has as it is in the samples. In ONNX inputs have the names of
    keywords, or ``x`` (``x0``, ``x1``, … where there are several), and the output is ``logits``.

    Args:
        net: the network, with masks of units or of weights.
        task: a consolidated task.
        path: the file; its suffix chooses the format.
        x: real samples, as the network takes them, on which the file is compared with the masked network; two at least.
        labels: labels to store in the file.

    Raises:
        InputError: there is no such kind of file or task, the file cannot be there, a package is missing, or the task's
            own head gives several outputs.
        UnsupportedError: the task cannot be extracted.
        GuaranteeError: the file's logits are not the network's. Nothing is written then.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path.name}: a task is exported to {', '.join(SUFFIXES)}")
    require_place(path)
    interface = net.masking.interface
    x = interface.accepted(x)
    samples = interface.samples(x)
    _require_samples(samples)
    compact = net.extract(task, interface.take(x, slice(16)))
    summary = compact.summary
    assert summary is not None
    compact.summary = None
    with torch.no_grad(), evaluation_mode(net):
        expected = net(x, task)
    if not isinstance(expected, Tensor):
        raise InputError(f"the head of task {task!r} gives several outputs; a file holds one tensor: use net.extract")
    parts_of_it = (interface.take(x, rows) for rows in (slice(2), slice(1), slice(1, None)))
    two, one, rest = (map_tensors(Tensor.contiguous, part) for part in parts_of_it)
    units = json.dumps(dict(summary.units))
    metadata = {**_metadata(labels), "task": task, "units": units}
    computed = {**metadata, **_said_of_constants(x)}
    if path.suffix == ".onnx":
        names = _names_of(x)
        content = _onnx(compact, (two,), names, computed, (interface.batch_axis,))
        parts = [dict(zip(names, tensors_in(part), strict=True)) for part in (one, rest)]
        found = _run_onnx(content, parts)
    elif path.suffix == ".pt2":
        content, found = _pt2(compact, (two, one, rest), computed, interface.batch_axis)
    else:
        apart = {k: v.clone(memory_format=torch.contiguous_format) for k, v in compact.state_dict().items()}
        content = safetensors.torch.save(apart, metadata)  # which takes no tensors that share memory, as tied ones do
        compact.load_state_dict(safetensors.torch.load(content))
        with torch.no_grad():
            found = compact(x)
    deviation = _require_parity(path, task, found, expected)
    write_atomically(path, content)
    return Exported(path, samples, deviation, summary.parameters)


@plain_modes()
def export_all_tasks(
    net: HATNetwork, path: str | Path, samples: Mapping[str, Inputs], labels: Mapping[str, Labels]
) -> Exported:
    """Write one ONNX file for all consolidated tasks, whose last input says each sample's task, int64 ``(N,)``.

    It is called ``task``, or ``task_`` where the network has an input of that name.

    Args:
        net: the network.
        path: the file, ``.onnx``.
        samples: for every consolidated task real samples, as the network takes them, to compare on; two at least.
        labels: labels of every task to store in the file.

    Raises:
        InputError: the file is not called ``.onnx``, or a package or a task's samples are missing; or samples of tasks
            do not have the same inputs, or differ in what is no tensor.
        UnsupportedError: the network does not keep the samples of a batch apart; the layer is named where it is known.
        GuaranteeError: the file's logits are not the network's. Nothing is written then.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"{path.name}: all tasks together are exported to .onnx")
    require_place(path)
    names = [state.name for state in net.tasks.consolidated]
    missing = [name for name in names if name not in samples or name not in labels]
    if missing or not names:
        raise InputError(f"samples and labels are missing for {', '.join(missing) or 'any consolidated task'}")
    interface = net.masking.interface
    batches = {name: interface.accepted(samples[name]) for name in names}
    first = batches[names[0]]
    for name, x in batches.items():
        _require_samples(interface.samples(x))
        if _names_of(x) != _names_of(first) or constants_in(x) != constants_in(first):
            raise InputError(
                f"samples of tasks {names[0]!r} and {name!r} have other inputs, or other values that are no tensors; "
                "one file takes the same of all tasks: export its tasks one by one"
            )
    inputs = _names_of(first)
    number = unused("task", inputs)
    with evaluation_mode(net), torch.no_grad():
        together = AllTasks(net).eval()
        tasks = [
            {
                "name": name,
                "classes": list(labels[name].classes),
                **({"objective": labels[name].objective} if labels[name].objective else {}),
            }
            for name in names
        ]
        metadata = {**_metadata(labels[names[0]]), "classes": "", "tasks": json.dumps(tasks)}
        of_tasks = {name: dict(labels[name].preprocessing) for name in names}
        metadata["preprocessing"] = json.dumps(of_tasks)
        metadata |= _said_of_constants(first)
        two = map_tensors(Tensor.contiguous, interface.take(first, slice(2)))
        numbers = torch.zeros(2, dtype=torch.int64, device=device_of(first))
        try:
            content = _onnx(together, (two, numbers), (*inputs, number), metadata, (interface.batch_axis, 0))
        except UnsupportedError as error:
            raise UnsupportedError(f"{error}; perhaps its tasks can be exported one by one") from error
        deviation, count = 0.0, 0
        for index, name in enumerate(names):
            x = batches[name]
            expected = net(x, name)
            numbers = torch.full((len(expected),), index, device=expected.device)
            parts = [
                {**dict(zip(inputs, tensors_in(interface.take(x, rows)), strict=True)), number: numbers[rows]}
                for rows in (slice(0, 1), slice(1, None))
            ]
            found = _run_onnx(content, parts)
            deviation = max(deviation, _require_parity(path, name, found[:, : expected.shape[1]], expected))
            count += len(expected)
    write_atomically(path, content)
    parameters = sum(parameter.numel() for parameter in net.backbone.parameters()) + together.weight.numel()
    return Exported(path, count, deviation, parameters)


def _require_samples(count: int) -> None:
    if count < 2:
        raise InputError(f"an export is compared on real samples, two at least, not {count}")


def _names_of(x: Inputs) -> list[str]:
    """Return names of the inputs of a file: the keywords of a mapping, or ``x``, numbered where there are several."""
    tensors = list(tensors_in(x))
    if isinstance(x, Mapping) and len(tensors) == sum(isinstance(value, Tensor) for value in x.values()):
        return [key for key, value in x.items() if isinstance(value, Tensor)]
    return ["x"] if len(tensors) == 1 else [f"x{number}" for number in range(len(tensors))]


def _said_of_constants(x: Inputs) -> dict[str, str]:
    """Return the entry of the metadata for what of an input is no tensor, which a file has as it was."""
    constants = constants_in(x)
    return {"constants": json.dumps(constants, ensure_ascii=False)} if constants else {}


def _metadata(labels: Labels) -> dict[str, str]:
    return {
        "producer": "hatrack",
        "classes": json.dumps(list(labels.classes), ensure_ascii=False),
        **({"objective": json.dumps(labels.objective, ensure_ascii=False)} if labels.objective else {}),
        "preprocessing": json.dumps(dict(labels.preprocessing)),
    }


def _require_parity(path: Path, task: str, found: Tensor, expected: Tensor) -> float:
    scale = float(expected.abs().max())
    fits = found.shape == expected.shape
    deviation = float((found - expected).abs().max()) / (scale or 1.0) if fits else float("inf")
    if not fits or not torch.allclose(found, expected, rtol=PARITY, atol=PARITY * scale):
        raise GuaranteeError(
            f"{path} would not say what the network says on {task!r} (logits differ by {deviation:.1e} of the "
            "largest); it was not written"
        )
    return deviation


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"the package {name} is missing; install hatrack[onnx]") from error


@contextmanager
def _quiet() -> Any:
    """While this lasts, exporters neither warn nor log."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def _traced(model: nn.Module, inputs: tuple[Inputs, ...], batch_axes: Sequence[int] = (0,)) -> Any:
    """Trace a model by torch.export, for batches of any size.

    Args:
        model: the model.
        inputs: its arguments, two samples of each.
        batch_axes: for every argument the axis that counts samples.

    Raises:
        UnsupportedError: the model cannot be followed, or only for one size of batches.
    """
    batch = torch.export.Dim("batch")
    reason = ""
    for strict in (False, True):  # strict tracing also follows len(x), the other one follows hooks
        try:
            with (
                _quiet(),
                redirect_stderr(io.StringIO()),
                torch.no_grad(),
            ):  # where it shows graphs that it cannot follow
                shapes = tuple(_dynamic_axes(x, {axis: batch}) for x, axis in zip(inputs, batch_axes, strict=True))
                return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=strict)
        except Exception as error:
            reason = reason or " ".join(str(error).split())[:200]
    raise UnsupportedError(f"torch.export cannot follow this network for batches of any size: {reason}")


def _dynamic_axes(tree: Any, axes: Mapping[int, Any]) -> Any:
    """Return nested inputs with the dynamic axes of every tensor in its place; None for constants."""
    if isinstance(tree, Tensor):
        return dict(axes) if tree.dim() else None
    if isinstance(tree, Mapping):
        return {key: _dynamic_axes(branch, axes) for key, branch in tree.items()}
    return type(tree)(_dynamic_axes(branch, axes) for branch in tree) if isinstance(tree, (tuple, list)) else None


def _onnx(
    model: nn.Module,
    inputs: tuple[Inputs, ...],
    names: Sequence[str],
    metadata: Mapping[str, str],
    batch_axes: Sequence[int] = (0,),
) -> bytes:
    """Return the bytes of a file whose inputs have some names, and whose output is :data:`LOGITS`."""
    onnx = _needed("onnx")
    for package in ("onnxscript", "onnxruntime"):
        _needed(package)
    with _quiet():
        program = without_adaptive_maxima(_traced(model, inputs, batch_axes))
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                program,
                f=target,
                input_names=[f"{_INSIDE}{index}" for index in range(len(names))],
                output_names=[f"{_INSIDE}out"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise UnsupportedError(f"ONNX has no translation of this network: {reason}; .pt2 may do") from error
        written = onnx.load(target)
        rename_doors(written.graph, names, LOGITS)
        onnx.helper.set_model_props(written, dict(metadata))
        onnx.checker.check_model(written)
    content: bytes = written.SerializeToString()
    return content


def _run_onnx(content: bytes, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Compute logits of several batches by onnxruntime, side by side."""
    runtime = _needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = []
    for batch in batches:
        feed = {name: value.cpu().numpy() for name, value in batch.items()}
        parts.append(torch.from_numpy(session.run(None, feed)[0]))
    device = next(iter(batches[0].values())).device
    return torch.cat(parts).to(device)


def _pt2(
    model: nn.Module, batches: tuple[Inputs, Inputs, Inputs], metadata: Mapping[str, str], batch_axis: int
) -> tuple[bytes, Tensor]:
    """Return the bytes of a file, and its logits of the second and third batch; the first one is traced."""
    exported = _traced(model, batches[:1], (batch_axis,))
    with _quiet(), torch.no_grad():
        buffer = io.BytesIO()
        torch.export.save(exported, buffer, extra_files={"metadata.json": json.dumps(dict(metadata))})
        buffer.seek(0)
        again = torch.export.load(buffer).module()
        found = torch.cat([again(batch) for batch in batches[1:]])
    return buffer.getvalue(), found
