"""The pages that people read: cited sections exist, links lead somewhere, examples run, `make` targets are real."""

import argparse
import ast
import importlib.util
import io
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np
import pytest
import yaml
from PIL import Image

from common.errors import UserError
from common.sources import SOURCES
from pretrain import register
from tests import test_repository as repository
from tests.pretrain.tiny import write_images
from transfer import datasets

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "pretrain", "transfer", "detection", "segmentation", "analysis", "tools", "tests")
# Other words in capitals that a number may follow.
NO_PAGES = {"OFFSET", "GAMMA", "WCAG"}
APPENDIX = set("A B B.1 B.2 C C.1 C.2 D D.1 D.2 D.3 E F G".split())  # the paper's

NUMBER = r"\d+(?:\.\d+)*"
NUMBERS = rf"{NUMBER}(?:(?:\s*,|\s+and|\s*[-\u2013])\s*{NUMBER})*"
LETTERS = r"[A-Z](?:\.\d+)?\b(?:(?:,|\s+and)\s+[A-Z](?:\.\d+)?\b)*"
OF_A_PAGE = re.compile(rf"(?<![\w./])(?P<name>[A-Z]{{4,}})(?!\w)(?:\s+(?P<numbers>{NUMBERS}))?")
OTHER_FORM = re.compile(r"(?<![\w./])[A-Z]{4,}(?:\.md)?,?\s+(?:sections?\b|chapter\b|habit\b|§)\s*\d*")
OF_A_FILE = re.compile(rf"(?P<file>[\w/-]+\.md)\b(?:,?\s+(?:section\s+)?(?P<numbers>{NUMBERS}))?")
OF_THE_APPENDIX = re.compile(
    rf"(?:[Aa]ppendix|[Pp]aper,)\s+(?P<letters>{LETTERS})|(?<![\w./])(?P<bare>[A-Z]\.\d+)(?!\w)"
)
OF_AN_ALGORITHM = re.compile(r"Algorithm\s+(?P<number>\d+)")


def sections(page: Path) -> set[str]:
    return set(re.findall(rf"^#{{2,4}} ({NUMBER})", page.read_text(encoding="utf-8"), re.M))


# A page of numbered sections is cited by its file's name in capitals.
PAGES = {page.stem.upper(): page for page in (ROOT / "docs").glob("*.md") if sections(page)}


class Prose(NamedTuple):
    """A docstring, or comments on lines that follow each other, and the number of its first line."""

    line: int
    text: str


def prose(source: str) -> Iterator[Prose]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (text := ast.get_docstring(node, clean=False)):
            yield Prose(node.body[0].lineno, text)
    block = Prose(0, "")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text, line = token.string.lstrip("#"), token.start[0]
        if line == block.line + block.text.count("\n") + 1:
            block = Prose(block.line, f"{block.text}\n{text}")
        else:
            yield block
            block = Prose(line, text)
    yield block


def listed(numbers: str) -> Iterator[str]:
    """Yield the sections that "1, 2.3 and 4-6" names."""
    for part in re.split(r"\s*,\s*|\s+and\s+", numbers):
        first, *last = re.split(r"\s*[-\u2013]\s*", part)
        if last and first.isdigit():
            yield from map(str, range(int(first), int(last[0]) + 1))
        else:
            yield from (first, *last)


def refused(text: str) -> list[tuple[int, str]]:
    """Return (place in the text, what is wrong) of each citation that leads nowhere or is not in the agreed form."""
    return [*_refused_pages(text), *_refused_files(text), *_refused_parts_of_the_paper(text)]


