"""The command line, as a user meets it: what it prints, where, and its exit status."""

import json
import os
import pty
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from tailorpo_trainer import cli, errors, training
from tailorpo_trainer.cli import error_exit
from tailorpo_trainer.telemetry.exporters import TelemetryOptions
from tailorpo_trainer.telemetry.termination import TerminationReporter

JOB = """\
apiVersion: tailorpo.dev/v1alpha1
kind: TailorPOJob
metadata: {name: vivid}
spec:
  prompts: {builtin: animals}
  rewards: [{name: colourfulness}]
  method: {name: tailorpo}
"""
COMMAND = [sys.executable, "-c", "import sys; from tailorpo_trainer.cli import main; sys.exit(main())"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good document in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAILORPO_DEBUG", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    return file


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `loop.run` was called with, instead of training; a value put in front is raised."""
    calls: list[Any] = []

    def run(job: Any, output: Path, **options: Any) -> None:
        if calls and isinstance(calls[0], BaseException):
            raise calls[0]
        assert isinstance(options.pop("reporter"), TerminationReporter)
        calls.append({"job": job, "output": output, **options})

    stand_in = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "tailorpo_trainer.training.loop", stand_in)
    monkeypatch.setattr(training, "loop", stand_in, raising=False)
    return calls


def start(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli.app.commands:
        assert f"\n  {name}" in out


@pytest.mark.parametrize("name", sorted(cli.app.commands))
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "-h"]) == 0
    assert f"tailorpo {name}" in capsys.readouterr().out


def test_help_loads_nothing_that_is_slow() -> None:
    program = (
        "import sys; from tailorpo_trainer.cli import main; main(['--help']);"
        "sys.exit(bool({'torch', 'pydantic', 'ruamel', 'numpy', 'rich', 'tailorpo_trainer.spec.job'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tailorpo {version('tailorpo')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "No such command 'rum'"),
        (["run"], "Missing argument 'FILE'"),
        (["validate"], "Missing argument 'FILE...'"),
        (["run", "job.yaml", "--sett", "a=1"], "No such option"),
        (["run", "job.yaml", "--output", "job.yaml"], "is a file"),
        (["run", "job.yaml", "--quiet", "--json"], "--quiet, --json and --no-progress exclude each other"),
        (["run", "job.yaml", "--metrics-port", "70000"], "'--metrics-port'"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
    ],
)
def test_wrong_use_exits_2(job: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


# validate


def test_good_documents(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("two.yaml").write_text(JOB + "---\n" + JOB)
    assert cli.main(["validate", "job.yaml", "two.yaml"]) == 0
    assert capsys.readouterr().out == "job.yaml: ok (1 job)\ntwo.yaml: ok (2 jobs)\n"


def test_all_problems_of_all_files(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(JOB.replace("tailorpo}", "tailor}").replace("animals", "animal"))
    Path("b.yaml").write_text("[")
    assert cli.main(["validate", "a.yaml", "job.yaml", "b.yaml", "none.yaml"]) == 78
    out, err = capsys.readouterr()
    assert out == "job.yaml: ok (1 job)\n"
    assert err.splitlines() == [
        "a.yaml:5: spec.prompts.builtin: 'animal' is not one of 'animals', 'tiny-animals' or 'tiny-animals-held-out': "
        "did you mean 'animals'?",
        "a.yaml:7: spec.method.name: 'tailor' is not one of 'tailorpo', 'tailorpo-g', 'spo', 'd3po' or 'ddpo': "
        "did you mean 'tailorpo'?",
        "b.yaml:1: is not YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
        "none.yaml: cannot be read: No such file or directory",
    ]


def test_what_is_allowed_and_most_likely_a_mistake(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts that the text encoder cuts, and a file that could be read here and is none."""
    Path("long.jsonl").write_text(json.dumps({"prompt": "very " * 80 + "old cat"}))
    Path("a.yaml").write_text(JOB.replace("builtin: animals", "file: long.jsonl"))
    Path("b.yaml").write_text(JOB.replace("builtin: animals", "file: a.yaml"))
    Path("c.yaml").write_text(JOB.replace("builtin: animals", "file: /in/the/pod.txt"))
    assert cli.main(["validate", "a.yaml", "b.yaml", "c.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == "a.yaml: ok (1 job)\nb.yaml: ok (1 job)\nc.yaml: ok (1 job)\n"
    assert err.splitlines() == [
        "warning: a.yaml: vivid: spec.prompts: at least 1 of 1 prompts are longer than the 75 tokens that the model's "
        "text encoder reads: the rest of them has no effect",
        "warning: b.yaml: vivid: spec.prompts: prompts file a.yaml: .yaml is not read: give text with one prompt a "
        "line, .jsonl or .json",
    ]


def test_the_examples_are_good(capsys: pytest.CaptureFixture[str]) -> None:
    examples = sorted(map(str, (Path(__file__).parents[3] / "examples").glob("*.yaml")))
    assert examples
    assert cli.main(["validate", *examples]) == 0, capsys.readouterr().err


def test_names_of_files_may_be_anything(job: Path) -> None:
    odd = os.fsdecode(b"a\xff\nb.yaml")
    job.rename(odd)
    done = start("validate", odd)
    assert (done.returncode, done.stdout) == (0, "a\ufffd\nb.yaml: ok (1 job)\n")
    done = start("run", odd, "--set", "spec.lora.rank=0")
    assert done.returncode == 78


# run


def test_run_passes_on_what_was_asked(job: Path, trained: list[dict[str, Any]]) -> None:
    assert cli.main(["run", str(job)]) == 0
    [call] = trained
    assert call.pop("job").metadata.name == "vivid"
    assert call == {
        "output": None,
        "base": job.parent,
        "fresh": False,
        "display": "auto",
        "telemetry": TelemetryOptions(),
    }


@pytest.mark.parametrize(("option", "display"), [("--quiet", "quiet"), ("--json", "json"), ("--no-progress", "plain")])
def test_run_options(job: Path, trained: list[dict[str, Any]], option: str, display: str) -> None:
    settings = ["--set", "spec.lora.rank=3", "--set", "spec.rewards[0].weight=2"]
    assert cli.main(["run", "job.yaml", "--output", "out", "--fresh", option, *settings]) == 0
    [call] = trained
    spec = call.pop("job").spec
    assert (spec.lora.rank, spec.rewards[0].weight) == (3, 2)
    assert call == {
        "output": Path("out"),
        "base": Path(),
        "fresh": True,
        "display": display,
        "telemetry": TelemetryOptions(),
    }


def test_who_looks_on_may_be_said_by_option_or_environment(
    job: Path, trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["run", "job.yaml", "--metrics-port", "0", "--metrics-stall-seconds", "5", "--tensorboard"]) == 0
    monkeypatch.setenv("TAILORPO_METRICS_PORT", "9090")
    monkeypatch.setenv("TAILORPO_METRICS_HOST", "0.0.0.0")
    monkeypatch.setenv("TAILORPO_MLFLOW", "true")
    assert cli.main(["run", "job.yaml", "--wandb"]) == 0
    assert [call["telemetry"] for call in trained] == [
        TelemetryOptions(port=0, stall_seconds=5, tensorboard=True),
        TelemetryOptions(port=9090, host="0.0.0.0", mlflow=True, wandb=True),
    ]


def test_run_says_what_only_a_cluster_reads(
    job: Path, trained: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    policy = "  runPolicy: {stallTimeoutSeconds: 9, backoffLimit: 1}\n"
    job.write_text(JOB + "  workers: 2\n  processesPerWorker: 1\n" + policy + "  checkpoint: {secretName: s3}\n")
    cli.main(["run", "job.yaml"])
    fields = "spec.workers, spec.runPolicy.backoffLimit, spec.checkpoint.secretName"
    assert capsys.readouterr().err == f"job.yaml: only a cluster reads {fields}: left out here\n"
    cli.main(["run", "job.yaml", "--quiet"])
    job.write_text(JOB)
    cli.main(["run", "job.yaml"])
    assert capsys.readouterr() == ("", "")
    assert len(trained) == 3


def test_run_needs_one_good_document(
    job: Path, trained: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "job.yaml", "--set", "spec.lora.rank=0"]) == 78
    assert capsys.readouterr().err == ("--set spec.lora.rank=0: spec.lora.rank: 0 is too small: must be at least 1\n")
    job.write_text(JOB + "---\n" + JOB)
    assert cli.main(["run", "job.yaml"]) == 78
    assert capsys.readouterr().err == "job.yaml: holds 2 TailorPOJob documents: give a file with one\n"
    assert trained == []


def test_run_without_the_trainers_packages(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["run", "job.yaml"]) == 78
    assert capsys.readouterr().err == ("error: the trainer is not installed here: pip install 'tailorpo[trainer]'\n")


def test_python_m_runs_a_job(job: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tailorpo_trainer", "job.yaml", "--set", "spec.lora.rank=0"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("--set spec.lora.rank=0: ")


# How it ends


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (errors.DataError("prompts file p.txt: holds no prompt"), 65, "error: prompts file p.txt: holds no prompt"),
        (errors.UnavailableError("http://a: gone"), 69, "error: http://a: gone"),
        (errors.RewardError("a reward raised"), 70, "error: a reward raised"),
        (errors.StoppedError("stopped after iteration 3"), 75, "stopped after iteration 3"),
        (errors.NotFiniteError("the loss is nan"), 76, "error: the loss is nan"),
        (errors.ConfigurationError("two\nlines"), 78, "error: two\nlines"),
        (MemoryError(), 71, "error: out of memory: an allocation failed"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out"), 71, "error: out of memory: CUDA out"),
        (OSError(28, "Full", "a"), 71, "error: the disk is full: [Errno 28] Full: 'a'"),
        (OSError(30, "Read-only file system", "a"), 78, "error: a: no permission here (Read-only file system)"),
        (OSError(116, "Stale file handle", "a"), 69,
         "error: a: the storage does not answer as it should (Stale file handle)"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_each_end_has_its_status(
    job: Path, trained: list[Any], error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.append(error)
    assert cli.main(["run", "job.yaml"]) == status
    assert capsys.readouterr() == ("", message + "\n" if message else "")


@pytest.mark.parametrize("error", [KeyError("x"), EOFError("short"), BrokenPipeError(32, "a socket's, not ours")])
def test_a_bug_leaves_a_log(
    job: Path, trained: list[Any], error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(job.parent))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trained.append(error)
    assert cli.main(["run", "job.yaml"]) == 70
    [log] = job.parent.glob("tailorpo-crash-*.log")
    shown = " ".join(capsys.readouterr().err.split())  # on a terminal, text is wrapped
    advice = f"This is a bug of tailorpo. Please report it with this log: {log}"
    assert shown.endswith(f"internal error: {type(error).__name__}: {error} {advice}")
    assert log.read_text().startswith("Traceback")
    assert type(error).__name__ in log.read_text()


@pytest.mark.parametrize("asked", [True, False])
def test_a_bug_is_shown_whole_when_asked_or_where_nobody_sits(
    job: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: bool
) -> None:
    """A file would be lost with the container of a pod."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: asked)
    if asked:
        monkeypatch.setenv("TAILORPO_DEBUG", "1")
    trained.append(ValueError("x"))
    assert cli.main(["run", "job.yaml"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "\ninternal error: ValueError: x\nThis is a bug of tailorpo. Please report it with the lines above.\n" in err


def test_a_bug_is_told_where_no_log_can_be(
    job: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(job.parent / "missing"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trained.append(ValueError("x"))
    assert cli.main(["run", "job.yaml"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(job: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "validate", *["job.yaml"] * 3], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("no_color", "prefix"), [("", "\x1b[31m\x1b[1merror: \x1b[0m"), ("1", "error: ")])
def test_the_sign_of_an_error_is_red_on_a_terminal(no_color: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, other_end = pty.openpty()
    monkeypatch.setenv("NO_COLOR", no_color)
    with open(other_end, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        error_exit.message("bad", "error")
        assert os.read(terminal, 100).decode() == f"{prefix}bad\r\n"
    os.close(terminal)


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert cli.COMPLETE in out
    assert f"{shell}_complete" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [("tailorpo va", "plain,validate"), ("tailorpo run --fr", "plain,--fresh"), ("tailorpo run jo", "file,jo")],
)
def test_the_shell_gets_its_completions(words: str, expected: str) -> None:
    count = len(words.split()) - 1
    done = start(COMP_WORDS=words, COMP_CWORD=str(count), **{cli.COMPLETE: "bash_complete"})
    assert expected in done.stdout.splitlines()


def test_the_script_of_bash_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["completion", "bash"])
    done = subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_documents_run_too(job: Path, trained: list[dict[str, Any]]) -> None:
    assert cli.main(["run", "job.yaml"]) == 0
    values = trained[0]["job"].model_dump(mode="json", by_alias=True, exclude_none=True)
    Path("job.json").write_text(json.dumps(values))
    assert cli.main(["run", "job.json"]) == 0
    assert trained[1]["job"] == trained[0]["job"]
