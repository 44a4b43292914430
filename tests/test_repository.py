"""The repository itself: pins, import directions, the Makefile, what is committed."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from importlib import import_module, metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from common.names import METHODS, PROFILES
from tools.doctor import OF_GPUS, locked

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "pretrain", "transfer", "detection", "segmentation", "analysis")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
LOCK = locked()
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LEFT_OUT = "opencv-python"  # see `make lock`


def pinned(name):
    """Return the version that requirements.txt pins here."""
    (specifier,) = LOCK[name].specifier
    return Version(specifier.version)


def needed():
    """Yield (name, why) of every distribution that the project's dependencies need here, however deep."""
    todo = [(Requirement(text), "", "pyproject.toml") for text in DEPENDENCIES]
    seen = set()
    while todo:
        requirement, extra, why = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name == LEFT_OUT:
            continue
        yield name, why
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(Requirement(text), wanted, name) for text in metadata.requires(name) or ()]


def test_every_package_of_the_lock_is_one_exact_pin_with_hashes():
    """And each Python has one pin of everything that pyproject.toml asks for."""
    text = (ROOT / "requirements.txt").read_text()
    blocks = re.findall(r"^[^ #].*(?:\n .*)*", text, re.M)
    pattern = re.compile(r"([A-Za-z0-9._-]+)==[^\s;*]+( ; [^\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+")
    assert [block for block in blocks if not pattern.fullmatch(block)] == []
    for version in PYTHONS:
        environment = {"python_version": version, "python_full_version": f"{version}.0"}
        found = Counter(
            canonicalize_name(pin.name)
            for pin in (Requirement(block.partition(" \\")[0]) for block in blocks)
            if pin.marker is None or pin.marker.evaluate(environment)
        )
        wanted = {canonicalize_name(Requirement(text).name) for text in DEPENDENCIES}
        assert {found[name] for name in wanted} == {1}
        assert LEFT_OUT not in found


def test_the_lock_is_complete_and_is_what_is_installed():
    found = dict(needed())
    assert len(found) > 60
    missing = {name: why for name, why in found.items() if name not in LOCK}
    assert missing == {}
    # A build's local label (+cpu) tells where it came from; it is no part of the pin.
    installed = {name: Version(metadata.version(name)).public for name in found}
    assert {n: str(pinned(n)) for n in found} == {n: str(Version(v)) for n, v in installed.items()}


def test_the_lock_holds_nothing_that_is_not_needed():
    surplus = set(LOCK) - {name for name, _ in needed()}
    assert {name for name in surplus if not name.startswith(OF_GPUS)} <= {"setuptools"}  # builds this project


def test_the_lock_satisfies_pyproject():
    for text in DEPENDENCIES:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned(canonicalize_name(requirement.name))), text


