"""Text that others wrote reaches no terminal with codes that it would obey."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lightning_shards import entry
from lightning_shards.errors import InputError, RunError
from lightning_shards.terminal import plain_lines, printable, say, show

from . import PATIENCE

EVIL = "a\x1b]0;title\x07\x1b[2J\u202eb\r\n\x9b31mc\x00\u2028\ud800"


def is_plain(text: str) -> bool:
    """Nothing but letters, marks, numbers, signs and blanks, on one line."""
    turns = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    return not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in turns
        for letter in text
    )


@given(st.text(st.characters()))
@example(EVIL)
def test_no_code_is_left(text: str) -> None:
    assert is_plain(printable(text)) and all(map(is_plain, plain_lines(text).split("\n")))
    assert plain_lines(text).count("\n") == text.count("\n")
    printable(text).encode()


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
@example("猫 café 100% \N{NO-BREAK SPACE}👩\u200d🚀")
def test_what_can_be_read_stays(text: str) -> None:
    assert printable(text) == text


def test_an_error_is_one_plain_line(capsys: Any) -> None:
    for kind, status in ((InputError, 2), (RunError, 1)):
        with pytest.raises(SystemExit) as end, entry.command():
            raise kind(f"no run {EVIL}")
        said = capsys.readouterr().err
        assert end.value.code == status and is_plain(said[:-1]) and said[-1] == "\n", said


class Full(io.StringIO):
    """A log on a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_takes_no_more_ends_no_training(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    say("epoch 1")
    assert "standard output could not be written (No space left on device)" in capsys.readouterr().err
    with pytest.raises(RunError, match="standard output could not be written"):
        show("a result")
    monkeypatch.setattr(sys, "stderr", Full())
    say("a note", sys.stderr)


STARTED_WITH_NOTHING = """
import subprocess, sys
from lightning_shards.entry import command
with command():
    assert not (sys.stdin.read() or sys.stdout.isatty() or sys.stderr.isatty())
    print("nobody reads this")
    print("nor this", file=sys.stderr)
    with open("file", "w") as file:
        file.write("whole")
        file.flush()
        subprocess.run([sys.executable, "-c", "import sys; sys.stdout.write('a child')"], check=True)
"""


def test_streams_that_are_closed_lead_nowhere(tmp_path: Path) -> None:
    """As `>&-` leaves them: they are no streams without methods, nor the file that is opened next."""
    script = 'exec "$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, sys.executable, STARTED_WITH_NOTHING], cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "whole"
