"""The study on CIFAR-10: its grid of runs, and the report that is made from their records (study/protocol.md).

make study-report
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.special import stdtrit  # scipy.stats takes a second to import

from analysis.names import model_name
from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.names import UNTRAINED
from common.records import RecordKey, read_record

ROOT = Path("study")
SEEDS = (0, 1, 2)
LEAST = 3  # pairs for an interval
COLLAPSED = 0.1  # of the standard deviation of evenly spread directions
MARGIN, CHEAP, DEAR = 1.0, 0.75, 0.9  # question 6: points, and shares of the time
FAILED = ".failed.json"  # what a run that failed leaves beside the place of its record


@dataclass(frozen=True)
class Scale:
    """What a scale changes of PROFILE=cifar10: arguments of pretrain.train, and entries of its config.

    A run saves its state every `saving` steps, so that SIGKILL costs about a minute; this is not part of its settings.
    """

    epochs: int
    batch: int
    said: str
    arguments: tuple[str, ...]
    options: Mapping[str, Any]
    saving: int


_BOTH = {"evaluation.workers": 0}
SCALES = {
    "cpu": Scale(
        16,
        128,
        "a ResNet-18 of a quarter of the width, 10,000 images, 16 epochs, batch 128",
        ("--amp", "bf16", "--channels-last"),
        {
            "model.backbone.name": "resnet18_cifar_quarter",
            "train_dataloader.dataset.images.first": 10_000,
            "train_dataloader.num_workers": 0,
            "train_dataloader.persistent_workers": False,
            "evaluation.images.first": 10_000,
            "custom_hooks.0.interval": 8,
        }
        | _BOTH,
        78,
    ),
    "gpu": Scale(
        20,
        512,
        "a ResNet-18, 50,000 images, 20 epochs, batch 512",
        ("--amp", "bf16", "--channels-last", "--device-views", "--compile", "reduce-overhead"),
        {"auto_scale_lr.enable": True, "custom_hooks.0.interval": 5} | _BOTH,
        500,
    ),
}


@dataclass(frozen=True)
class Arm:
    """One way to pretrain: a METHOD, at another batch or for several times the epochs, 0 being none."""

    method: str
    batch: int | None = None
    times: int = 1

    @property
    def name(self) -> str:
        """Its name in records."""
        return (
            self.method + (f"-batch{self.batch}" if self.batch else "") + (f"-x{self.times}" if self.times > 1 else "")
        )

    @property
    def title(self) -> str:
        """Its name in the report."""
        more = [f"batch {self.batch}"] if self.batch else []
        more += [f"{self.times} times the epochs"] if self.times > 1 else []
        return model_name(self.method) + "".join(f", {word}" for word in more)

    @property
    def cost(self) -> int:
        """About how much an epoch computes: forward passes per image, a backward pass being two."""
        both = "_gsg" in self.method and "shared_views" not in self.method
        learned = 4 if both and "chosen_only" not in self.method else 2
        return (3 * learned + (0 if "byol" not in self.method else 4 if both else 2)) * self.times


@dataclass(frozen=True)
class Contrast:
    """A comparison: `arm` minus `base`."""

    arm: Arm
    base: Arm


@dataclass(frozen=True)
class Question:
    """A question of the protocol, what is compared, and by which of its rules it is answered."""

    number: int
    asks: str
    rule: Literal["higher", "collapse", "same"]
    contrasts: tuple[Contrast, ...]
    part: str = ""
    beside: tuple[Arm, ...] = ()  # run and shown for comparison, without a part in the answer

    @property
    def arms(self) -> list[Arm]:
        """The arms beside, then those of all contrasts, the bases first."""
        return list(dict.fromkeys([*self.beside, *(arm for c in self.contrasts for arm in (c.base, c.arm))]))

    @property
    def title(self) -> str:
        """Its number, and the part where it is answered in parts."""
        return f"{self.number}{self.part}"


_UNTRAINED = Arm(UNTRAINED, times=0)
_SIMSIAM, _GSG, _BYOL, _BYOL_GSG = map(Arm, ("simsiam", "simsiam_gsg", "byol", "byol_gsg"))


def _without_predictor(arm: Arm) -> Arm:
    return Arm(f"{arm.method}-no_predictor")


QUESTIONS = (
    *(
        Question(
            1,
            f"Is {model_name(base.method)}'s kNN accuracy higher with GSG, at equal epochs?",
            "higher",
            (Contrast(arm, base),),
            part,
            beside=(_UNTRAINED,),
        )
        for arm, base, part in ((_GSG, _SIMSIAM, "a"), (_BYOL_GSG, _BYOL, "b"))
    ),
    *(
        Question(
            2,
            f"Without a predictor, does {model_name(base.method)} collapse without GSG and not with it?",
            "collapse",
            (Contrast(_without_predictor(arm), _without_predictor(base)),),
            part,
        )
        for arm, base, part in ((_GSG, _SIMSIAM, "a"), (_BYOL_GSG, _BYOL, "b"))
    ),
    Question(
        3,
        "Is SimSiam better with GSG at every batch size from 64 to 1,024?",
        "higher",
        tuple(Contrast(Arm("simsiam_gsg", n), Arm("simsiam", n)) for n in (64, 128, 256, 512, 1024)),
    ),
    Question(
        4,
        "Is the nearest guide better than a random one, the farthest one and none?",
        "higher",
        tuple(Contrast(_GSG, base) for base in (Arm("simsiam_gsg-random"), Arm("simsiam_gsg-farthest"), _SIMSIAM)),
    ),
    Question(
        5,
        "Are four fresh views better than two shared ones, at equal epochs and at about equal time?",
        "higher",
        tuple(Contrast(_GSG, Arm("simsiam_gsg-shared_views", times=times)) for times in (1, 2)),
    ),
    Question(
        6,
        "Does BYOL with GSG that sees the chosen views alone reach the same accuracy in less time?",
        "same",
        (Contrast(Arm("byol_gsg-chosen_only"), _BYOL_GSG),),
    ),
)

Runs = Mapping[Arm, Mapping[int, dict[str, Any]]]  # arm -> seed -> record


def key(arm: Arm, scale: str, seed: int) -> RecordKey:
    """Return what a run's record is about."""
    return RecordKey("cifar10", "study", arm.name, "cifar10", seed, scale)