def _refused_pages(text: str) -> Iterator[tuple[int, str]]:
    for found in OTHER_FORM.finditer(text):
        yield found.start(), f"{found[0]!r} is not in the form 'PROTOCOLS 3.1'"
    for found in OF_A_PAGE.finditer(OTHER_FORM.sub(lambda other: " " * len(other[0]), text)):
        name, numbers = found["name"], found["numbers"]
        if name in PAGES:
            if numbers is None:
                yield found.start(), f"{name} names no section"
            yield from ((found.start(), f"{name} {n} does not exist") for n in missing(PAGES[name], numbers))
        elif numbers is not None and name not in NO_PAGES:
            yield found.start(), f"{found[0]!r} cites no page of docs/; if it is no citation, add {name} to NO_PAGES"


def _refused_files(text: str) -> Iterator[tuple[int, str]]:
    for found in OF_A_FILE.finditer(text):
        places = [folder / found["file"] for folder in (ROOT, ROOT / "docs")]
        page = next((place for place in places if place.is_file()), None)
        if page is None:
            yield found.start(), f"{found['file']} is not in the repository"
        else:
            yield from ((found.start(), f"{found['file']} {n} does not exist") for n in missing(page, found["numbers"]))


def _refused_parts_of_the_paper(text: str) -> Iterator[tuple[int, str]]:
    for found in OF_THE_APPENDIX.finditer(text):
        for letter in re.split(r",\s+|\s+and\s+", found["letters"] or found["bare"]):
            if letter not in APPENDIX:
                yield found.start(), f"the paper's appendix has no {letter}"
    for found in OF_AN_ALGORITHM.finditer(text):
        if found["number"] != "1":
            yield found.start(), f"the paper has no Algorithm {found['number']}"


def missing(page: Path, numbers: str | None) -> list[str]:
    return [number for number in listed(numbers or "") if number and number not in sections(page)]


@pytest.mark.parametrize("room", ROOMS)
def test_every_cited_section_exists(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{part.line + part.text.count(chr(10), 0, place)}: {reason}"
        for path in files
        if path != Path(__file__)
        for part in prose(path.read_text(encoding="utf-8"))
        for place, reason in refused(part.text)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("as in PROTOCOLS 3.1, 3.2 and 8", []),
        ("PROTOCOLS 2-6; DESIGN 3", []),
        ("PROTOCOLS 3.9", ["PROTOCOLS 3.9 does not exist"]),
        ("PROTOCOLS 1.1 and\n    1.9", ["PROTOCOLS 1.9 does not exist"]),
        ("PROTOCOLS 7-9", ["PROTOCOLS 9 does not exist"]),
        ("DESIGN 99", ["DESIGN 99 does not exist"]),
        ("see PROTOCOLS.", ["PROTOCOLS names no section"]),
        ("docs/protocols.md 4.4", []),
        ("docs/protocols.md 4.9", ["docs/protocols.md 4.9 does not exist"]),
        ("see PLAN.md", ["PLAN.md is not in the repository"]),
        ("STYLE 7", ["'STYLE 7' cites no page of docs/; if it is no citation, add STYLE to NO_PAGES"]),
        ("(STYLE, habit 7)", ["'STYLE, habit 7' is not in the form 'PROTOCOLS 3.1'"]),
        ("appendix B.1, C.1, D; Algorithm 1 (Chen and He, section 4.1)", []),
        ("paper, D.2; the paper's appendix D.1 says no more", []),
        ("appendix B.3", ["the paper's appendix has no B.3"]),
        ("(paper, H)", ["the paper's appendix has no H"]),
        ("C.2 and E.1", ["the paper's appendix has no E.1"]),
        ("Algorithm 2", ["the paper has no Algorithm 2"]),
    ],
)
def test_a_wrong_citation_is_refused(text, reasons):
    found = [reason for _, reason in refused(text)]
    assert found == reasons


def test_citations_are_found_in_comments_and_docstrings_at_their_lines():
    source = 'x = 1  # PROTOCOLS\n# 9.9\n\n\ndef f():\n    """Do it.\n\n    DESIGN 77.\n    """\n    return "STYLE 7"\n'
    found = [
        (part.line + part.text.count("\n", 0, place), reason)
        for part in prose(source)
        for place, reason in refused(part.text)
    ]
    assert sorted(found) == [(1, "PROTOCOLS 9.9 does not exist"), (8, "DESIGN 77 does not exist")]