def test_the_conda_environment_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "gsg"
    assert "python=3.11" in environment["dependencies"]
    assert [v for v in (*PYTHONS, "3.10", "3.15") if v in SpecifierSet(PROJECT["requires-python"])] == [*PYTHONS]
    (by_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert by_pip == ["-r requirements.txt"]  # an editable project beside it has no hash, which pip refuses
    # Anything else with a version would be a second pin, free to differ from the first.
    assert [e for e in environment["dependencies"] if isinstance(e, str) and "=" in e] == ["python=3.11"]


def imported(path):
    """Yield the first word of every absolute import in a file, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield path.relative_to(ROOT).parts[0]  # relative: the same room


# mmengine's loaders fall back to torch.load(weights_only=False) without a word.
UNSAFE = "|".join(
    (
        r"(c?pickle|_pickle|dill|cloudpickle|marshal|joblib|shelve)\.(loads?|open|Unpickler)|pandas\.read_pickle",
        r"yaml\.(load|load_all|(unsafe|full)_load(_all)?)|torch\.(hub\..*|jit\.load)",
        r"mmengine.*\.(_?load_checkpoint\w*|CheckpointLoader.*|load|_safe_torch_load)",
        r"os\.(system|popen)|subprocess\.(getoutput|getstatusoutput)|eval|exec",
    )
)


def unsafe(code):
    """Yield every call or base class in `code` that may run what a file or a user says."""
    tree = ast.parse(code)
    names = {}  # what something imported is called here -> its full name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {alias.asname or alias.name: prefix + alias.name for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call | ast.ClassDef):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for function in [node.func] if isinstance(node, ast.Call) else node.bases:
            head, dot, rest = ast.unparse(function).partition(".")
            call = names.get(head, head) + dot + rest
            trusting = call == "torch.load" and options.get("weights_only") != "True"
            trusting |= any(options.get(name, "False") != "False" for name in ("allow_pickle", "shell"))
            if trusting or re.fullmatch(UNSAFE, call):
                yield call


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "from torch import load as read\nread(p, weights_only=w)",
        "import pickle\npickle.load(f)",
        "from pickle import loads\nloads(b)",
        "import pickle as p\nclass A(p.Unpickler): pass",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "from mmengine.runner import load_checkpoint\nload_checkpoint(m, p)",
        "from mmengine.runner.checkpoint import CheckpointLoader\nCheckpointLoader.load_checkpoint(p)",
        "import mmengine\nmmengine.load(p)",
        "import subprocess as s\ns.run(c, shell=True)",
        "import os\nos.system(c)",
        "eval(c)",
    ],
)
def test_an_unsafe_call_is_found(code):
    assert len(list(unsafe(code))) == 1


def test_nothing_is_loaded_unsafely():
    files = [path for room in (*ROOMS, "tools") for path in sorted((ROOT / room).rglob("*.py"))]
    found = {(str(path.relative_to(ROOT)), call) for path in files for call in unsafe(path.read_text())}
    # These build arrays, tensors and plain types alone.
    files = ("common/cifar.py", "common/checkpoint/archive.py")
    assert found == {(file, "pickle.Unpickler") for file in files}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_common_alone(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {
        (str(f.relative_to(ROOT)), word) for f in files for word in imported(f) if word in (*ROOMS, "tests", "tools")
    }
    assert {(f, word) for f, word in found if word not in (room, "common")} == set()


def functions():
    """Yield (file, function) of every function of the product."""
    for room in (*ROOMS, "tools"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield path.relative_to(ROOT), node


def test_the_command_line_is_resolved_once():
    """What a run needs stands in its job; few functions see what argparse made of the words."""
    takes = [
        (path, node.name)
        for path, node in functions()
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None and "Namespace" in ast.unparse(argument.annotation)
    ]
    assert 3 < len(takes) <= 25
    mains = {"cli.py", "jobs.py", "scope.py", "run.py", "train.py", "tsne.py"}
    rooms = [path for path, _ in takes if path.parts[0] != "tools"]
    assert [path for path in rooms if path.name not in mains or path == Path("common/run.py")] == []


def test_imports_inside_functions_are_few():
    """They are for what is heavy, once per entry; a module that needs it everywhere is itself imported late."""
    found = {(path, node.lineno) for path, function in functions() for node in ast.walk(function)
             if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip
    assert 3 < len(found) <= 70


def imports_by_module():
    """Return module -> the modules of this project that it imports by name, at any depth, also inside functions."""
    files = [file for room in (*ROOMS, "tools") for file in (ROOT / room).rglob("*.py")]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    graph = {}
    for module, file in modules.items():
        words = []
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                words += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno} is a relative import, which this does not resolve"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                words += [name if name in modules else node.module for name in names]
        graph[module] = {word for word in words if word in modules}
    return graph


def test_no_circle_of_imports():
    graph = imports_by_module()
    assert {"analysis.render", "common.records"} <= graph["analysis.tables"]
    assert "analysis.drawing" in graph["analysis.curves"]  # inside a function
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_configs_inherit_from_their_own_room_or_common():
    files = sorted(f for room in ROOMS for f in (ROOT / room / "configs").rglob("*.py"))
    assert files
    for path in files:
        room = path.relative_to(ROOT).parts[0]
        for base in re.findall(r"[\"']([^\"']+\.py)[\"']", path.read_text()):
            if not base.startswith("mm"):  # mmdet::..., mmseg::... are those libraries' own
                target = (path.parent / base).resolve()
                assert target.is_file(), f"{path}: {base}"
                assert target.relative_to(ROOT).parts[0] in (room, "common")


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return done.stdout


def test_no_large_file_and_no_product_is_committed():
    files = [name for name in git("ls-files", "-z").split("\0") if name and (ROOT / name).is_file()]
    assert files
    assert [name for name in files if (ROOT / name).stat().st_size > 2**20] == []
    products = ("data/", "checkpoints/", "results/", "reports/", "runs/", ".venv/")
    assert [name for name in files if name.startswith(products)] == []


def make(*arguments, path="", **variables):
    """Run make without this shell's own variables of the same names, and with the folder `path` first on PATH."""
    plain = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    plain["PATH"] = f"{path}:{plain['PATH']}"
    command = ["make", "-C", str(ROOT), "--no-print-directory", *arguments, *(f"{k}={v}" for k, v in variables.items())]
    return subprocess.run(command, capture_output=True, text=True, env=plain)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return a folder with a `python` and an `srun` that print what they are called with and do nothing."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("python", "srun"):
        program = folder / name
        program.write_text("#!/bin/sh\nprintf '%s\\0' \"${0##*/}\" \"$@\"\nprintf '\\1'\n")
        program.chmod(0o755)
    return folder


@pytest.fixture
def commands(programs):
    """Return the function from a target and its variables to the commands that it calls, each a list of words."""

    def called(target, **variables):
        done = make(target, path=programs, PYTHON="python", **variables)
        assert (done.returncode, done.stderr) == (0, "")
        return [call.split("\0")[:-1] for call in done.stdout.split("\1")[:-1]]

    return called


def has(words, part):
    """Return whether the words of `part` follow each other in `words`."""
    part = shlex.split(part)
    return any(words[k : k + len(part)] == part for k in range(len(words)))


TEXT = (ROOT / "Makefile").read_text()
PHONY = set(re.search(r"^\.PHONY:((?:.*\\\n)*.*)", TEXT, re.M)[1].replace("\\", " ").split())
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", TEXT, re.M))


def test_every_target_is_phony():
    assert TARGETS == PHONY  # folders are called data, pretrain, ...; make must not take them for products


def test_help_is_the_default_and_lists_every_target(tmp_path):
    copy = tmp_path / "Makefile"  # a place without .venv
    shutil.copy(ROOT / "Makefile", copy)
    done = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    listed = dict(re.findall(r"^  make (\S+)\s+(\S.*)$", done.stdout, re.M))
    assert set(listed) == PHONY
    assert os.listdir(tmp_path) == ["Makefile"]
    for word in (*PROFILES, *METHODS, "all"):
        assert word in done.stdout


def test_the_dockerfile_s_steps_are_targets_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    steps = [
        words.split() for words in re.findall(r"^(?:RUN|#) .*?\bmake ((?:doctor|setup|demo|pretrain)\b.*)$", text, re.M)
    ]
    steps.append(json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])[1:])
    assert len(steps) == 5
    for kind in ("cpu", "cuda"):
        for step in steps:
            done = make("-n", *(word.replace("$TORCH", kind) for word in step))
            assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_names_targets_that_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / ".ci" / "run").read_text()
    named = set(re.findall(r"(?:^|`|&& |\$ |then )make ([a-z][a-z0-9-]*)", text, re.M))
    assert {"demo", "test"} <= named
    assert named <= TARGETS


