"""What a person sees while a run trains, also when nobody looks any more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SPEAKS = """
import sys
from headway.cli.progress import progress
with progress(json=sys.argv[1] == "json") as show:
    for number in range(2000):
        show.say(f"line {number}")
"""
NAIVE = "import sys\nfor number in range(2000):\n    print(number, flush=True)"


def to_nobody(code: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program whose output has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)


@pytest.mark.fault(37)
@pytest.mark.parametrize("how", ["plain", "json"])
def test_output_that_nobody_reads_is_dropped_to_the_end(how: str) -> None:
    done = to_nobody(SPEAKS, how)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_that_the_process_would_end_with_an_error() -> None:
    """Negative control."""
    assert to_nobody(NAIVE).returncode != 0