READ = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_sections_links_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    cited = re.findall(rf"\b({'|'.join(PAGES)}) ({NUMBERS})", text)
    assert [(name, number) for name, numbers in cited for number in missing(PAGES[name], numbers)] == []
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    code = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    named = re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w/]+\.(?:py|md))`", code)
    made = set(recipes()) if page.name == "CONTRIBUTING.md" else set()
    assert [name for name in named if name not in made and not (ROOT / name).is_file()] == []


# ---- the README ----

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_its_picture_low():
    assert len(README.encode()) <= 6000
    (picture,) = re.findall(r"!\[[^]]*]\(([^)]+)\)", README)
    assert Image.open(ROOT / picture).height < 600


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    import torch
    import torch.nn.functional as F

    from common.backbones import build_backbone
    from pretrain.gsg import Views, gsg_loss

    use, loss = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    torch.save(build_backbone("resnet50").state_dict(), "resnet50.pth")
    names = {"torch": torch, "F": F, "images": torch.randn(2, 3, 64, 64)}
    exec(use, names)
    assert (names["features"].shape, names["features"].dtype) == ((2, 2048), torch.float32)
    exec(loss, names)
    p, z, q, r = torch.randn(4, 64, 2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    short = names["gsg_loss"](p, z, q, r)
    whole = gsg_loss(*(Views(*b.unbind(1), *a.unbind(1)) for a, b in ((p, z), (q, r))))
    torch.testing.assert_close(short, whole)
    for a, b in zip(*(torch.autograd.grad(value, (p, q)) for value in (short, whole)), strict=True):
        torch.testing.assert_close(a, b)


TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_make_targets_that_a_page_names_exist(page):
    code = re.findall(r"```sh\n(.*?)```|`(make [^`]*)`", page.read_text(encoding="utf-8"), re.S)
    named = re.findall(r"(?:^|&& )make ([a-z][a-z0-9-]*)", "\n".join(block or word for block, word in code), re.M)
    assert set(named) - TARGETS == set()


# ---- the commands of the pages ----

programs = repository.programs  # a fixture: a `python` that prints its arguments


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command in the page's blocks of shell, and of each `make ... NAME=...` in its text."""
    text = page.read_text(encoding="utf-8")
    blocks, prose = (
        re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S),
        re.sub(r"^```.*?^```", "", text, flags=re.M | re.S),
    )
    for block in (*blocks, *re.findall(r"`(make [a-z][^`]*=[^`]*)`", prose)):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for end, group in itertools.groupby(words, "&&".__eq__):
                if not end:
                    yield list(group)


def calls(words: list[str], programs: Path) -> Iterator[tuple[Any, list[str]]]:
    """Yield (main, its arguments) of each command line of ours that the command leads to."""
    lines = [words]
    if words[0] == "make":
        asked = ["-n"] if words[1] in repository.SHELL else []  # these do more than to call Python
        done = repository.make(*asked, *words[1:], "PYTHON=python", path=programs)
        assert (done.returncode, done.stderr) == (0, ""), words
        lines = [call.split("\0")[:-1] for call in done.stdout.split("\1")[:-1]]
    for line in lines:
        for place in (k + 1 for k, word in enumerate(line[:-1]) if word == "-m"):
            if line[place].split(".")[0] in ROOMS[:-1] and line[place] != "tools.launch":
                package = (ROOT / line[place].replace(".", "/")).is_dir()
                module = importlib.import_module(line[place] + ".__main__" * package)
                yield module.main, line[place + 1 :]


class ParsedError(Exception):
    """The arguments are in order; nothing more is wanted of the command."""


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_the_options_of_every_command_exist(page, programs, monkeypatch, tmp_path):
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    monkeypatch.setitem(sys.modules, "wandb", MagicMock(__spec__=ModuleSpec("wandb", None)))
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        assert words[0] in ("make", "python", "tensorboard"), words
        for main, arguments in calls(words, programs):
            with pytest.raises(ParsedError):
                main(arguments)


# Commands of the pages that take seconds, in an order in which each finds what it needs; options that shorten them; and
# what they leave. `make demo`, which CI runs, has the other stages, tests/tools/test_evaluate.py other data of users.
SHORT = ["train_dataloader.dataset.images.first=64", "train_cfg.max_epochs=1"]
# A set of the user's, at the paper's settings, but for the network and the sizes.
SMALL = ["model.backbone.name=test_resnet", "model.projector.dim=16", "train_dataloader.batch_size=4", *SHORT[1:]]
SMALL += ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False", "custom_hooks=[]"]
QUICKSTART = "python docs/quickstart.py checkpoints/demo/simsiam_gsg.pth data/demo/digits/test --size 32"
RUN = [
    ("make pretrain METHOD=simsiam_gsg", [*SHORT, "custom_hooks=[]"], "checkpoints/demo/simsiam_gsg.pth"),
    ("make knn METHOD=simsiam_gsg", [], "results/demo/knn/simsiam_gsg/digits-seed0.json"),
    ("make linear METHOD=simsiam_gsg", SHORT, "results/demo/linear/simsiam_gsg/digits-seed0.json"),
    ("make transfer METHOD=simsiam_gsg DATASET=digits", [], "results/demo/recognition/simsiam_gsg/digits-seed0.json"),
    ("make tsne PROFILE=demo METHOD=simsiam_gsg DATASET=digits", [], "reports/demo/tsne.png"),
    ("make geometry PROFILE=demo METHOD=simsiam_gsg DATASET=digits", [], "reports/demo/geometry.png"),
    ("make curves PROFILE=demo", [], "reports/demo/curves.png"),
    ("make tables PROFILE=demo", [], "reports/demo/table-standard.md"),
    ("make report PROFILE=demo", [], "reports/demo/index.html"),
    ("make export PROFILE=demo NAME=simsiam_gsg FORMAT=timm", [], "exports/demo/simsiam_gsg/timm/README.md"),
    ("make pretrain PROFILE=imagenet DATA_ROOT=/birds", SMALL, "checkpoints/imagenet/simsiam_gsg.pth"),
    (
        "make knn PROFILE=imagenet DATA_ROOT=/birds",
        ["evaluation.k=5", "evaluation.workers=0"],
        "results/imagenet/knn",
    ),
    ("python -m common.checkpoint inspect resnet50.pth", [], ""),
    (QUICKSTART, [], "quickstart/neighbours.png"),
]


def test_cheap_commands_run(tmp_path, monkeypatch, programs):
    written = [words for page in READ for words in commands(page)]
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "birds")
    for command, options, product in RUN:
        words = shlex.split(command)
        assert words in written, f"no page has {command}"
        if words[0] == "python" and words[1] != "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(str(ROOT / words[1]), run_name="quickstart")["main"]()
        else:
            ((main, arguments),) = calls(words, programs)
            here = [word.replace("/birds", "birds") for word in arguments]
            main(here + (["--cfg-options", *options] if options else []))
        assert (tmp_path / product).exists()
        shutil.copy("checkpoints/demo/simsiam_gsg.pth", "resnet50.pth")


