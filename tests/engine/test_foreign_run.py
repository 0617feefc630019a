"""A run's folder is data, whoever made it: nothing it names is imported or called, and nothing takes long."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.errors import InputError
from lightning_shards.reporting import report, table
from lightning_shards.train.config_safety import check_config, check_names
from lightning_shards.train.trained_model import best_model
from lightning_shards.yaml_text import parse_yaml
from team import __main__ as commands
from team.model import ImageModel

LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
FOREIGN = {
    "a class in the folder": [{"class_path": "runs.foreign.own.Own"}],
    "its bare name": "runs.foreign.own.Own",
    "a name in a list": ["runs.foreign.own.Own"],
    "a function in the folder": [{"class_path": LAMBDA, "init_args": {"setup": "runs.foreign.own.function"}}],
    "a system call": [{"class_path": LAMBDA, "init_args": {"setup": "os.system"}}],
    "a system call by another way": [{"class_path": LAMBDA, "init_args": {"setup": "torch.os.system"}}],
    "a function of a package": [{"class_path": LAMBDA, "init_args": {"setup": "torch.hub.load"}}],
    "a process": [{"class_path": "subprocess.Popen", "init_args": {"args": "true"}}],
    "a process by another way": [{"class_path": "torch.multiprocessing.Process"}, {"class_path": "torch.hub.Path"}],
    "YAML within a text": "[{class_path: runs.foreign.own.Own}]",
    "another file": "runs/foreign/more.yaml",
    "a file beside train.py": [{"class_path": "beside.Own"}],
}


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with code in it, in a project that can import from there."""
    folder = tmp_path / "runs" / "foreign"
    folder.mkdir(parents=True)
    code = "import pathlib\npathlib.Path('ran').touch()\nclass Own: pass\ndef function(*_): pass\n"
    (folder / "own.py").write_text(code)
    (tmp_path / "beside.py").write_text(code)
    (folder / "more.yaml").write_text("[{class_path: runs.foreign.own.Own}]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.mark.parametrize("callbacks", FOREIGN.values(), ids=FOREIGN)
def test_a_runs_config_names_no_foreign_code(foreign: Path, callbacks: object) -> None:
    (foreign / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    with pytest.raises(InputError, match="a run's config may name no"):
        check_config(foreign / "config.yaml", "team.model")
    assert not Path("ran").exists() and not [name for name in sys.modules if name.startswith("runs")]


LARGE = {  # what the parser would read, and the look through it has a limit
    "many bytes": "#" * (5 << 20) + "\n[{class_path: runs.foreign.own.Own}]",
    "many levels": "[" * 200 + "{class_path: runs.foreign.own.Own}" + "]" * 200,
    "itself": "[large.yaml, {class_path: runs.foreign.own.Own}]",
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_a_file_that_cannot_be_looked_through_is_refused(foreign: Path, content: str) -> None:
    Path("large.yaml").write_text(content)
    (foreign / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": "large.yaml"}}))
    with pytest.raises(InputError, match=r"trainer\.callbacks"):
        check_config(foreign / "config.yaml", "team.model")
    assert not Path("ran").exists()


def test_weights_of_any_size_are_not_read_for_their_names(foreign: Path) -> None:
    """A checkpoint is no text, which its first bytes say."""
    with Path("large.ckpt").open("wb") as file:
        file.write(b"PK\3\4\0")
        file.truncate(1 << 34)
    (foreign / "config.yaml").write_text(yaml.safe_dump({"model": {"weights": "large.ckpt"}}))
    assert check_config(foreign / "config.yaml", "team.model")


def test_what_teams_name_is_let_through(foreign: Path) -> None:
    good = {
        "data": {"path": "runs.foreign", "image_size": 28},
        "model": {"backbone": "resnet50.a1_in1k", "weights": "runs/foreign/own.py"},
        "trainer": {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}},
                {"class_path": "team.model.ImageModel"},
                {"class_path": "lightning_shards.train.ledger.Ledger"},
                {"class_path": "EarlyStopping"},
            ],
            "precision": "bf16-mixed",
        },
    }
    (foreign / "config.yaml").write_text(yaml.safe_dump(good))
    check_config(foreign / "config.yaml", "team.model")


@pytest.mark.parametrize("text", ["config: other.yaml", "trainer: runs/foreign/more.yaml", "[1]", "a: [", ""])
def test_a_config_that_is_none_is_a_sentence(foreign: Path, text: str) -> None:
    (foreign / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml"):
        check_config(foreign / "config.yaml", "team.model")


def test_resume_of_a_foreign_run_ends_with_status_2(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (foreign / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": FOREIGN["a class in the folder"]}}))
    before = sorted(foreign.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", "foreign"])
    with pytest.raises(SystemExit) as end:
        train.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert not Path("ran").exists() and sorted(foreign.rglob("*")) == before


def test_a_checkpoints_settings_name_no_foreign_code(foreign: Path) -> None:
    with pytest.raises(InputError, match="may name no"):
        check_names({"inner": {"class_path": "runs.foreign.own.Own"}}, foreign / "best.ckpt", "team.model")
    (foreign / "checkpoints").mkdir()
    (foreign / "config.yaml").write_text("data: {path: x}\ntrainer: {}\n")
    contents: list[Any] = [
        {"state_dict": {}, "hyper_parameters": [1]},
        {"state_dict": {}, "hyper_parameters": {"backbone": {"class_path": "os.system"}}},
        {"state_dict": {}},
        {"state_dict": [1]},
        [1, 2],
    ]
    for content in contents:
        torch.save(content, foreign / "checkpoints" / "best.ckpt")
        with pytest.raises(InputError, match=r"best\.ckpt"):
            best_model(ImageModel, foreign)
    assert not Path("ran").exists()


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "values"),
        ("a: " + "[" * 3_000 + "]" * 3_000, "level"),
        ("a: " + "{b: " * 3_000 + "1" + "}" * 3_000, "levels"),
        ("a: &a [*a]", "within itself"),
        ("a: " + "1" * 100_000, "characters"),
        ("a: " + "1" * 60_000, "digits"),
        ("a: " + "1:" * 30_000 + "1", "digits"),
        ("a: !!python/object/apply:os.system [true]", "python"),
        (b"\xff\xfe\x00", ""),
        ("x" * (5 << 20), "MB"),
    ],
)
def test_yaml_without_measure_is_refused(text: str | bytes, why: str, foreign: Path) -> None:
    try:
        parse_yaml(text)
        assert not why
    except ValueError as error:
        assert why in str(error) and "\n" not in str(error)
    (foreign / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    assert [row["run"] for row in table.rows()] == ["foreign"]
    report.write(foreign)


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]))


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda s: st.lists(s) | st.dictionaries(TEXT, s)))
def test_what_yaml_can_say_is_read_as_it_was_written(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


def test_commands_say_one_sentence_of_a_foreign_run(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (foreign / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "hyper_parameters": {}}, foreign / "checkpoints" / "best.ckpt")
    for text in (LAUGHS, "trainer: 5", "data: {}\ntrainer: {}", "[]"):
        (foreign / "config.yaml").write_text(text)
        for command in (["evaluate", "foreign"], ["predict", "foreign", "runs"], ["export", "foreign", "model.pt2"]):
            monkeypatch.setattr(sys, "argv", ["python -m team", *command])
            with pytest.raises(SystemExit) as end:
                sys.exit(commands.main())
            said = capsys.readouterr().err
            assert end.value.code == 2 and said.startswith("error: "), said
