"""Commands: arguments, exit codes, and one line for what a user can mend."""

import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from common import cli
from common.backbones import build_backbone
from common.checkpoint import META_KEYS, save_checkpoint
from common.cli import announce, method_list, parser, subjects
from common.errors import UserError
from common.features import Transformed
from common.images import image_folder
from common.names import METHODS, PROFILES, checkpoint_name

ROOT = Path(cli.__file__).parents[1]
ROOMS = ("common", "pretrain", "transfer", "detection", "segmentation", "analysis", "tools")
RAISING = "from common import cli\nfrom common.errors import UserError\ndef main(): raise {}\ncli.run(main)"


def python(script, **options):
    """Run a script in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path.cwd(), **options)


def parse(*words, reads_checkpoint=True):
    return parser("room.module", "does it", reads_checkpoint=reads_checkpoint).parse_args(words)


def refusal(*words):
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_command_that_ends_well():
    done = python("from common import cli; cli.run(lambda: print('done'))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("UserError('checkpoint x is missing')", "error: checkpoint x is missing"),
        ("OSError(28, 'No space left on device', 'a/b.pth')", "error: cannot write a/b.pth: No space left on device; "),
        ("OSError(28, 'No space left on device')", "error: cannot write a file: No space left on device; "),
        ("OSError(122, 'Disk quota exceeded', 'b')", "error: cannot write b: Disk quota exceeded; "),
        ("PermissionError(13, 'Permission denied', 'results')", "error: cannot access results: Permission denied; "),
        ("NotADirectoryError(20, 'Not a directory', 'a/b')", "error: cannot access a/b: Not a directory; "),
        ("OSError(36, 'File name too long', 'a')", "error: cannot access a: File name too long; "),
        ("OSError(21, 'Is a directory', 'a.part', None, 'a')", "error: cannot access a: Is a directory; "),
    ],
)
def test_a_user_s_error_is_one_line_and_exit_code_1(error, line):
    done = python(RAISING.format(error))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")


@pytest.mark.parametrize("error", ["ValueError('a bug')", "OSError(2, 'No such file or directory', 'x')"])
def test_a_fault_of_ours_keeps_its_traceback(error):
    done = python(RAISING.format(error))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(("end", "code", "left"), [("pass", 0, "False\n"), ("raise UserError('x')", 1, "")])
def test_a_process_leaves_its_group_before_python_exits(end, code, left, tmp_path):
    """Else gloo's threads abort the exit now and then; after a mistake, Python does not exit in order at all."""
    done = python(
        "import atexit, torch\n"
        "from common import cli\n"
        "from common.errors import UserError\n"
        "atexit.register(lambda: print(torch.distributed.is_initialized()))\n"
        "def main():\n"
        f"    torch.distributed.init_process_group('gloo', 'file://{tmp_path}/store', rank=0, world_size=1)\n"
        f"    {end}\n"
        "cli.run(main)"
    )
    assert (done.returncode, done.stdout) == (code, left), done.stderr
    assert done.stderr == ("error: x\n" if code else "")


@pytest.fixture
def small_disk():
    """Let the system refuse to write a file beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_really_full_while_saving_a_checkpoint(tmp_path, small_disk, capsys):
    def main():
        meta = dict.fromkeys(META_KEYS, "") | {"arch": "resnet18"}
        save_checkpoint(tmp_path / "a.pth", build_backbone("resnet18").state_dict(), meta)

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        f"error: cannot write {tmp_path}/a.pth: File too large; "
        "correct that and run it again: what was saved before is intact\n"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        ("OSError(28, 'No space left on device', b'e')", ["warning: cannot write e: No space left on device"]),
        ("OSError(9, 'Bad file descriptor')", ["Exception in thread", "OSError: [Errno 9] Bad file descriptor"]),
    ],
)
def test_a_thread_that_cannot_write_is_one_line_and_another_fault_its_traceback(error, lines):
    script = f"""
    import threading
    from common import cli
    def main():
        def write():
            raise {error}
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    cli.run(main)
    """
    done = python(script)
    said = done.stderr.splitlines()
    assert done.returncode == 0
    assert (len(said) == 1) == (len(lines) == 1)
    assert all(line.startswith(start) for line, start in zip((said[0], said[-1]), lines, strict=False))


def test_an_error_in_a_worker_process_is_one_line(tmp_path, capfd):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_text("no image")
    images = image_folder(tmp_path, name="x", hint="")
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: list(DataLoader(Transformed(images, lambda image: 0), num_workers=1)))
    assert caught.value.code == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: image {tmp_path}/a/b.png is truncated or corrupt")


LOADING = """
import os, signal
import torch
from torch.utils.data import DataLoader, Dataset
from common import cli

