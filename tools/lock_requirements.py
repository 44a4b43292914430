"""Turn `pip freeze` (standard input) into requirements.txt (standard output). `make lock` calls it."""

import sys
from collections.abc import Iterable, Iterator

HEADER = """\
# Every package, transitive ones too, that `make setup` installs (with --no-deps: this list is complete).
# Regenerate after a change of pyproject.toml's dependencies with: make lock
# opencv-python is left out on purpose: OpenMMLab asks for it beside opencv-python-headless, both install the
# same folder `cv2`, and only the headless one works on servers without libGL.
"""
LEFT_OUT = ("pip", "wheel", "opencv-python")
# The packages of a CUDA build of torch; other platforms neither need nor have them.
LINUX_ONLY = ("cuda-", "nvidia-", "triton")
LINUX = '; sys_platform == "linux" and platform_machine == "x86_64"'


def locked(freeze: Iterable[str]) -> Iterator[str]:
    """Yield the pinned lines of a freeze, without the packages left out, with platform markers."""
    for line in freeze:
        name, _, version = line.strip().partition("==")
        if not version or name in LEFT_OUT:
            continue
        yield f"{name}=={version.split('+')[0]}" + (f" {LINUX}" if name.startswith(LINUX_ONLY) else "")


if __name__ == "__main__":
    sys.stdout.write(HEADER + "".join(f"{line}\n" for line in locked(sys.stdin)))
