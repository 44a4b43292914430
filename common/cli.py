"""What every command shares: its arguments, its first line, and errors that a user can act on."""

import argparse
import atexit
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import DictAction

from common.errors import Stopped, UserError, blamed, last_line, lost_worker, rank
from common.names import ABLATIONS, LOGGERS, METHODS, PROFILES, UNTRAINED, checkpoint_name
from common.run import Folders, Subject

INTERRUPTED = 130  # 128 + SIGINT, the shell's convention


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the defaults that are words or numbers; text and examples keep their lines."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.nargs == 0 or action.default in (None, "", {}) or isinstance(action.default, list)
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like every other error of a user.

    `examples` are commands, a line each, for the end of the help. Options cannot be abbreviated, so that --checkpoint
    is not taken for --checkpoints.
    """

    def __init__(self, module: str, description: str = "", examples: str = "") -> None:
        lines = "".join(f"\n  {line.strip()}" for line in examples.strip().splitlines())
        super().__init__(
            module,
            description=description,
            epilog=f"examples:{lines}" if lines else None,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words. They become paths, records and logs, so each must be UTF-8."""
        for word in sys.argv[1:] if args is None else args:
            if any("\ud800" <= letter <= "\udfff" for letter in word):
                raise UserError(f"argument {word!a} is not UTF-8; rename what it names")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a UserError."""
        raise UserError(f"{message} (see `python -m {self.prog} --help`)")


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """Return an argparse `type` that accepts the known words and lists them when it refuses one."""
    words = tuple(known)

    def check(word: str) -> str:
        if word not in words:
            raise UserError(f"unknown {kind} '{word}'; known: {', '.join(words)}")
        return word

    return check


def method_list(text: str) -> list[str]:
    """Parse METHOD: a method, several separated by commas or spaces, or `all`; `<method>-<ablation>` varies one."""
    known, ablation = one_of("METHOD", (*METHODS, UNTRAINED, "all")), one_of("ablation", ABLATIONS)
    words = text.replace(",", " ").split() or [""]
    for word in words:
        method, dash, variation = word.partition("-")
        known(method)
        if dash and method not in METHODS:
            raise UserError(f"METHOD {word}: {method} has nothing to vary; leave {dash}{variation} out")
        if dash:
            ablation(variation)
    return list(dict.fromkeys(name for word in words for name in (METHODS if word == "all" else [word])))


def whole(name: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argparse `type` that accepts the whole numbers from `least` to `most`."""

    def check(text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() else -1
        if number < least or (most is not None and number > most):
            top = "on" if most is None else f"to {most}"
            raise UserError(f"{name} is '{text}'; choose a whole number from {least} {top}")
        return number

    return check


def logger(word: str) -> str:
    """Parse LOGGER; raise UserError unless its package is installed."""
    one_of("LOGGER", LOGGERS)(word)
    if importlib.util.find_spec(word) is None:
        raise UserError(f"LOGGER={word} needs the package {word}: pip install {word} in this environment")
    return word


def share(name: str) -> Callable[[str], float]:
    """Return an argparse `type` that accepts the numbers from 0 to 1."""

    def check(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise UserError(f"{name} is '{text}'; choose a number from 0 to 1")
        return number

    return check


def path(text: str) -> Path:
    """Parse a path; a leading `~`, which shells leave as it is in DATA=~/sets, is the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"path {text}: no home folder is known for {Path(text).parts[0]}; give the whole path"
        ) from None


seed = whole("SEED", 0, 2**32 - 1)  # what NumPy's and torch's generators both take


def parser(
    module: str, description: str, examples: str = "", *, reads_checkpoint: bool = False, unused: str = ""
) -> Parser:
    """Return a parser with the arguments that every command takes, and `examples` of the command, a line each.

    With `reads_checkpoint`, the command evaluates our own checkpoints by --method, or any other by
    --checkpoint and --name. A chain of commands is given the same words; those that this one does not need,
    `unused`, are taken and not listed.
    """
    result = Parser(module, description, examples)
    methods = (
        f"one or several of {', '.join(METHODS)}, or all; {UNTRAINED}, the network before training; "
        f"<method>-<ablation> for {', '.join(ABLATIONS)}"
    )
    for name, default, kind, said in (
        ("profile", "demo", one_of("PROFILE", PROFILES), f"settings: {', '.join(PROFILES)}"),
        ("method", "simsiam_gsg", method_list, methods),
        ("seed", "0", seed, "seed of everything random"),
        ("data", "data", path, "root folder of the data sets"),
        ("checkpoints", "checkpoints", path, "where exports live"),
        ("results", "results", path, "where results records live"),
        ("runs", "runs", path, "where logs and resumable states live"),
    ):
        result.add_argument(
            f"--{name}", default=default, type=kind, help=argparse.SUPPRESS if name in unused.split() else said
        )
    if reads_checkpoint:
        result.add_argument(
            "--checkpoint",
            type=path,
            help="evaluate this checkpoint instead of our own: a file, timm:NAME, torchvision:NAME or hf:OWNER/NAME",
        )
        result.add_argument("--name", help="the label of --checkpoint in records and tables")
        result.add_argument("--key", help="the network to take where --checkpoint holds several")
    return result


def subjects(args: argparse.Namespace) -> list[Subject]:
    """Return the checkpoints that the arguments ask for; they need not exist yet."""
    if args.checkpoint is not None:
        if not args.name:
            raise UserError(f"--checkpoint {args.checkpoint} needs a label: add NAME=label (--name label)")
        check_label(args.name)
        file = args.checkpoint
        if ":" in str(file) and not file.exists():
            from common.checkpoint.hub import fetch

            file = fetch(str(file), args.checkpoints)
        return [Subject(args.name, file, None, args.key)]
    if args.name or args.key:
        raise UserError("NAME and KEY belong to a checkpoint of yours: add CHECKPOINT=path (--checkpoint path)")
    return exports(args)


def check_label(name: str) -> None:
    """Raise UserError unless a NAME may become a folder's name."""
    if name in (".", "..") or Path(name).name != name:
        raise UserError(f"NAME '{name}' becomes a folder of results: choose a label without slashes")


def exports(args: argparse.Namespace) -> list[Subject]:
    """Return our own checkpoints of the arguments' methods and seed, which pretraining makes."""
    folder = args.checkpoints / args.profile
    return [
        Subject(
            method,
            folder / f"{checkpoint_name(method, args.seed)}.pth",
            f"make pretrain PROFILE={args.profile} METHOD={method} SEED={args.seed}",
        )
        for method in args.method
    ]


def folders(args: argparse.Namespace) -> Folders:
    """Return where the command reads and writes."""
    return Folders(args.data, args.checkpoints, args.results, args.runs)


def announce(module: str, args: argparse.Namespace, **paths: Any) -> None:
    """Print the command's first line: module, profile and resolved paths."""
    shown = {"data": args.data, "results": args.results, **paths}
    where = "  ".join(f"{key}={Path(value).resolve()}" for key, value in shown.items())
    print(f"[{module}] profile={args.profile}  seed={args.seed}  {where}", flush=True)


def run(
    main: Callable[[], Any], *, interrupted: str = "the same command with RESUME=1 (--resume) continues"
) -> NoReturn:
    """Run a command and exit: with 0 after success, 1 after one line on a user's mistake, 128 + n after signal n.

    Of several processes, only the first prints. `interrupted` says how to continue after a signal. Any other
    exception is a bug of ours and keeps its traceback.
    """
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    threading.excepthook = _thread_failed
    try:
        main()
    except KeyboardInterrupt:
        print(f"\ninterrupted; {interrupted}", file=sys.stderr)
        _leave(INTERRUPTED)
    except Stopped as stopped:
        if rank() == 0:
            print(f"{stopped}; {interrupted}", file=sys.stderr, flush=True)
        _leave(128 + stopped.signal)
    except Exception as error:
        line = _line_of(error)
        if line is None:
            raise
        _fail(line)
    if group := _group():
        group.destroy_process_group()
        atexit._run_exitfuncs()
        _leave(0)
    sys.exit(0)


def _line_of(error: Exception) -> str | None:
    """Return the line that tells a user of the error; None for a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    if said := blamed(error):
        return f"{said}; correct that and run it again: what was saved before is intact"
    return lost_worker(error)


def _leave(code: int) -> NoReturn:
    """Exit without Python's finalisers: threads of half-closed libraries may hold locks then, or abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback; of TensorBoard's writer, which a full disk ends, one line."""
    if failure.exc_value is not None and (said := blamed(failure.exc_value)):
        print(f"warning: {said}", file=sys.stderr, flush=True)
    else:
        threading.__excepthook__(failure)


def _group() -> Any:
    """Return torch.distributed if this process is in a process group, else None, without importing torch."""
    distributed = sys.modules.get("torch.distributed")
    here = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if here else None


def _fail(message: str) -> NoReturn:
    if rank() > 0:
        time.sleep(3)  # if the first process fails too, the launcher ends this one before it repeats the line
    print(f"error: {last_line(message)}", file=sys.stderr, flush=True)
    if _group():  # which to leave in good order would take the others, who may be waiting for this process
        _leave(1)
    sys.exit(1)


class Options(DictAction):
    """mmengine's DictAction, with one line for a mistake."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Parse KEY=VALUE words into a dict."""
        try:
            super().__call__(*args, **kwargs)
        except (ValueError, AssertionError, RecursionError) as error:  # mmengine recurses on dict(...) in a list
            raise UserError(f"--cfg-options takes KEY=VALUE words, not {' '.join(args[2])}: {error}") from None


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --cfg-options, --resume, --overwrite and --launcher, which every trainer has."""
    add_options_argument(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of this run")
    parser.add_argument("--overwrite", action="store_true", help="replace a run or a result of other settings")
    parser.add_argument("--launcher", default="none", choices=("none", "pytorch", "slurm"), help="how processes start")
    parser.add_argument("--logger", type=logger, metavar="wandb|mlflow", help="log there, too, besides TensorBoard")


def add_options_argument(parser: argparse.ArgumentParser) -> None:
    """Add --cfg-options."""
    parser.add_argument(
        "--cfg-options", nargs="+", action=Options, default={}, metavar="KEY=VALUE", help="override config entries"
    )


def add_scale_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that fit a trainer to a machine; `scale_options` turns them into config entries."""
    parser.add_argument("--amp", nargs="?", const="fp16", choices=("fp16", "bf16"), help="mixed precision")
    parser.add_argument(
        "--accumulate",
        type=whole("--accumulate", 1),
        default=1,
        metavar="N",
        help="forward each process's batch in N parts within one step",
    )
    parser.add_argument("--channels-last", action="store_true", help="keep images and weights channels-last")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="torch.compile the backbone (needs a C++ compiler); reduce-overhead replays small networks as CUDA graphs",
    )


def add_deterministic_argument(parser: argparse.ArgumentParser) -> None:
    """Add --deterministic, for trainers whose every operation has a deterministic form on GPUs."""
    parser.add_argument("--deterministic", action="store_true", help="the same bits in every run, also on a GPU")


def scale_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the config entries that the arguments of `add_scale_arguments` and --deterministic mean."""
    options: dict[str, Any] = {}
    if args.amp:
        options["optim_wrapper.dtype"] = {"fp16": "float16", "bf16": "bfloat16"}[args.amp]
    if args.accumulate > 1:
        options["train_cfg.accumulate"] = args.accumulate
    if args.channels_last:
        options["channels_last"] = True
    if args.compile:
        options["compile"] = True if args.compile == "default" else {"mode": args.compile}
    if getattr(args, "deterministic", False):
        options["randomness.deterministic"] = True
        options["env_cfg.cudnn_benchmark"] = False  # it would choose other algorithms from run to run
    return options