class Images(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        {fault}
        return torch.zeros(500_000)

cli.run(lambda: list(DataLoader(Images(), batch_size=2, num_workers=1)))
"""


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGBUS)", r"DataLoader worker \(pid \d+\) is killed by signal: Bus error"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"DataLoader worker \(pid \d+\) is killed by signal: Killed"),
        (
            "raise RuntimeError('unable to allocate shared memory(shm) for file </x>: No space left on device (28)')",
            r"unable to allocate shared memory\(shm\) for file </x>: No space left on device \(28\)",
        ),
    ],
)
def test_a_killed_worker_or_a_small_dev_shm_is_one_line_with_its_remedy(fault, says):
    done = python(LOADING.format(fault=fault))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1].lstrip("\0")  # which torch's own note of the signal ends with
    assert re.fullmatch(rf"error: {says}; its memory or /dev/shm ran out: .*--workers.*--shm-size.*", last)


def test_other_errors_of_workers_keep_their_traceback():
    done = python(LOADING.format(fault="raise RuntimeError('a bug')"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, True)


def test_ctrl_c_exits_130_and_leaves_no_temporary_file(tmp_path):
    script = textwrap.dedent(
        f"""
        import time
        from common import cli
        from common.files import atomic_path

        def main():
            with atomic_path({str(tmp_path / "file")!r}) as temporary:
                temporary.write_text("half")
                print("ready", flush=True)
                time.sleep(60)
        cli.run(main)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == "interrupted; the same command with RESUME=1 (--resume) continues"
    assert os.listdir(tmp_path) == []


def test_ctrl_c_flushes_what_was_printed():
    done = python(
        "from common import cli\ndef main():\n    print('so far')\n    raise KeyboardInterrupt\ncli.run(main)"
    )
    assert (done.returncode, done.stdout) == (130, "so far\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--profile", "Demo"], f"unknown PROFILE 'Demo'; known: {', '.join(PROFILES)}"),
        (["--method", "moco"], f"unknown METHOD 'moco'; known: {', '.join(METHODS)}, untrained, all"),
        (["--method", "simsiam,moco"], f"unknown METHOD 'moco'; known: {', '.join(METHODS)}, untrained, all"),
        (["--method", ""], f"unknown METHOD ''; known: {', '.join(METHODS)}, untrained, all"),
        (["--method", "untrained-random"], "METHOD untrained-random: untrained has nothing to vary; leave -random out"),
        (["--method", "all-random"], "METHOD all-random: all has nothing to vary; leave -random out"),
        (["--sed", "x"], "unrecognized arguments: --sed x (see `python -m room.module --help`)"),
        (["--data"], "argument --data: expected one argument (see `python -m room.module --help`)"),
    ],
)
def test_a_wrong_argument_is_one_line(words, line):
    assert refusal(*words) == line


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", "", str(2**32)])
def test_a_seed_that_generators_refuse(seed):
    assert refusal(f"--seed={seed}").startswith(f"SEED is '{seed}'; choose")


def test_the_largest_seed():
    assert parse("--seed", str(2**32 - 1)).seed == 2**32 - 1


@pytest.mark.parametrize("text", ["0", "-3", "two", "1.5", "", "\N{SUPERSCRIPT TWO}"])
def test_a_number_that_makes_no_sense_is_refused(text):
    parse = cli.whole("--limit", 1)
    assert parse("1") == 1
    with pytest.raises(UserError, match=rf"^--limit is '{text}'; choose a whole number from 1 on$"):
        parse(text)


def test_a_user_s_line_is_one_printable_line_whatever_it_quotes():
    assert (
        str(UserError("image a\nb\u2028c\ud800 is missing; restore it")) == r"image a b c\ud800 is missing; restore it"
    )
    line = str(UserError(f"list {'x' * 10**6} is damaged; restore it"))
    assert line.startswith("list xxx")
    assert line.endswith("xxx is damaged; restore it")
    assert len(line) < 5000
    assert str(UserError("class '\x1b[31mcafé\u202e' is unknown")) == r"class '\x1b[31mcafé\u202e' is unknown"