SITE = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: make setup")


@SITE
def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} | {"contributing.html"} <= set(pages)
    assert (tmp_path / "quickstart.py").is_file()
    from_elsewhere = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?https?://")
    assert [name for name, text in pages.items() if from_elsewhere.search(text)] == []


def test_the_workflow_tests_every_python_and_runs_the_demo_by_make():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = {name: "\n".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    called = {name: re.findall(r"\bmake ([a-z][a-z0-9-]*)", run) for name, run in commands.items()}
    assert called == {"test": ["test"], "demo": ["demo"], "audit": []}
    assert "pip-audit" in commands["audit"]
    assert "requirements.txt --require-hashes" in commands["audit"]
    assert {"test", "demo"} <= TARGETS
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert "BASE_PYTHON" in commands["test"]


def test_pre_commit_has_the_ruff_that_is_pinned():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {entry["repo"].rpartition("/")[2]: entry["rev"] for entry in repositories}
    (pinned,) = re.findall(r"^ruff==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert revisions["ruff-pre-commit"] == f"v{pinned}"
    hooks = {hook["id"] for entry in repositories for hook in entry["hooks"]}
    assert hooks == {"ruff-check", "ruff-format", "codespell", "check-added-large-files"}


def test_contributing_names_the_marks_of_tests():
    declared = re.findall(
        r'"(\w+): [^"]*"', re.search(r"^markers = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    )
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.M)) == sorted(declared)


# ---- the examples of CONTRIBUTING.md ----


def recipes() -> dict[str, str]:
    """Return file -> the block that CONTRIBUTING.md adds to it."""
    found = re.findall(r"`([\w/]+\.py)`[^`]*:\n\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    return dict(found)


def test_every_example_of_contributing_is_run():
    assert (ROOT / "CONTRIBUTING.md").read_text().count("```python") == len(recipes()) == 5


def add_to(file: str):
    """Execute the block where it would stand, at the end of `file`. Return (the module, what the block sees)."""
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    names = vars(module).copy()
    exec(compile(recipes()[file], file, "exec"), names)
    return module, names


def test_the_method_of_contributing_trains(tmp_path, monkeypatch):
    import torch
    import torch.nn.functional as F
    from mmengine.config import Config
    from mmengine.registry import MODELS

    register()  # before the copy is made, which is forgotten after the test
    monkeypatch.setattr(MODELS, "_module_dict", MODELS.module_dict.copy())
    add_to("pretrain/methods.py")
    file = "pretrain/configs/demo/mean_target.py"
    config = tmp_path / "mean_target.py"
    config.write_text(recipes()[file].replace("./", f"{(ROOT / file).parent}/"))
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    views = [torch.randn(8, 3, 32, 32) for _ in range(model.num_views)]
    loss = model(views)["loss"]
    loss.backward()
    z = [model.project(view) for view in views]
    both = sum(F.cosine_similarity(model.predictor(z_view), (z[0] + z[1]) / 2) for z_view in z)
    torch.testing.assert_close(loss, -both.mean() / 2)
    assert model.predictor[0].weight.grad.abs().sum() > 0


def test_the_data_set_of_contributing_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "fruit", None)  # taken out again after the test
    add_to("common/sources.py")
    with pytest.raises(UserError, match="DATASET=fruit"):
        datasets.load("fruit", tmp_path)
    for part, count in (("train", 5), ("test", 2)):
        for word in ("apple", "pear"):
            folder = tmp_path / "fruit" / part / word
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(folder / f"{k}.png")
    found = datasets.load("fruit", tmp_path)
    assert (len(found.train), len(found.val), len(found.test.labels)) == (8, 2, 4)
    assert list(found.test.classes) == ["apple", "pear"]


def test_the_backbone_of_contributing_is_built():
    import torch

    module, _ = add_to("common/backbones.py")
    module._known.cache_clear()
    network = module.build_backbone("resnet10_narrow").eval()
    assert module.feature_dim(network) == 128
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 128)


def test_the_benchmark_of_contributing_is_measured(tmp_path, monkeypatch):
    import torch

    from pretrain import bench

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(bench.BENCHMARKS, "gsg_loss_ratio", None)
    add_to("pretrain/bench.py")
    bench.main(["--only", "gsg_loss_ratio", "--json", str(tmp_path / "bench.json")])
    (entry,) = json.loads((tmp_path / "bench.json").read_text())
    assert entry["id"] == "gsg_loss_ratio"
    assert entry["value"] > 0