READERS = {
    "knn": "pretrain.knn",
    "linear": "pretrain.linear",
    "transfer-all": "transfer.run",
    "detection-voc": "detection.train",
    "detection-coco": "detection.train",
    "segmentation-ade20k": "segmentation.train",
    "export": "common.export",
    "evaluate": "tools.evaluate",
}
TRAINERS = ["pretrain", "linear", "detection-voc", "detection-coco", "segmentation-ade20k"]


def test_pretrain_by_default(commands):
    expected = "python -m pretrain.train --profile demo --seed 0 --data data --method simsiam_gsg"
    assert commands("pretrain") == [expected.split()]


@pytest.mark.parametrize("target", READERS)
def test_variables_reach_the_command(commands, target):
    (line,) = commands(target, PROFILE="imagenet", METHOD="all", SEED=3, DATA="/my data", ARGS="--x 'y z'")
    assert line[:3] == ["python", "-m", READERS[target]]
    assert has(line, "--profile imagenet --seed 3 --data '/my data' --method all")
    assert line[-2:] == ["--x", "y z"]


@pytest.mark.parametrize("target", READERS)
def test_a_checkpoint_of_the_user_s_replaces_the_method(commands, target):
    (line,) = commands(target, CHECKPOINT="a b.pth", NAME="theirs")
    assert has(line, "--checkpoint 'a b.pth' --name theirs")
    assert "--method" not in line
    assert "--key" not in line
    assert has(commands(target, CHECKPOINT="a.pth", NAME="a", KEY="a b")[0], "--checkpoint a.pth --name a --key 'a b'")
    # Half of the pair reaches the command too, which says what is missing.
    assert has(commands(target, CHECKPOINT="a.pth")[0], "--checkpoint a.pth")
    assert has(commands(target, NAME="theirs")[0], "--name theirs")


