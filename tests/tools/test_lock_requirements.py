"""From `pip freeze` to requirements.txt."""

import subprocess
import sys

import pytest

from tools.lock_requirements import HEADER, LINUX, locked


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numpy==2.2.6\n", ["numpy==2.2.6"]),
        ("torch==2.14.1+cpu", ["torch==2.14.1"]),  # the index a build came from is no part of the pin
        ("nvidia-cudnn-cu13==9.24.0.43", [f"nvidia-cudnn-cu13==9.24.0.43 {LINUX}"]),
        ("triton==3.8.0", [f"triton==3.8.0 {LINUX}"]),
        ("opencv-python==4.12.0.88", []),
        ("opencv-python-headless==4.12.0.88", ["opencv-python-headless==4.12.0.88"]),
        ("pip==26.0", []),
        ("# a comment", []),
        ("", []),
        ("-e git+https://example.org/gsg.git#egg=gsg", []),
    ],
)
def test_a_line(line, expected):
    assert list(locked([line])) == expected


def test_the_module_filters_standard_input():
    done = subprocess.run(
        [sys.executable, "-m", "tools.lock_requirements"],
        input="pip==1.0\na==1\nb==2\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == HEADER + "a==1\nb==2\n"
