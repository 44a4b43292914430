"""Resume files, written as plain data and read without running code; random states."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner as MMEngineRunner
from mmengine.utils import apply_to
from typing_extensions import override

from common.errors import UserError
from common.files import is_whole_zip


def newest_resume_file(work_dir: Path) -> Path | None:
    """Return the resume file of the latest step in `work_dir`, or None."""
    files = resume_files(work_dir)
    return files[-1][1] if files else None


def resume_files(work_dir: Path) -> list[tuple[int, Path]]:
    """Return the resume files in `work_dir` with their numbers of steps or epochs, the latest last."""
    matches = ((re.fullmatch(r"(?:epoch|iter)_(\d+)", file.stem), file) for file in work_dir.glob("*.pth"))
    return sorted((int(match[1]), file) for match, file in matches if match)


def read_resume_file(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return a Runner's checkpoint, read with `weights_only=True`. Raises UserError when it cannot be read."""
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
        reason = None if is_whole_zip(path) else "damaged"
    except Exception as error:
        unsafe = re.search(r"[Uu]nsupported (global: )?GLOBAL \S+", str(error))
        reason = unsafe[0] if unsafe else "truncated or damaged"
    if reason is not None:
        raise UserError(f"cannot resume from {path} ({reason}); delete it to resume from an earlier one")
    return content


class PlainState(Hook):
    """Keep the Runner's checkpoints free of pickled objects, so that they load with `weights_only=True`.

    mmengine puts its message hub into them as HistoryBuffer objects; here these become lists of numbers on
    saving, and HistoryBuffers again on loading. (Allowing the classes by name would not be enough: a
    HistoryBuffer's pickle names `getattr`.)
    """

    priority = "LOWEST"

    @override
    def before_save_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Replace the buffers by (values, counts), and leave out run-time information that is not a plain value."""
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {
            key: [part.tolist() for part in buffer.data] for key, buffer in hub["log_scalars"].items()
        }
        hub["runtime_info"] = {k: v for k, v in hub["runtime_info"].items() if isinstance(v, int | float | str)}
        known = hub["log_scalars"].keys() | hub["runtime_info"].keys()
        hub["resumed_keys"] = {key: value for key, value in hub["resumed_keys"].items() if key in known}
        # NumPy's scalars, such as learning rates, pass for floats, but are objects to the unpickler.
        numpy_values = apply_to(checkpoint, lambda x: isinstance(x, np.generic | np.ndarray), lambda x: x.tolist())
        checkpoint.update(numpy_values)

    @override
    def after_load_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        """Restore the buffers, and give CheckpointHook the list of existing files, of which it keeps the latest."""
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {key: HistoryBuffer(*parts) for key, parts in hub["log_scalars"].items()}
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                files = resume_files(Path(runner.work_dir))
                steps = [n for n, file in files if file.name == hook.filename_tmpl.format(n)]
                hub["runtime_info"]["keep_ckpt_ids"] = steps


class RandomState(Hook):
    """Keep every process's random number generators in the checkpoints, so that a resumed run continues them.

    mmengine calls the hooks of a save on the main process alone; `collect` is called on all.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, torch.Tensor]] = []

    def collect(self) -> None:
        """Gather the states of all processes' generators, one byte tensor per generator."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        self._states = all_gather_object(state)

    @override
    def before_save_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_states"] = self._states

    @override
    def after_load_checkpoint(self, runner: MMEngineRunner, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["random_states"]
        if len(states) != runner.world_size:  # then no state is this process's
            return
        state = states[runner.rank]
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