@pytest.mark.parametrize(
    "target", [*sorted(READERS.keys() - {"export"}), "pretrain", "test-detection", "test-segmentation"]
)
def test_a_data_set_of_the_user_s_reaches_the_command(commands, target):
    (line,) = commands(target, DATA_ROOT="my sets/a", CLASSES="a cat,a dog")
    assert has(line, "--data-root 'my sets/a'")
    dense = "detection" in target or "segmentation" in target or target == "evaluate"
    assert has(line, "--classes 'a cat,a dog'") == dense


@pytest.mark.parametrize(("target", "module"), [("detect", "detection.detect"), ("segment", "segmentation.segment")])
def test_the_images_to_draw_reach_the_command(commands, target, module):
    assert commands(target)[0][2:] == [module, *commands("knn")[0][3:]]  # which says that --images is missing
    (line,) = commands(target, IMAGES="my photos", NAME="theirs", DATASET="fruit")
    assert has(line, "--name theirs --dataset fruit --images 'my photos'")
    assert "--method" not in line


def test_import_takes_the_checkpoint_alone(commands):
    (line,) = commands("import-checkpoint", PROFILE="imagenet", CHECKPOINT="a b.pth", NAME="theirs", OVERWRITE=1)
    assert line[:4] == ["python", "-m", "common.checkpoint", "import"]
    assert has(line, "--profile imagenet --seed 0 --data data --checkpoint 'a b.pth' --name theirs --overwrite")


def test_the_data_set_reaches_transfer_and_download(commands):
    assert commands("data", DATASET="dtd", DATA="/d")[0][-4:] == ["--data", "/d", "--dataset", "dtd"]
    assert commands("data")[0][-2:] == ["--dataset", ""]
    assert has(commands("transfer", DATASET="dtd")[0], "--dataset dtd")
    assert has(commands("transfer-all")[0], "--dataset all")
    assert has(commands("test-detection")[0], "--dataset voc")
    assert has(commands("test-detection", DATASET="coco")[0], "--dataset coco")
    assert has(commands("evaluate", ONLY="knn voc", GPUS=2, OVERWRITE=1)[0], "--overwrite --gpus 2 --only 'knn voc'")


