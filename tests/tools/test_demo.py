"""The demo's driver: stages in turn, exit codes passed on."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from common import cli
from common.cli import method_list
from tools import demo


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Return a maker of stages: modules of their own, which note their arguments in `<name>.txt` and then run code."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))

    def make(name, code=""):
        note = (
            f"import sys, pathlib\npathlib.Path({str(tmp_path / name)!r} + '.txt').write_text(' '.join(sys.argv[1:]))"
        )
        (tmp_path / f"{name}.py").write_text(f"{note}\n{textwrap.dedent(code)}\n")
        return (name, [name, "--of", name])

    return make


def test_every_stage_runs_in_turn_with_the_profile_and_the_data(stage, tmp_path, monkeypatch, capfd):
    second = stage("second", f"assert pathlib.Path({str(tmp_path / 'first.txt')!r}).exists()")
    monkeypatch.setattr(demo, "STAGES", (stage("first"), second))
    demo.main(["--data", "here"])
    assert (tmp_path / "first.txt").read_text() == "--of first --profile demo --data here"
    assert (tmp_path / "second.txt").read_text() == "--of second --profile demo --data here"
    out = capfd.readouterr().out
    assert out.index("--- 1/2 first") < out.index("--- 2/2 second") < out.index("stage          seconds")
    assert [line.split()[0] for line in out.splitlines()[-5:-2]] == ["first", "second", "all"]
    assert out.splitlines()[-1] == f"the page: {Path('reports/demo/index.html').resolve()}"


def test_every_stage_has_as_many_threads_whatever_the_environment_says(stage, tmp_path, monkeypatch, capfd):
    count = f"""
        import json, numpy, torch
        from threadpoolctl import threadpool_info
        counts = {{pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()}}
        counts["torch"] = torch.get_num_threads()
        pathlib.Path({str(tmp_path / "threads")!r}).write_text(json.dumps(counts))
        """
    for number in ("1", "3"):
        for library in ("OMP", "MKL", "OPENBLAS"):
            monkeypatch.setenv(f"{library}_NUM_THREADS", number)
        monkeypatch.setattr(demo, "STAGES", (stage("first", count),))
        demo.main([])
        counts = json.loads((tmp_path / "threads").read_text())
        assert counts.pop("openblas") == 1
        assert set(counts.values()) == {2}
        assert capfd.readouterr().out.startswith("2 threads")


@pytest.mark.parametrize(
    ("code", "expected"),
    [("sys.exit(3)", 3), ("sys.exit(1)", 1), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_a_failing_stage_stops_the_demo_with_its_code(stage, tmp_path, monkeypatch, code, expected):
    monkeypatch.setattr(demo, "STAGES", (stage("first", code), stage("second")))
    with pytest.raises(SystemExit) as caught:
        demo.main([])
    assert caught.value.code == expected
    assert (tmp_path / "first.txt").exists()
    assert not (tmp_path / "second.txt").exists()


def test_a_stage_that_was_interrupted_interrupts_the_demo(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "STAGES", (stage("first", f"sys.exit({cli.INTERRUPTED})"), stage("second")))
    with pytest.raises(KeyboardInterrupt):
        demo.main([])
    assert not (tmp_path / "second.txt").exists()


@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_signal_ends_the_stage_first_and_then_the_demo_with_its_code(stage, tmp_path, number, send):
    """Ctrl-C reaches the whole group, as a terminal sends it; a scheduler's SIGTERM the driver alone."""
    slow = stage(
        "slow",
        """
        import signal, time
        from common import cli
        from common.errors import Stopped

        def stop(number, frame):
            raise Stopped(number, "stopped")

        def main():
            signal.signal(signal.SIGTERM, stop)
            try:
                print("ready", flush=True)
                time.sleep(60)
            finally:
                time.sleep(0.3)
                pathlib.Path(__file__).with_suffix(".saved").touch()
        cli.run(main)
        """,
    )
    stages = f"{slow!r}, {stage('second')!r}"
    script = f"from common import cli\nfrom tools import demo\ndemo.STAGES = ({stages})\ncli.run(lambda: demo.main([]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path.cwd(),
    )
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    send(process.pid, number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert (tmp_path / "slow.saved").exists()
    assert not (tmp_path / "second.txt").exists()


def test_the_stages_are_modules_of_this_project_that_take_these_arguments():
    for _, (module, *arguments) in demo.STAGES:
        assert Path(module.replace(".", "/")).with_suffix(".py").exists(), module
        assert len(arguments) % 2 == 0 or "--resume" in arguments
    reading = [arguments for _, (_, *arguments) in demo.STAGES[:-2]]
    assert all(arguments[:2] == ["--method", demo.METHODS] for arguments in reading)
    assert method_list(demo.METHODS) == ["untrained", "simsiam", "simsiam_gsg"]
