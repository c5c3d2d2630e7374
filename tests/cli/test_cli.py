from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from hatrack.cli import main
from hatrack.experiments import RunRequest, read_result

QUICK = ["--epochs", "2", "--set", "hidden=40,30", "--set", "limit=120", "--threads", "1"]


def hatrack(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hatrack", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},  # two runs of two threads each crawl on two cores
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_run_verify_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    command = ["run", "demo", "--method", "hat", *QUICK, "--out", out]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "task 5/5 bag-ankleboot" in shown.out
    assert "forgetting 0.00 points" in shown.out
    assert "\x1b" not in shown.out, "there is no terminal, so there must be no colour"
    before = (tmp_path / "run" / "run.json").read_bytes()

    assert main(command) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert (tmp_path / "run" / "run.json").read_bytes() == before

    assert main(["verify", out]) == 0
    assert "verified" in capsys.readouterr().out

    assert main([*command, "--set", "lr=0.2"]) == 2
    assert "other settings: lr (0.1 there, 0.2 now)" in capsys.readouterr().err
    command[command.index("--method") + 1] = "sgd"
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "holds a run of another method (hat there, sgd now); choose another folder (--out)" in said
    assert "s_max" not in said, "settings that the other method lacks are not listed beside it"


def test_the_recorded_command_makes_the_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo", "--method", "random", *QUICK, "--out", str(tmp_path / "a"), "--quiet"]) == 0
    recorded = json.loads((tmp_path / "a" / "run.json").read_text())
    command = recorded["command"].split()
    assert command[0] == "hatrack"
    assert main([*command[1:], "--out", str(tmp_path / "b"), "--quiet"]) == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text())["logits_sha256"] == recorded["logits_sha256"]
    assert capsys.readouterr() == ("", "")


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", "--method", "random", "--seed", "3", "--quiet"]) == 0
    assert (tmp_path / "runs" / "demo-random-seed3" / "run.json").exists()
    assert (tmp_path / "runs" / "demo-random-seed3" / "net.hat").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope", "--method", "hat"], "nope"),
        (["run", "demo", "--method", "hta"], "did you mean 'hat'"),
        (["run", "demo"], "--method"),
        (["run", "demo", "--method", "hat", "--seed", "x"], "--seed"),
        (["run", "demo", "--method", "hat", "--seed", "1.7"], "--seed"),
        (["run", "demo", "--method", "hat", "--epochs", "1.5"], "--epochs"),
        (["run", "demo", "--method", "hat", "--epochs", "1", "--set", "epochs=2"], "give one of them"),
        (["run", "demo", "--method", "hat", "--threads", "100000"], "too much for this machine"),
        (["run", "demo", "--method", "hat", "--seed", "-1"], "seed must be 0 or more"),
        (["run", "demo", "--method", "hat", "--set", "lrr=1"], "did you mean 'lr'"),
        (["run", "demo", "--method", "hat", "--set", "lr"], "write --set key=value"),
        (["run", "demo", "--method", "hat", "--set", "lr=1", "--set", "lr=2"], "given twice"),
        (["run", "demo", "--method", "hat", "--threads", "0"], "--threads must be at least 1"),
        (["run", "demo", "--method", "hat", "--data", "absent-folder"], "absent-folder does not exist"),
        (["verify", "absent-folder"], "holds no run.json"),
        (["list", "nope"], "nope"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "wrong input must leave nothing behind"


def test_a_damaged_checkpoint_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", "demo", "--method", "random", "--out", str(out), "--quiet"]) == 0
    content = bytearray((out / "net.hat").read_bytes())
    content[-1] ^= 1
    (out / "net.hat").write_bytes(content)
    assert main(["verify", str(out)]) == 1
    assert "net.hat is damaged" in capsys.readouterr().err


def test_out_must_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["run", "demo", "--method", "random", "--out", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder as --out" in capsys.readouterr().err


def test_a_network_that_does_not_fit_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = ["--set", "hidden=10000000,10000000", "--out", str(tmp_path / "run")]
    assert main(["run", "demo", "--method", "sgd", *huge]) == 1
    assert "not enough memory" in capsys.readouterr().err


@pytest.mark.slow
def test_output_that_cannot_be_written_is_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "hatrack", "list"]
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "No space left" in process.stderr


@pytest.mark.slow
def test_a_terminal_without_accents_is_no_traceback() -> None:
    shown = hatrack("list", "methods", PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Serr? et al." in shown.stdout


@pytest.mark.parametrize("what", [[], ["experiments"], ["methods"], ["datasets"]])
def test_list(what: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *what]) == 0
    shown = capsys.readouterr().out
    expected = {"experiments": "split-fashion-mnist", "methods": "joint", "datasets": "fashion-mnist-subset"}
    for name, entry in expected.items():
        assert (entry in shown) == (not what or what == [name])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder that the demo has kept its two runs in, and the seconds that it took."""
    out = tmp_path_factory.mktemp("demo")
    start = time.perf_counter()
    shown = hatrack("demo", "--out", str(out))
    seconds = time.perf_counter() - start
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.count("accuracy in %") == 2
    return out, seconds


@pytest.mark.slow
def test_demo_shows_forgetting_and_its_cure(demo: tuple[Path, float]) -> None:
    folder, seconds = demo
    assert seconds < 60
    figures = {method: json.loads((folder / method / "run.json").read_text())["metrics"] for method in ("sgd", "hat")}
    assert figures["hat"]["forgetting"] == 0.0
    assert figures["sgd"]["forgetting"] > 0.05
    assert figures["hat"]["average_accuracy"] > 0.95


@pytest.mark.slow
def test_the_demo_takes_up_its_own_folder_with_other_threads(demo: tuple[Path, float], tmp_path: Path) -> None:
    shutil.copytree(demo[0], tmp_path, dirs_exist_ok=True)
    again = hatrack("demo", "--out", str(tmp_path), OMP_NUM_THREADS="2")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("is finished; nothing to do") == 2


@pytest.mark.slow
def test_demo_quiet_prints_nothing_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    brief = partial(RunRequest, overrides={"epochs": 1, "hidden": (40, 30), "limit": 120})
    monkeypatch.setattr("hatrack.experiments.RunRequest", brief)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    threads = torch.get_num_threads()
    try:
        assert main(["demo", "--quiet", "--out", "kept"]) == 0
        assert read_result(tmp_path / "kept/hat/run.json").environment["threads"] == 1
    finally:
        torch.set_num_threads(threads)


def listen_to_ctrl_c() -> None:
    """Tests that a shell started in the background inherit deaf ears, and would pass them on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_keeps_finished_tasks_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "demo", "--method", "hat", "--epochs", "20", "--threads", "1"]
    arguments += ["--set", "hidden=200,200", "--set", "num_tasks=3"]
    command = [sys.executable, "-m", "hatrack", *arguments, "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    ) as process:
        assert process.stdout is not None
        assert "task 1/3" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "error: interrupted; the same command goes on from there\n"
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["status"] == "running"
    assert kept["accuracy"][0][0] is not None

    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert "hat: taking up after" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    one, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "whole"))
    assert one["logits_sha256"] == other["logits_sha256"]


