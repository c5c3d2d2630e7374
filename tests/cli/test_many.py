from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from hatrack.cli import main
from hatrack.cli.board import Board, Going, duration, seconds_left
from hatrack.cli.many import read_seeds
from hatrack.errors import InputError
from hatrack.experiments import Job, JobAdvanced, JobBegun, JobDone, JobFailed, RunRequest

TINY = ["--epochs", "1", "--set", "hidden=20", "--set", "limit=60", "--set", "num_tasks=2"]


@pytest.mark.slow
def test_comparing_from_plan_to_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    command = ["compare", "demo", "--methods", "random", *TINY, "--workers", "1", "--out", out]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 runs to do" in shown
    assert not Path(out).exists(), "a dry run writes nothing"

    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "joint seed 0: " in shown.out
    assert "(2 of 2 runs)" in shown.out
    assert "0.000" in shown.out, "the forgetting ratio of joint training"
    assert "-1.000" in shown.out, "the forgetting ratio of guessing"
    assert "\x1b" not in shown.out, "there is no terminal, so there must be no colour"

    assert main(command) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    assert main([*command, "--seeds", "0-1", "--dry-run"]) == 0
    assert "2 of 4 runs to do" in capsys.readouterr().out
    assert main([*command, "--set", "lr=0.7"]) == 2
    assert "other settings: lr (0.1 there, 0.7 now)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_a_comparison_with_a_failed_run_has_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "joint" / "seed0").mkdir(parents=True)
    (out / "joint" / "seed0" / "run.json").write_text("{")
    assert main(["compare", "demo", "--methods", "random", *TINY, "--workers", "1", "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "joint seed 0 failed: " in shown.out
    assert "is damaged" in shown.out
    assert f"to begin anew, remove {out / 'joint' / 'seed0'}" in shown.out.replace("\n", "")
    assert "1 of 2 runs failed; the same command tries them again" in shown.out
    assert json.loads((out / "random" / "seed0" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sdg"], "did you mean 'sgd'"),
        (["--methods", "sgd", "--seeds", "3-1"], "--seeds 0-9"),
        (["--methods", "sgd", "--workers", "0"], "--workers must be at least 1"),
        (["--methods", "sgd", "--threads", "0"], "--threads must be at least 1"),
        (["--methods", "sgd", "--executor", "dask"], "--scheduler"),
        (["--methods", "sgd", "--scheduler", "tcp://a:1"], "--executor dask"),
        (["--methods", "sgd", "--slurm", "timeout_min=3"], "--executor slurm"),
        (
            ["--methods", "sgd", "--executor", "dask", "--scheduler", "tcp://a:1", "--workers", "2"],
            "leave out --workers",
        ),
        (["--methods", "sgd", "--epochs", "1", "--set", "epochs=2"], "give one of them"),
        (["--methods", "sgd", "--set", "ewc.strength=1"], "--set ewc.strength=1 is about 'ewc', which is not compared"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "demo", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def listen_to_ctrl_c() -> None:
    """Processes that a shell puts into the background ignore it, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(tmp_path: Path) -> None:
    endless = ["--epochs", "100000", "--set", "lr_patience=100000", "--set", "hidden=20", "--set", "limit=60"]
    command = [sys.executable, "-m", "hatrack", "compare", "demo", "--methods", "sgd", *endless, "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "joint" / "seed0" / "run.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = "".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert error.strip() == "error: interrupted; the same command goes on from there"
    assert len(children) == 1
    assert not Path(f"/proc/{children[0]}").exists()
    assert not (tmp_path / "joint" / "seed0" / "failure.json").exists(), "what was stopped has not failed"


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_tuning_shows_the_best_setting_as_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "tune",
        "demo",
        "--method",
        "random",
        "--grid",
        "eval_batch_size=1000",
        *TINY,
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--dry-run"]) == 0
    assert "1 of 1 runs to do" in capsys.readouterr().out
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "best: --set random.eval_batch_size=1000" in said
    assert "chosen by the test samples" in said
    assert "--set tested_on=validation" in said
    assert "that tie" not in said
    grid = ["--grid", "eval_batch_size=2000", "--set", "tested_on=validation"]  # all samples in one batch with both
    assert main(["tune", "demo", "--method", "random", *grid, *TINY, "--out", str(tmp_path / "validated")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "chosen by validation samples" in said
    assert "--set tested_on" not in said
    assert re.search(r"eval_batch_size=2000 \d+\.\d+% tied", said)
    assert "the first of 2 that tie, with eval_batch_size=2000" in said
    record = json.loads((tmp_path / "validated" / "tuning.json").read_text())
    assert (record["chosen_on"], len(record["tied"])) == ("validation", 2)
    assert main(["tune", "demo", "--method", "sgd"]) == 2
    assert "sgd has no recorded grid" in capsys.readouterr().err


def test_seeds() -> None:
    assert read_seeds("0-3") == (0, 1, 2, 3)
    assert read_seeds("0,3,5") == (0, 3, 5)
    assert read_seeds("7, 0-1") == (7, 0, 1)
    for text in ("", "a", "1-", "-1", "2-1", "1,,2"):
        with pytest.raises(InputError, match="write --seeds"):
            read_seeds(text)


def test_remaining_time_worked_by_hand() -> None:
    assert seconds_left({}, [], [], 2) == 0.0
    assert seconds_left({}, [Going("a", 5.0, 0.0)], ["a"], 2) is None, "nothing is known yet"
    # a takes 10 s and is half done, b is not known and takes as long as a: (5 + 10 + 10) / 2
    assert seconds_left({}, [Going("a", 5.0, 0.5)], ["a", "b"], 2) == pytest.approx(12.5)
    # finished runs say how long theirs take: 20 for a, 40 for b
    assert seconds_left({"a": [10.0, 30.0], "b": [40.0]}, [], ["a", "b"], 1) == pytest.approx(60.0)
    # a run that was taken up at 80 % needed 4 s for 10 %, so it needs 4 s more
    assert seconds_left({}, [Going("a", 4.0, 0.9, start=0.8)], [], 1) == pytest.approx(4.0)
    # many workers do not make the last run quicker
    assert seconds_left({"a": [10.0]}, [Going("a", 1.0, 0.1)], [], 8) == pytest.approx(9.0)


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 61, 3599, 3700)] == ["0 s", "59 s", "1 min", "1 h 00 min", "1 h 02 min"]


def test_the_board_in_a_terminal_and_without_one() -> None:
    jobs = [Job(RunRequest("demo", method, seed, Path(method))) for method in ("sgd", "hat") for seed in (0, 1)]

    def shown(terminal: bool) -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
        board = Board(
            console,
            jobs,
            lambda job: (job.request.method, f"seed {job.request.seed}"),
            lambda job: "97.0%",
            [(jobs[0], 3.0)],
            workers=2,
            quiet=False,
        )
        with board:
            board.show(JobBegun(jobs[1]))
            board.show(JobAdvanced(jobs[1], 0.5))
            board.show(JobBegun(jobs[2]))
            board.show(JobFailed(jobs[2], "no luck"))
            board.show(JobBegun(jobs[3]))
            board.show(JobDone(jobs[3]))
            console.print(board._table())
        return file.getvalue()

    plain = shown(False)
    assert "1 of 4 runs are finished already" in plain
    assert "hat seed 0 failed: no luck (2 of 4 runs" in plain
    assert "hat seed 1: 97.0% (3 of 4 runs" in plain
    row = {
        line.split()[0]: line.split()[1:] for line in plain.splitlines() if line.strip().startswith(("sgd ", "hat "))
    }
    assert row["sgd"] == ["97.0%", "50%", "…"]
    assert row["hat"] == ["failed", "97.0%"]
    assert "\x1b[?25l" in shown(True), "the cursor is hidden while the table is redrawn"


def test_a_folder_is_for_one_kind_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = {
        "run.json": (["run", "demo", "--method", "random"], "a single run"),
        "comparison.json": (["compare", "demo", "--methods", "random"], "a comparison"),
        "tuning.json": (["tune", "demo", "--method", "sgd", "--grid", "lr=0.1"], "a search of settings"),
    }
    for name, (_, what) in commands.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("{}")
        for other, (command, _) in commands.items():
            if other != name:
                assert main([*command, "--out", str(folder)]) == 2
                said = capsys.readouterr().err
                assert said == f"error: {folder} holds {what} ({name}); choose another folder (--out)\n"
        assert [path.name for path in folder.iterdir() if path.name != ".lock"] == [name]