def arms() -> list[Arm]:
    """Return all arms, in the order of the questions that they first answer."""
    return list(dict.fromkeys(arm for question in QUESTIONS for arm in question.arms))


def read(records: Path, scale: str) -> dict[Arm, dict[int, dict[str, Any]]]:
    """Return the records of a scale. Raises UserError for one that is damaged or not of this scale's settings."""
    found: dict[Arm, dict[int, dict[str, Any]]] = {}
    for arm in arms():
        for seed in SEEDS:
            if (path := key(arm, scale, seed).path(records)).is_file():
                found.setdefault(arm, {})[seed] = record = read_record(path)
                epochs = SCALES[scale].epochs * arm.times
                if record["protocol"]["epochs"] != epochs:
                    raise UserError(f"{path} has other epochs than the protocol's {epochs}; move it elsewhere")
    return found


def failures(records: Path, scale: str) -> list[str]:
    """Return a line for each run that failed."""
    places = ((a, s, key(a, scale, s).path(records).with_suffix(FAILED)) for a in arms() for s in SEEDS)
    return [f"{a.title}, seed {s}: {json.loads(p.read_text())['reason']}" for a, s, p in places if p.is_file()]


@dataclass(frozen=True)
class Difference:
    """The mean of n paired differences, and its 95 % interval where there are enough of them."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Return the numbers with their signs."""
        interval = f", 95 % interval {self.low:+.2f} to {self.high:+.2f}" if self.low is not None else ", no interval"
        return f"{self.mean:+.2f} points (n = {self.n}{interval})"


def difference(runs: Runs, contrast: Contrast, metric: str) -> Difference | None:
    """Return the paired difference of a metric over the seeds that both arms have; None if there are none."""
    arm, base = runs.get(contrast.arm, {}), runs.get(contrast.base, {})
    values = [arm[s]["metrics"][metric] - base[s]["metrics"][metric] for s in sorted(arm.keys() & base.keys())]
    if not values:
        return None
    if len(values) < LEAST:
        return Difference(fmean(values), len(values))
    reach = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / sqrt(len(values))
    return Difference(fmean(values), len(values), fmean(values) - reach, fmean(values) + reach)


def collapsed(record: Mapping[str, Any]) -> bool:
    """Return whether a run's projections ended in (nearly) one point."""
    return _evenness(record) < COLLAPSED


def _evenness(record: Mapping[str, Any]) -> float:
    """Return the standard deviation of a run's projections as a share of that of evenly spread directions."""
    return record["details"]["std"] / record["details"]["even_std"]


def answer(question: Question, runs: Runs) -> str:
    """Return "yes", "no", "undecided" or "not run", by the protocol's rules."""
    if any(len(runs.get(c.arm, {}).keys() & runs.get(c.base, {}).keys()) < LEAST for c in question.contrasts):
        return "not run" if not any(c.arm in runs or c.base in runs for c in question.contrasts) else "undecided"
    if question.rule == "collapse":
        with_gsg, without = ([collapsed(r) for r in runs[a].values()] for a in question.arms[::-1])
        if all(without) and not any(with_gsg):
            return "yes"
        return "no" if all(with_gsg) or not any(without) else "undecided"
    found = [difference(runs, contrast, "knn_top1") for contrast in question.contrasts]
    limits = [(d.low or 0.0, d.high or 0.0) for d in found if d is not None]
    if question.rule == "higher":
        return (
            "yes" if all(low > 0 for low, _ in limits) else "no" if any(high < 0 for _, high in limits) else "undecided"
        )
    ((low, high),), share = limits, time_share(question.contrasts[0], runs)
    if max(-low, high) < MARGIN and share <= CHEAP:
        return "yes"
    return "no" if low > MARGIN or high < -MARGIN or share > DEAR else "undecided"


