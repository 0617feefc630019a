"""The how-to pages of the loader: their code is run, as it stands, on a small dataset; one of them in a notebook."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import PATIENCE
from .conftest import write_dataset
from .in_place import PROJECT

PAGES = PROJECT / "engine" / "docs" / "how-to"


def code(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.M | re.S))


@pytest.mark.parametrize("page", ["plain-pytorch.md", "webdataset-pipeline.md", "notebook.md"])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data" / "mine")
    (tmp_path / "page.py").write_text(code(page))
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]


def test_it_works_in_a_notebook(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    write_dataset(tmp_path / "data" / "mine")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code("notebook.md"))])
    nbclient.NotebookClient(book, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (answer,) = [one for one in book.cells[0].outputs if one.output_type == "execute_result"]
    assert any(colour in answer["data"]["text/plain"] for colour in ("red", "green", "blue"))