@pytest.mark.slow
def test_ctrl_c_before_anything_has_begun_is_one_line() -> None:
    """Importing torch takes a second, in which people press keys, too."""
    start = [sys.executable, "-c", "import sys, hatrack_start; sys.exit(hatrack_start.main())", "list"]
    with subprocess.Popen(
        start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    ) as process:
        while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert (said, errors, process.returncode) == ("", "error: interrupted\n", 130)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["run"], ["demo"], ["list"], ["verify"]):
        assert main([*command, "--help"]) == 0
        assert "Usage: hatrack" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.2.0"


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = subprocess.run(
        f"{sys.executable} -m hatrack list | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert process.stderr == ""


@pytest.mark.parametrize(("setting", "shown"), [("x[/y]=1", "'x[/y]'"), ("lr=[bold]", "lr=[bold] does not fit")])
def test_what_a_user_typed_is_not_read_as_markup(
    setting: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "demo", "--method", "hat", "--set", setting, "--out", str(tmp_path / "run")]) == 2
    assert shown in capsys.readouterr().err


def test_a_folder_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s[/x] [b]1"
    for _ in range(2):
        assert main(["run", "demo", "--method", "random", "--out", str(out)]) == 0
        assert "s[/x] [b]1" in capsys.readouterr().out
