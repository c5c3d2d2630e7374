"""Loggers of runs with the real packages: what they write is there, goes on, and leaves this machine nowhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.experiments import RunRequest, prepare, read_result
from hatrack.report.loggers import MLflowLogger, with_logs

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

WORDS = [
    *("run", "demo", "--method", "hat", "--epochs", "2", "--limit", "20", "--threads", "1", "--quiet"),
    *("--set", "hidden=8", "--set", "num_tasks=2"),
]


class Listener:
    """A server that takes connections, counts them, and answers nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            self.connections += 1
            connection.close()


def run_apart(folder: Path, logger: str, listener: Listener) -> str:
    """Make a run in a process whose every way out of this machine is the listener; return what it prints."""
    ways = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI")
    wanted = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "HOME": str(folder.parent / "home"), "NO_PROXY": ""}
    there = {**os.environ, **dict.fromkeys((*ways, *map(str.lower, ways[:3])), listener.address), **wanted}
    for name in ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS"):  # in which some packages are silent by themselves
        there.pop(name, None)
    words = [sys.executable, "-m", "hatrack", *WORDS, "--log", logger, "--out", str(folder)]
    done = subprocess.run(words, env=there, capture_output=True, text=True, timeout=300, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("logger", ["wandb", "mlflow", "tensorboard"])
def test_nothing_leaves_this_machine(logger: str, tmp_path: Path) -> None:
    listener, folder = Listener(), tmp_path / "run"
    said = run_apart(folder, logger, listener)
    assert listener.connections == 0
    assert said == ""
    tasks = [task.name for task in read_result(folder / "run.json").tasks]
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    for path in outside:  # a package may keep a log of its own elsewhere, but nothing of a task
        assert not [task for task in tasks if task.encode() in path.read_bytes()], path
    naming = [
        path for path in (folder / logger).rglob("*") if path.is_file() and tasks[0].encode() in path.read_bytes()
    ]
    assert naming
    assert main(["forget", str(folder), "--task", tasks[0]]) == 0
    assert not (folder / logger).exists()


def test_the_listener_counts() -> None:
    """Or the test above could not fail: a program that does not go offline is noticed."""
    listener = Listener()
    program = "import urllib.request; urllib.request.urlopen('https://api.wandb.ai', timeout=5)"
    there = {**os.environ, "HTTPS_PROXY": listener.address, "https_proxy": listener.address, "NO_PROXY": ""}
    done = subprocess.run([sys.executable, "-c", program], env=there, capture_output=True, timeout=60)
    assert done.returncode
    assert listener.connections == 1


def test_a_run_goes_on_in_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    out = tmp_path / "run"
    words = [*WORDS, "--log", "mlflow", "--out", str(out)]
    assert main(words) == 0
    assert main([word if word != "num_tasks=2" else "num_tasks=3" for word in words]) == 0
    result = read_result(out / "run.json")
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("hatrack").experiment_id])
    assert run.info.status == "FINISHED"
    assert {"method": "hat", "lr": str(result.config["lr"])}.items() <= run.data.params.items()
    points = client.get_metric_history(run.info.run_id, f"tasks/{result.tasks[0].name}")
    assert [(point.step, point.value) for point in points] == [
        (row + 1, pytest.approx(scores[0].value)) for row, scores in enumerate(result.scores)
    ]
    losses = client.get_metric_history(run.info.run_id, "epochs/valid_loss")
    assert [point.step for point in losses] == [1, 2, 3, 4, 5, 6]


def test_an_interrupted_run_is_not_said_to_be_finished(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    request = RunRequest("demo", "hat", 0, tmp_path / "run", overrides={"epochs": 1, "num_tasks": 1, "limit": 20})
    logger = MLflowLogger(tmp_path / "logs")
    events = with_logs(prepare(request), logger)
    next(events)
    events.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("hatrack").experiment_id])
    assert run.info.status == "KILLED"
    for _ in with_logs(prepare(request), MLflowLogger(tmp_path / "logs")):
        pass
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_run_goes_on_in_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    out = tmp_path / "run"
    words = [*WORDS, "--log", "wandb", "--out", str(out)]
    assert main(words) == 0
    assert main([word if word != "num_tasks=2" else "num_tasks=3" for word in words]) == 0
    found = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    assert found
    assert len({path.name for path in found}) == 1, "the id stays"
    result = read_result(out / "run.json")
    names = (*(f"tasks/{task.name}" for task in result.tasks), "epochs/valid_loss", "average_accuracy")
    assert not missing(names, found)


def missing(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Return the names that none of the files holds, once the process of wandb has had time to write them.

    A run of wandb is finished a few milliseconds before its last records lie in its file.
    """
    end = time.monotonic() + 20
    while True:
        content = b"".join(path.read_bytes() for path in files)
        left = [name for name in names if name.encode() not in content]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)
