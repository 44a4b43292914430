"""make doctor: one row for each thing that a run needs, and a code that says whether one fails."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.sources import SOURCES, NotPublishedError
from tests.transfer import small
from tools import doctor

ROOT = Path(doctor.__file__).parents[1]


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """Return the function that runs `make doctor` in an empty folder and returns name -> (status, what it says)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "packages", lambda: "as locked")  # the repository's own tests compare the lock

    def run(*arguments, fails=""):
        if fails:
            with pytest.raises(UserError, match=f"^failed: {fails}; "):
                doctor.main(arguments)
        else:
            doctor.main(arguments)
        return {
            name: rest for name, *rest in re.findall(r"^(\S+) +(ok|note|FAILS) +(\S.*)$", capsys.readouterr().out, re.M)
        }

    return run


def test_an_empty_folder_lacks_data_and_needs_none(table, tmp_path):
    found = table()
    assert found["mmcv"][0] == found["torch"][0] == found["memory"][0] == "ok"
    assert found["dtd"] == ["note", "missing; run `make data DATASET=dtd`"]
    assert {name for name, source in SOURCES.items() if not source.embedded and not source.parts} <= {*found}
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_named_and_the_other_rows_stand(table, tmp_path):
    (tmp_path / "results").write_text("a file where a folder belongs")
    small.cifar10(tmp_path / "data")
    (tmp_path / "data/dtd").mkdir()
    found = table(fails="results/, dtd")
    assert found["results/"] == ["FAILS", "results cannot be written (Not a directory); correct it or its permissions"]
    assert found["dtd"][0] == "FAILS"
    assert found["cifar10"][0] == "note"  # whole, but not of the published size


@pytest.mark.parametrize(
    ("error", "status"),
    [(UserError("no"), "FAILS"), (NotPublishedError("small"), "note"), (ValueError("x\ny"), "FAILS")],
)
def test_an_error_is_a_row(error, status):
    def find():
        raise error

    check = doctor.Check("a", True, find)
    assert check.status()[0] == status
    assert len(check.status()[1].splitlines()) == 1
    assert check._replace(needed=False).status()[0] == "note"


def test_packages_are_compared_with_the_lock(tmp_path, monkeypatch):
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# a comment\npytest==0.1 \\\n    --hash=sha256:00\nnvidia-none==1\nno.such_thing==2 ; python_version > '3'\n"
        "nor-this==1 ; python_version < '3'\n"
    )
    assert {name: str(pin.specifier) for name, pin in doctor.locked(lock).items()} == {
        "pytest": "==0.1", "nvidia-none": "==1", "no-such-thing": "==2"
    }  # fmt: skip
    pins = doctor.locked(lock)
    monkeypatch.setattr(doctor, "locked", lambda: pins)
    with pytest.raises(UserError, match=r"pytest \S+ instead of 0\.1, no-such-thing; run `make setup`$"):
        doctor.packages()


def test_before_set_up_it_says_what_is_missing():
    done = subprocess.run([sys.executable, "-S", "-m", "tools.doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No module named 'torch'; run `make setup`")
