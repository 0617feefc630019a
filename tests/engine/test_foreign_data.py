"""What somebody else made is data: whatever stands in it, it is read, or refused in one sentence that can be shown."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lightning_shards.data.dataset import Dataset, Shard
from lightning_shards.errors import InputError, RunError
from lightning_shards.inference.export import describe
from lightning_shards.inference.predict import check
from lightning_shards.reporting import report, table
from lightning_shards.runs import files
from lightning_shards.runs.metrics import read_table
from lightning_shards.train.datamodule import ShardDataModule
from lightning_shards.train.evaluate import batch_size, check_targets
from lightning_shards.train.metrics_file import MetricsFile
from lightning_shards.train.restart_guard import note_start
from lightning_shards.train.trained_model import best_model
from team import __main__ as commands
from team.model import ImageModel

from .conftest import NAMES, write_dataset
from .damage import CODES, damaged
from .test_terminal import is_plain
from .test_train import start

SHARD = {"name": "train/000000.tar", "samples": 12, "bytes": 1, "sha256": ""}
FIELDS = {"image": {"kind": "image"}, "age": {"kind": "numbers", "count": 1, "names": ["json"]}}
WRONG: dict[str, dict[str, Any]] = {
    "targets that are numbers": {"targets": [1, 2, 3]},
    "targets that are null": {"targets": None},
    "a target that is null": {"targets": ["a", None, "c"]},
    "nested targets": {"targets": [["a"], ["b"], ["c"]]},
    "targets that cannot be printed": {"targets": ["a", CODES, "c"]},
    "a text of targets": {"targets": "abc"},
    "no splits": {"splits": None},
    "a split that is no list": {"splits": {"train": {"a": 1}}},
    "a split with a name that cannot be printed": {"splits": {"train": [], CODES: []}},
    "a shard that is a text": {"splits": {"train": ["train/000000.tar"]}},
    "a shard outside": {"splits": {"train": [SHARD | {"name": "../x.tar"}]}},
    "a shard from the root": {"splits": {"train": [SHARD | {"name": "/x.tar"}]}},
    "a shard without a name": {"splits": {"train": [SHARD | {"name": ""}]}},
    "the same shard twice": {"splits": {"train": [SHARD, SHARD]}},
    "the same shard in two splits": {"splits": {"train": [SHARD], "val": [SHARD]}},
    "more samples than can be": {"splits": {"train": [SHARD | {"samples": (1 << 53) - 1}, SHARD | {"name": "b"}]}},
    **{
        f"{value!r} {what}": {"splits": {"train": [SHARD | {what: value}]}}
        for what in ("samples", "bytes")
        for value in (-1, 2.5, 10**30, None, "12", True, [12])
    },
    "a checksum that is a number": {"splits": {"train": [SHARD | {"sha256": 5}]}},
    "fields that are a list": {"fields": [1]},
    "a field that is a text": {"fields": {"image": "image"}},
    "packed that is a text": {"packed": "by hand"},
    "shards at a number": {"shards_at": 5},
    "a task that is a list": {"task": ["single_label"]},
}


@contextmanager
def one_sentence() -> Iterator[None]:
    """Success, or a sentence, which `command` prints on one line."""
    try:
        yield
    except (InputError, RunError) as error:
        assert len(str(error)) < 2_000, str(error)[:500]


def signed(content: Any) -> bytes:
    """As a file, with the fingerprint that fits, where there can be one: whoever writes one may reckon it out."""
    try:
        splits = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
        known = Dataset("", content["task"], content["targets"], splits, {}, content.get("fields", {}))
        content = content | {"fingerprint": known.fingerprint}
    except Exception:
        pass
    return json.dumps(content).encode()


@pytest.mark.parametrize("what", WRONG)
def test_a_dataset_json_with_wrong_values_is_one_sentence(what: str, tmp_path: Path) -> None:
    good = {"format": "lightning-shards/2", "task": "single_label", "targets": NAMES, "packed": {}, "fields": FIELDS}
    good |= {"splits": {"train": [SHARD]}}
    Dataset.parse(signed(good), tmp_path)
    with pytest.raises(InputError, match=r"dataset\.json is damaged") as caught:
        Dataset.parse(signed(good | WRONG[what]), tmp_path)
    assert is_plain(str(caught.value)) and len(str(caught.value)) < 500


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("foreign") / "data", sizes=(9, 8), held_out=4)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_to_a_dataset_json_is_read_or_refused(small: Path, data: st.DataObject) -> None:
    path = small / "dataset.json"
    whole = path.with_name("whole.json")
    if not whole.exists():
        shutil.copy(path, whole)
    fields = {"format": "lightning-shards/2", "fields": {"image": {"kind": "image", "names": ["png"]},
              "target": {"kind": "class", "classes": 3, "names": ["cls"]}}}  # fmt: skip
    content = json.loads(whole.read_bytes()) | data.draw(st.sampled_from([{}, fields]))
    path.write_bytes(signed(data.draw(damaged(content))))
    with one_sentence():
        module = ShardDataModule(path=str(small), global_batch_size=4, image_size=16, workers=1)
        assert module.split_batch(1) and len(module.order) > 0


@pytest.fixture(scope="module")
def a_run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign_run") / "runs" / "first"
    shutil.copytree(trained / "runs/first", folder, ignore=shutil.ignore_patterns("wandb", "step-*"))
    shutil.copytree(folder, folder.parent.parent / "whole")
    return folder


def shown(folder: Path) -> str:
    """The report and the table of the run: both can always be made."""
    page = report.write(folder).read_text()
    text = table.render(table.rows(folder=folder.parent))
    assert is_plain(page.replace("\n", "")) and is_plain(text.replace("\n", "")), "no codes"
    assert len(page) < 3_000_000 and len(text) < 500_000
    json.dumps(table.rows(folder=folder.parent))
    return page


FILES = ("summary.json", "evaluation/test.json", "config.yaml", "skipped/rank-0.jsonl", "starts.jsonl")


def content_of(folder: Path, name: str) -> Any:
    text = (folder / name).read_text()
    if name.endswith("jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return yaml.safe_load(text) if name.endswith("yaml") else json.loads(text)


def put(folder: Path, name: str, content: Any) -> None:
    rows = content if name.endswith("jsonl") else [content]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))  # JSON is YAML too


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(FILES))
def test_any_damage_to_a_runs_files_leaves_a_report_and_a_table(a_run: Path, data: st.DataObject, name: str) -> None:
    whole = a_run.parent.parent / "whole"
    for path in FILES:
        shutil.copy(whole / path, a_run / path)
    (a_run / "metrics.csv").unlink(missing_ok=True)  # whose charts would take most of the time
    put(a_run, name, data.draw(damaged(content_of(whole, name))))
    shown(a_run)
    assert all(map(files.is_number, files.earlier_metrics(a_run).values())) or name == "summary.json"
    note_start(a_run, None)


CELLS = st.sampled_from(
    ["", "1", "2.5", "nan", "inf", "-inf", "1e308", "-1e999", "9" * 400, "x", '"', '"a,b"', CODES, "x" * 200_000, "-3"]
)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    columns=st.lists(
        st.sampled_from(["step", "train/loss", "val/accuracy", "own", CODES, "", "x" * 9_000]), max_size=5
    ),
    rows=st.lists(st.lists(CELLS, max_size=6), max_size=8),
)
@example(columns=["step", "a"], rows=[["inf", "1"], ["1e308", "1"], ["9" * 400, "1"], ["-1", "1"], ["nan", "1"]])
@example(columns=["step", "train/loss"], rows=[["1", "1e308"], ["2", "-1e308"], ["3", "1e299"], ["4", "inf"]])
@example(columns=["step", "a"], rows=[["1", "x" * 200_000], ["2", "3"]])
@example(columns=["step", *(f"own/{number}" for number in range(5_000))], rows=[["1"] * 5_000])
@example(columns=["own"], rows=[["1"]])
def test_any_metrics_leave_a_report_and_can_be_added_to(a_run: Path, columns: list[str], rows: list[list[str]]) -> None:
    path = a_run / "metrics.csv"
    path.write_text("".join(",".join(row) + "\n" for row in [columns, *rows]), errors="replace")
    shown(a_run)
    metrics = MetricsFile(path)
    metrics.log_metrics({"train/loss": 0.25}, 7_000)
    metrics.save()
    assert read_table(path)[1][-1] | {"step": "7000", "train/loss": "0.25"} == read_table(path)[1][-1]


def used(folder: Path) -> None:
    """What evaluate, predict and export do with a run before they read any image."""
    model, config = best_model(ImageModel, folder)
    check(model)
    assert batch_size(config["data"]) > 0
    data = ShardDataModule(path=config["data"]["path"], global_batch_size=1, image_size=16, workers=1)
    check_targets(config["trained_on"], data)
    json.dumps(describe(model, config, folder))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), of=st.sampled_from(["checkpoint", "config"]))
def test_any_damage_to_a_checkpoint_or_a_config_is_used_or_refused(
    trained: Path, a_run: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, of: str
) -> None:
    monkeypatch.chdir(trained)
    whole = a_run.parent.parent / "whole"
    content = torch.load(whole / "checkpoints/best.ckpt", weights_only=True)
    config = content_of(whole, "config.yaml")
    if of == "checkpoint":
        kept = ("state_dict", "hyper_parameters", "model_settings", "task", "targets", "fields", "lightning_shards")
        content = data.draw(damaged({name: content[name] for name in kept if name in content}))
    else:
        config = data.draw(damaged({name: config[name] for name in ("data", "trainer")}))
    torch.save(content, a_run / "checkpoints/best.ckpt")
    put(a_run, "config.yaml", config)
    with one_sentence():
        used(a_run)


def _change(*place: Any, to: Any) -> Any:
    """A change of one value in a checkpoint."""

    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content[key]
        if to is None:
            del content[place[-1]]
        else:
            content[place[-1]] = to

    return change


_STEPS = ("epoch_loop.automatic_optimization.optim_progress", "optimizer")
STATES = {
    "no loops": _change("loops", to=None),
    "loops that are a list": _change("loops", to=[1]),
    "no callbacks": _change("callbacks", to=None),
    "callbacks that are a text": _change("callbacks", to="x"),
    "no state of the optimizer": _change("optimizer_states", to=None),
    "a state of no optimizer": _change("optimizer_states", to=[{"a": 1}]),
    "two states for one optimizer": lambda c: c["optimizer_states"].append(c["optimizer_states"][0]),
    "a state of other shapes": _change("optimizer_states", 0, "state", 0, "exp_avg", to=torch.zeros(1)),
    "a state without a part": _change("optimizer_states", 0, "state", 0, "exp_avg_sq", to=None),
    "a state of one parameter more": _change("optimizer_states", 0, "state", 99, to={"step": 1}),
    "one group less": _change("optimizer_states", 0, "param_groups", 1, to=None),
    "a group without its rates": _change("optimizer_states", 0, "param_groups", 0, "betas", to=None),
    "a scheduler of nobody": _change("lr_schedulers", to=[{"last_epoch": 1}]),
    "words for steps": _change("loops", "fit_loop", *_STEPS, "zero_grad", "total", to={"ready": "x"}),
    "words for counts": _change("callbacks", "lightning_shards/throughput", "totals", to={"images": "many"}),
    "words for the best": _change("callbacks", "lightning_shards/checkpoints", "best", to="good"),
    "a place behind the epoch": _change("lightning_shards", "position", to=10**6),
    "a place before it": _change("lightning_shards", "position", to=-8),
    "a place that is no number": _change("lightning_shards", "epoch", to=True),
    "an order that is a list": _change("lightning_shards", "order", to=[1]),
    "weights that are a list": _change("state_dict", to=[1]),
    "weights of other shapes": lambda c: c["state_dict"].update(dict.fromkeys(c["state_dict"], torch.zeros(1))),
}  # fmt: skip


def test_a_checkpoint_with_other_contents_is_not_gone_on_from(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    shutil.copytree(trained / "runs/first", tmp_path / "runs/first", ignore=shutil.ignore_patterns("wandb", "step-*"))
    (tmp_path / "colours").symlink_to(trained / "colours")
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("runs/first/checkpoints/last.ckpt")
    whole, kept = checkpoint.read_bytes(), Path("runs/first/summary.json").read_bytes()
    arguments = ["--resume", "first", "--trainer.max_epochs", "3", "--log.wandb", "false"]
    for what, change in STATES.items():
        content = torch.load(io.BytesIO(whole), weights_only=True)
        change(content)
        checkpoint.unlink()
        torch.save(content, checkpoint)
        checkpoint.with_name("best.ckpt").unlink(missing_ok=True)
        capfd.readouterr()
        status, err = start(monkeypatch, *arguments, config=None), capfd.readouterr().err
        assert status == 2 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err, (
            what,
            status,
            err,
        )
        assert Path("runs/first/summary.json").read_bytes() == kept, what


def test_names_of_runs_and_settings_reach_a_terminal_without_codes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", f"b{CODES[:-2].replace('/', '')}"):
        folder = tmp_path / "runs" / name.replace("\0", "")
        folder.mkdir(parents=True)
        put(folder, "config.yaml", {"model": {CODES: name, "backbone": CODES}, "trainer": {}})
        put(folder, "summary.json", {"status": CODES, "error": CODES, "metrics": {f"test/{CODES}": 0.5}})
    for arguments, status in (
        (["runs"], 0),
        (["runs", "--sort", CODES], 2),
        (["report", "first"], 0),
        (["report", CODES], 2),
        (["evaluate", "first"], 2),
        ([CODES], 2),
    ):
        monkeypatch.setattr(sys, "argv", ["python -m team", *arguments])
        with pytest.raises(SystemExit) as end:
            sys.exit(commands.main())
        printed, err = capsys.readouterr()
        assert (end.value.code or 0) == status, (arguments, err)
        assert all(map(is_plain, [*printed.split("\n"), *err.split("\n")])), (arguments, printed, err)