def time_share(contrast: Contrast, runs: Runs) -> float:
    """Return the mean training time of a contrast's arm as a share of its base's."""
    arm, base = (fmean(r["details"]["seconds"] for r in runs[a].values()) for a in (contrast.arm, contrast.base))
    return arm / base


def sentence(question: Question, runs: Runs) -> str:
    """Return the answer in one sentence, with its numbers."""
    found = answer(question, runs)
    if found == "not run":
        return "Not run yet."
    if question.rule == "collapse":
        said = "; ".join(
            f"{arm.title}: {sum(map(collapsed, runs[arm].values()))} of {len(runs[arm])} runs collapsed, "
            f"std {_spread(map(_evenness, runs[arm].values()))} of evenly spread"
            for arm in question.arms
            if arm in runs
        )
    else:
        said = "; ".join(
            f"{contrast.arm.title} against {contrast.base.title}: kNN {shown}" + _linear(contrast, runs)
            for contrast in question.contrasts
            if (shown := difference(runs, contrast, "knn_top1"))
        )
        if question.rule == "same" and all(arm in runs for arm in question.arms):
            said += f", in {time_share(question.contrasts[0], runs):.2f} of the time"
    return f"**{found.capitalize()}.** {said}." if said else f"**{found.capitalize()}.** No pair of runs yet."


def _linear(contrast: Contrast, runs: Runs) -> str:
    shown = difference(runs, contrast, "linear_top1")
    return f", linear {shown.mean:+.2f}" if shown else ""


def _spread(values: Iterable[float], digits: int = 2) -> str:
    values = list(values)
    if not values:
        return ""
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _table(runs: Runs) -> list[str]:
    lines = ["| | n | kNN | linear | std of projections, of evenly spread | effective rank | seconds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for arm in (arm for arm in arms() if arm in runs):
        records = list(runs[arm].values())
        details = [record["details"] for record in records]
        cells = (
            arm.title,
            str(len(records)),
            *(_spread(r["metrics"][metric] for r in records) for metric in ("knn_top1", "linear_top1")),
            _spread(_evenness(record) for record in records if "std" in record["details"]),
            _spread((d["effective_rank"] for d in details), 1),
            _spread((d["seconds"] for d in details if "seconds" in d), 0),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def section(scale: str, records: Path) -> tuple[list[str], Runs]:
    """Return the report's lines on a scale, and its runs."""
    runs = read(records, scale)
    lines = [f"## Scale `{scale}`", "", f"{SCALES[scale].said[0].upper()}{SCALES[scale].said[1:]}."]
    if not runs:
        return [*lines, "", "No runs yet.", ""], runs
    every = [record for by_seed in runs.values() for record in by_seed.values()]
    for name, values in (
        ("Data", {record["protocol"]["copy"] for record in every}),
        ("Devices", {record["provenance"]["device"] for record in every}),
        ("torch", {record["provenance"]["versions"]["torch"] for record in every}),
        ("Commits", {record["provenance"]["git_commit"][:7] for record in every}),
    ):
        lines.append(f"{name}: {', '.join(sorted(values))}.")
    lines += ["", "| question | answer |", "|---|---|"]
    lines += [f"| {q.title}. {q.asks} | {sentence(q, runs)} |" for q in QUESTIONS]
    lines += ["", f"![kNN accuracy of every run at scale {scale}](knn-{scale}.svg)", ""]
    lines += [
        "Mean and standard deviation over the seeds; accuracies in percent of the test images.",
        "",
        *_table(runs),
    ]
    if failed := failures(records, scale):
        lines += ["", "Runs that failed:", "", *(f"- {line}" for line in failed)]
    return [*lines, ""], runs


def write_report(root: Path = ROOT) -> Path:
    """Write `README.md` and the figures in `root` from `root`/records alone, and return its path."""
    lines = [
        "# The study on CIFAR-10",
        "",
        "Does Guided Stop-gradient do what the paper says? [protocol.md](protocol.md), written before the runs, has",
        "the questions, the settings, and what counts as yes, no or undecided. `make study` adds runs;",
        "`make study-report` writes this page from `study/records/` alone.",
        "",
    ]
    for scale in SCALES:
        found, runs = section(scale, root / "records")
        lines += found
        if runs:
            from analysis import drawing

            shown = {arm.title: [r["metrics"]["knn_top1"] for r in by_seed.values()] for arm, by_seed in runs.items()}
            drawing.study(shown, root / f"knn-{scale}.svg")
    text = "\n".join(lines).rstrip() + "\n"
    atomic_write(root / "README.md", lambda file: file.write_text(text, encoding="utf-8"))
    return root / "README.md"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = cli.Parser("analysis.study", (__doc__ or "").splitlines()[0], "make study-report")
    parser.add_argument("--study", type=cli.path, default=ROOT, help="the study's folder")
    print(write_report(parser.parse_args(argv).study), flush=True)


if __name__ == "__main__":
    cli.run(main)