HOSTILE = (
    "`touch X`",
    "$(touch X)",
    "$$(touch X)",
    "$(shell touch X)",
    "${HOME}",
    "a$b",
    "'; touch X; '",
    '"; touch X; "',
    "a\\",
    "* ? [a-z] # ~",
    "two\nlines",
    "a=b, c",
)


@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_of_a_user_s_is_a_command(commands, programs, value):
    names = ("PROFILE", "SEED", "DATA", "CHECKPOINT", "NAME", "KEY", "DATASET", "METHOD")
    (line,) = commands("transfer", LAUNCHER="slurm", SRUN_ARGS=value, **dict.fromkeys(names, value))
    want = [
        "transfer.run",
        *(w for n in ("profile", "seed", "data", "checkpoint", "name", "key") for w in (f"--{n}", value)),
    ]
    assert line == ["python", "-m", *want, "--dataset", value, "--launcher", "slurm", f"--sbatch-args={value}"]
    (line,) = commands("tsne", METHOD=value, DATA_ROOT=value)
    assert [line[line.index(word) + 1] for word in ("--method", "--data-root")] == [value] * 2
    (line,) = commands("pretrain", NODES=2, HEAD=value)
    assert line[line.index("--rdzv_endpoint") + 1] == value
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": "python", "DATA": value}
    done = subprocess.run(["make", "knn"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert f"\0--data\0{value}\0" in done.stdout
    assert not (ROOT / "X").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--a  b", ["--a", "b"]),
        ("--comment='a  b' --x", ["--comment=a  b", "--x"]),
        ("""--a="it's" ''""", ["--a=it's", ""]),
        ("; touch X; `touch X` & | > X", [";", "touch", "X;", "`touch", "X`", "&", "|", ">", "X"]),
        ("$(touch X) $HOME ${HOME} $$ $@", ["$(touch", "X)", "$HOME", "${HOME}", "$$", "$@"]),
        ("* ~ \\* # a=b", ["*", "~", "*", "#", "a=b"]),
        ("--a\n--b\n", ["--a", "--b"]),
        (" ", []),
    ],
)
def test_lists_of_words_are_split_outside_quotes_and_nothing_else(commands, text, words):
    assert commands("knn", ARGS=text)[0][3:] == [*commands("knn")[0][3:], *words]
    assert commands("test", ARGS=text)[-1] == ["python", "-m", "pytest", *words]
    (line,) = commands("pretrain", LAUNCHER="slurm", SRUN_ARGS=text)
    assert line[: 4 + len(words)] == ["srun", "--kill-on-bad-exit=1", *words, "python", "-m"]
    assert not (ROOT / "X").exists()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"GPUS": "2; touch X"}, "GPUS is '2; touch X'; choose a whole number"),
        ({"GPUS": "-1"}, "GPUS is '-1'; choose"),
        ({"GPUS": "1 1"}, "GPUS is '1 1'; choose"),
        ({"NODES": "two", "HEAD": "a:1"}, "NODES is 'two'; choose a whole number"),
        ({"LAUNCHER": "slurm", "GPUS": "`touch X`"}, "GPUS is '`touch X`'; choose"),
        ({"LAUNCHER": "srun"}, "LAUNCHER is 'srun'; choose none, torchrun or slurm"),
        ({"NODES": "0"}, "NODES is '0'; choose 1 or more"),
        ({"RESUME": "no"}, "RESUME is 'no'; choose 1, or 0 for no"),
        ({"FROZEN": "`touch X`"}, "FROZEN is '`touch X`'; choose 1"),
        ({"PROFIL": "demo"}, "no target knows the variable PROFIL; did you mean PROFILE? `make help` lists them"),
        ({"METHODS": "all"}, "METHODS; did you mean METHOD?"),
        ({"GPU": "8"}, "GPU; did you mean GPUS?"),
        ({"DATASETS": "dtd"}, "DATASETS; did you mean DATASET?"),
        ({"seed": "1"}, "seed; did you mean SEED?"),
        ({"SETUP": "", "COLOUR": "red"}, "; `make help` lists them"),
        *(
            ({"VENV": venv}, f"VENV is '{venv}'; choose a path without blanks")
            for venv in ("my env", "~/a", "a;b", "a$b")
        ),
        ({"NODES": "2"}, "NODES=2 needs HEAD=host:port of the first machine"),
        ({"ARGS": "--x 'y"}, "ARGS: a quote is not closed"),
        ({"LAUNCHER": "slurm", "SRUN_ARGS": '"'}, "SRUN_ARGS: a quote is not closed"),
    ],
)
def test_what_make_itself_reads_is_checked(programs, variables, says):
    done = make("pretrain", path=programs, PYTHON="python", **variables)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert says in done.stderr
    assert not (ROOT / "X").exists()


