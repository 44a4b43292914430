"""The plots of the validation curves."""

import numpy as np
import pytest
from PIL import Image

from analysis import sweeps
from common.errors import UserError
from common.records import RecordKey
from tests.recorded import write_record


def leave(results, model, dataset="digits", variant=None, seed=0, peak=20, details=True):
    """Write a record whose curve has its top at the weight decay number `peak`."""
    decays = np.logspace(-6, 5, 45)
    val = 90 - np.abs(np.arange(45) - peak)
    sweep = {
        "weight_decay": decays.tolist(),
        "C": (1 / decays).tolist(),
        "val": val.astype(float).tolist(),
        "iterations": [3] * 45,
        "converged": [k % 5 > 0 for k in range(45)],
        "seconds": 1.0,
    }
    write_record(
        results,
        RecordKey("demo", "recognition", model, dataset, seed, variant),
        {"accuracy": 88.0},
        protocol={"metric": "accuracy", "weight_decay": float(decays[peak]), "validation": 90.0},
        details={"sweep": sweep} if details else None,
    )


def command(tmp_path, *more):
    return ["--results", str(tmp_path / "results"), "--reports", str(tmp_path / "reports"), *more]


def test_a_figure_a_data_set_with_a_line_a_model(tmp_path, capsys, monkeypatch):
    results, lines = tmp_path / "results", {}
    for model, peak in (("simsiam_gsg", 20), ("simsiam", 25), ("mine", 5)):
        leave(results, model, peak=peak)
    leave(results, "simsiam", "scenes", variant="any-size")
    leave(results, "byol", "digits", seed=1)  # another seed: not shown
    make = sweeps._make
    monkeypatch.setattr(
        sweeps, "_make", lambda records, stem: (lines.update({stem.name: list(records)}), make(records, stem))
    )
    sweeps.main(command(tmp_path))
    assert lines == {"sweep-digits": ["simsiam", "simsiam_gsg", "mine"], "sweep-scenes-any-size": ["simsiam"]}
    for stem in lines:
        pixels = np.asarray(Image.open(tmp_path / "reports/demo" / f"{stem}.png").convert("RGB"))
        assert pixels.std() > 5
        assert (tmp_path / "reports/demo" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    capsys.readouterr()
    sweeps.main(command(tmp_path))
    assert "written" not in capsys.readouterr().out
    leave(results, "mine", peak=7)
    sweeps.main(command(tmp_path))
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown if "sweep-" in line] == ["written", "up to date"]


def test_without_curves_the_command_that_makes_them_is_named(tmp_path):
    leave(tmp_path / "results", "simsiam", details=False)
    with pytest.raises(
        UserError, match=r"no validation curve of seed 0 .* make them with `make transfer-all PROFILE=demo`"
    ):
        sweeps.main(command(tmp_path))


@pytest.mark.parametrize(
    "sweep",
    [None, [], {}, {"val": [1.0]}, {"weight_decay": [1.0], "val": [1.0, 2.0], "converged": [True]},
     {"weight_decay": [0.0], "val": [1.0], "converged": [True]}, {"weight_decay": [1], "val": ["1"], "converged": [1]}],
)  # fmt: skip
def test_a_sweep_that_is_not_whole_is_named_and_the_others_are_drawn(tmp_path, sweep, capsys):
    key = RecordKey("demo", "recognition", "mine", "digits", 0)
    chosen = {"metric": "accuracy", "weight_decay": 1.0, "validation": 90.0}
    path = write_record(tmp_path / "results", key, {"accuracy": 1.0}, protocol=chosen, details={"sweep": sweep})
    with pytest.raises(UserError, match=f"{path} holds a sweep that is not whole"):
        sweeps.main(command(tmp_path))
    leave(tmp_path / "results", "simsiam")
    with pytest.raises(UserError, match="skipped 1 file, see above"):
        sweeps.main(command(tmp_path))
    out, err = capsys.readouterr()
    assert "written: " in out
    assert f"skipped: {path} holds a sweep that is not whole" in err
