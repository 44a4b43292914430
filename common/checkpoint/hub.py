"""Checkpoints by name: timm's, torchvision's and the Hugging Face Hub's, through these libraries' own functions."""

import io
import re
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import timm
from huggingface_hub import constants, file_exists, hf_hub_download, try_to_load_from_cache
from torchvision.models import get_model_weights

from common.checkpoint import SCHEMA, save_tensors
from common.errors import UserError
from common.files import alone

TIMEOUT = 10  # seconds to wait for the Hub's first answer
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # a repository's file of weights, by the Hub's convention


def fetch(word: str, folder: Path) -> Path:
    """Return the file of `timm:NAME`, `torchvision:NAME`, `hf:OWNER/NAME` or `hf:OWNER/NAME/FILE`.

    What is not a file yet is saved in `folder`/hub, and is not fetched twice. Raises UserError for other words, unknown
    names, and where the network is needed and there is none.
    """
    library, _, name = word.partition(":")
    if library not in FETCH or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
        raise UserError(f"CHECKPOINT={word} is neither a file nor one of {', '.join(f'{key}:NAME' for key in FETCH)}")
    place = folder / "hub" / f"{library}-{name.replace('/', '-')}.pth"
    with alone(place):
        if place.is_file():
            return place
        try:
            return FETCH[library](name, place)
        except Exception as error:  # of several libraries, each with errors of its own
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"CHECKPOINT={word} cannot be fetched: {reason}; correct the name, connect this machine, or fetch the "
                "file elsewhere and give its path"
            ) from None


def _timm(name: str, place: Path) -> Path:
    if repository := timm.get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id:
        _check_reachable(repository)
    network = timm.create_model(name, pretrained=True, num_classes=0)
    meta = {"schema": SCHEMA, "arch": name.partition(".")[0], "name": name}
    save_tensors(place, {"state_dict": network.state_dict(), "meta": meta})
    return place


def _torchvision(name: str, place: Path) -> Path:
    weights = get_model_weights(name).DEFAULT
    with redirect_stdout(io.StringIO()):  # torch announces what the error would say
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    save_tensors(place, {"state_dict": state})
    return place


def _hugging_face(name: str, _place: Path) -> Path:
    owner, model, *file = name.split("/")
    repository, files = f"{owner}/{model}", ["/".join(file)] if file else WEIGHTS
    if cached := _check_reachable(repository, files):
        return cached
    for candidate in files[:-1]:
        if file_exists(repository, candidate):
            return Path(hf_hub_download(repository, candidate))
    return Path(hf_hub_download(repository, files[-1]))


def _check_reachable(repository: str, files: Sequence[str] = WEIGHTS) -> Path | None:
    """Return the first of a repository's files that is in the Hub's cache, if one is.

    Otherwise raise an OSError where the Hub does not answer: its own library would try again for half a minute.
    """
    cached = [try_to_load_from_cache(repository, file) for file in files]
    if found := [Path(file) for file in cached if isinstance(file, str)]:
        return found[0]
    urllib.request.urlopen(constants.ENDPOINT, timeout=TIMEOUT).close()  # noqa: S310
    return None


FETCH: dict[str, Callable[[str, Path], Path]] = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}