@pytest.mark.parametrize("variables", [{"LAUNCHER": "slurm"}, {"NODES": "2", "HEAD": "a:1"}])
def test_evaluate_says_that_it_runs_on_one_machine(programs, variables):
    done = make("evaluate", path=programs, PYTHON="python", **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert "evaluate runs on one machine; leave LAUNCHER and NODES out" in done.stderr


RDZV = "--nnodes 2 --rdzv_backend c10d --rdzv_id gsg --rdzv_endpoint a:29500"


@pytest.mark.parametrize("target", TRAINERS)
@pytest.mark.parametrize(
    ("variables", "start", "launcher"),
    [
        ("", "python -m", ""),
        ("GPUS=0", "python -m", ""),
        ("GPUS=1", "python -m", ""),
        ("GPUS=8", "python -m tools.launch --standalone --nproc_per_node 8 -m", "pytorch"),
        ("GPUS=1 LAUNCHER=torchrun", "python -m tools.launch --standalone --nproc_per_node 1 -m", "pytorch"),
        ("GPUS=8 NODES=2 HEAD=a:29500", f"python -m tools.launch {RDZV} --nproc_per_node 8 -m", "pytorch"),
        ("LAUNCHER=slurm", "srun --kill-on-bad-exit=1 python -m", "slurm"),
        ("LAUNCHER=slurm GPUS=8 NODES=4 SRUN_ARGS=--gres=gpu:8",
         "srun --kill-on-bad-exit=1 --nodes=4 --ntasks-per-node=8 --gres=gpu:8 python -m", "slurm"),
    ],
)  # fmt: skip
def test_trainers_start_on_their_ranks(commands, target, variables, start, launcher):
    (line,) = commands(target, **dict(word.split("=", 1) for word in variables.split()))
    start = [*start.split(), READERS.get(target, "pretrain.train")]
    assert line[: len(start)] == start
    assert line[line.index("--launcher") + 1 :] == [launcher] if launcher else "--launcher" not in line


@pytest.mark.parametrize("target", TRAINERS)
def test_resume_reaches_trainers(commands, target):
    assert "--resume" in commands(target, RESUME=1)[0]
    assert has(commands(target, LOGGER="wandb")[0], "--logger wandb")
    assert "--resume" not in commands(target)[0]
    assert "--resume" not in commands(target, RESUME=0)[0]


def test_a_name_and_a_checkpoint_of_the_system_s_are_not_the_user_s(programs):
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": "python", "METHOD": "byol"}
    environment |= {"NAME": "DESKTOP-1", "CHECKPOINT": "x.pth"}
    done = subprocess.run(["make", "knn"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("\0--method\0byol\0\1")


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in (*ROOMS, "tools")
    for path in (ROOT / room).rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text() and path.name != "launch.py"  # whose words are torchrun's
)


@pytest.mark.parametrize("module", MODULES)
def test_help_ends_with_examples_and_has_no_empty_default(commands, module, capsys):
    with pytest.raises(SystemExit):
        import_module(module).main(["--help"])
    text, colon, examples = capsys.readouterr().out.partition("examples:\n")
    assert colon
    assert re.findall(r"\bNone\b|default: *[\[{)]|default: *False", text) == []
    module = module.removesuffix(".__main__")
    for line in examples.splitlines():
        words = shlex.split(line)
        if words[0] == "make":
            (words,) = commands(words[1], **dict(word.split("=", 1) for word in words[2:]))
        assert has(words, f"python -m {module}") or has(
            words, f"-m tools.launch --standalone --nproc_per_node 8 -m {module}"
        )


SHELL = {"docs", "help", "setup", "lock", "clean", "test", "test-all"}


@pytest.mark.parametrize("target", sorted(PHONY - SHELL))
def test_a_target_is_one_call_of_a_module_that_exists(commands, target):
    (line,) = commands(target)
    module = ROOT / line[2].replace(".", "/")
    assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()


def test_test_calls_linter_formatter_types_and_tests(commands):
    checks = ["python -m ruff check .", "python -m ruff format --check .", "python -m mypy"]
    assert [shlex.join(line) for line in commands("test", ARGS="-x")] == [*checks, "python -m pytest -x"]
    everything = [*checks, "python -m pytest -m 'slow or not slow' -k 'a b'"]
    assert [shlex.join(line) for line in commands("test-all", ARGS="-k 'a b'")][:4] == everything


def test_a_second_setup_does_nothing(tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    stamp = venv / ".complete"
    assert make("-q", "setup", VENV=venv).returncode == 1  # there is something to do
    stamp.touch()
    done = make("setup", VENV=venv)
    assert (done.returncode, os.listdir(venv)) == (0, [".complete"])
    assert "pip" not in done.stdout
    os.utime(stamp, (0, 0))  # older than requirements.txt: to be done again
    assert make("-q", "setup", VENV=venv).returncode == 1


def test_setup_keeps_the_kind_of_torch_unless_told_another(tmp_path):
    uv, stamp = tmp_path / "uv", tmp_path / ".complete"
    uv.touch(0o755)  # without one on PATH, there would be one to make
    stamp.write_text("cpu\n")
    assert make("-q", "setup", path=tmp_path, VENV=tmp_path).returncode == 0
    afresh = make("-n", "setup", VENV=tmp_path, TORCH="cuda").stdout
    assert afresh.startswith("false || ")  # whatever the environment holds, another is made
    assert "--torch-backend" not in afresh
    os.utime(stamp, (0, 0))
    assert "--torch-backend cpu" in make("-n", "setup", VENV=tmp_path).stdout


def test_setup_takes_the_newest_python_that_runs(tmp_path):
    for version, script in (("14", "exit 127"), ("13", '[ "$1" = -c ] || { echo "$0 $*"; exit 3; }')):
        program = tmp_path / f"python3.{version}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    done = make("setup", path=tmp_path, VENV=tmp_path / "venv")
    assert (done.returncode, done.stdout) == (2, f"{tmp_path}/python3.13 -m venv {tmp_path}/venv\n")


def test_other_targets_set_up_first_unless_the_python_is_the_user_s(tmp_path, programs):
    ours = make("-n", "knn", VENV=tmp_path / "venv").stdout
    assert ours.index("pip install") < ours.index("pretrain.knn")
    assert '"$PYTHON" -m pretrain.knn' in ours
    shutil.copytree(programs, tmp_path / "set-up" / "bin")
    (tmp_path / "set-up" / ".complete").touch()
    assert make("knn", VENV=tmp_path / "set-up").stdout.startswith("python\0-m\0pretrain.knn\0")
    assert "pip" not in make("-n", "knn", VENV=tmp_path / "venv", PYTHON="python").stdout


def test_a_missing_python_is_one_line(tmp_path):
    done = make("setup", VENV=tmp_path / "venv", BASE_PYTHON="python3.0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Python 3.11 to 3.14 with its module venv: python3.0; install one")
    assert not (tmp_path / "venv").exists()