def test_an_argument_that_is_not_utf8_is_refused_in_printable_words():
    with pytest.raises(UserError, match=r"^argument 'sets/caf\\udce9' is not UTF-8; rename what it names$"):
        parse("--data", os.fsdecode(b"sets/caf\xe9"))


def test_help_lists_the_arguments_and_their_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for argument in ("profile", "method", "seed", "data", "checkpoints", "results", "runs", "checkpoint", "name"):
        assert f"--{argument} " in text
    assert "(default: demo)" in text


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("all", list(METHODS)),
        ("byol", ["byol"]),
        ("byol simsiam", ["byol", "simsiam"]),
        ("byol, simsiam", ["byol", "simsiam"]),
        ("simsiam all", list(METHODS)),
        ("untrained all untrained", ["untrained", *METHODS]),
    ],
)
def test_method_list(text, methods):
    assert method_list(text) == methods


@given(st.text())
def test_method_list_gives_known_methods_or_lists_them(text):
    try:
        assert set(method_list(text)) <= {"untrained", *METHODS}
    except UserError as error:
        assert all(method in str(error) for method in METHODS)  # noqa: PT017  (either outcome is right)


@pytest.mark.parametrize(("method", "seed", "name"), [("byol", 0, "byol"), ("byol", 3, "byol-seed3")])
def test_checkpoint_name(method, seed, name):
    assert checkpoint_name(method, seed) == name


def test_every_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    names = ("data", "checkpoints", "results", "runs", "checkpoint")
    args = vars(parse(*(word for name in names for word in (f"--{name}", "~/a~b"))))
    assert {name: args[name] for name in names} == dict.fromkeys(names, Path("/home/me/a~b"))
    assert parse("--data", "a/~").data == Path("a/~")
    assert refusal("--data", "~nobody-here/sets") == (
        "path ~nobody-here/sets: no home folder is known for ~nobody-here; give the whole path"
    )


def test_no_command_has_a_path_that_does_not_know_the_home_folder():
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    assert [str(file) for file in files if re.search(r"\btype=Path\b", file.read_text())] == []
    assert sum("type=cli.path" in file.read_text() for file in files) > 5


def test_subjects_are_our_own_checkpoints():
    found = subjects(parse("--method", "byol,simsiam", "--seed", "2", "--profile", "imagenet", "--checkpoints", "c"))
    assert [(s.name, s.path, s.make_it) for s in found] == [
        (m, Path(f"c/imagenet/{m}-seed2.pth"), f"make pretrain PROFILE=imagenet METHOD={m} SEED=2")
        for m in ("byol", "simsiam")
    ]


def test_a_subject_of_the_user_s():
    found = subjects(parse("--checkpoint", "their/file.pth", "--name", "theirs", "--key", "teacher"))
    assert [(s.name, s.path, s.key) for s in found] == [("theirs", Path("their/file.pth"), "teacher")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--checkpoint", "a.pth"], "--checkpoint a.pth needs a label: add NAME=label"),
        (["--name", "a"], "add CHECKPOINT=path"),
        (["--key", "a"], "add CHECKPOINT=path"),
        (
            ["--checkpoint", "zoo:a", "--name", "a"],
            "zoo:a is neither a file nor one of timm:NAME, torch",
        ),
        (["--checkpoint", "hf:../a", "--name", "a"], "hf:../a is neither a file nor one of"),
        (["--checkpoint", "a.pth", "--name", "a/b"], "NAME 'a/b'"),
        (["--checkpoint", "a.pth", "--name", ".."], "NAME '..'"),
    ],
)
def test_a_checkpoint_needs_a_label_and_a_label_a_checkpoint(words, says):
    with pytest.raises(UserError) as caught:
        subjects(parse(*words))
    assert says in str(caught.value)


def test_only_commands_that_read_checkpoints_take_one():
    with pytest.raises(UserError, match="unrecognized arguments: --checkpoint"):
        parse("--checkpoint", "a", reads_checkpoint=False)


def test_the_first_line_holds_module_profile_and_resolved_paths(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    announce("room.module", parse("--seed", "3"), runs=Path("runs"))
    here = tmp_path.resolve()
    assert capsys.readouterr().out == (
        f"[room.module] profile=demo  seed=3  data={here}/data  results={here}/results  runs={here}/runs\n"
    )


def test_exit_code_of_an_interrupt_is_the_shell_s():
    assert 128 + signal.SIGINT == cli.INTERRUPTED
