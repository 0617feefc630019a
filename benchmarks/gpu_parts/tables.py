"""The tables of docs/gpu.md, from the JSON that `gpu.py` wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import PEERS

from . import PARTS

Cells = Sequence[object]
MARKS = "<!-- gpu -->", "<!-- end -->"


def publish(files: Sequence[Path], page: Path | None) -> str:
    """The tables of these files; of a part that several have, the last one's. Into `page`, where one is given."""
    results = json.loads(files[0].read_text())
    for file in files[1:]:
        results["parts"] |= json.loads(file.read_text())["parts"]
    text = render(results)
    if page:
        (page.parent / "results").mkdir(exist_ok=True)
        (page.parent / "results" / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
        first, last = MARKS
        block = f"{first}\n{text}\n{last}"
        page.write_text(re.sub(f"{first}.*?{last}", lambda _: block, page.read_text(), flags=re.DOTALL))
    return text


def render(results: dict[str, Any]) -> str:
    """One section a part, in Markdown."""
    parts = []
    if results["quick"] or results["device"] == "cpu":
        parts.append("**A trial of the command itself: small sizes, no GPU. These figures say nothing about a GPU.**")
    for name, result in results["parts"].items():
        if name == "data" and result["status"] == "done":
            continue
        lines = [f"### {PARTS[name].title[0].upper()}{PARTS[name].title[1:]}", ""]
        if result["status"] != "done":
            lines += [f"{result['status'][0].upper()}{result['status'][1:]}.", ""]
            lines += ["```", result["error"], "```", ""] if result.get("error") else []
        if figures := result.get("figures"):
            try:
                lines += SECTIONS[name](figures)
            except (KeyError, TypeError, ValueError, IndexError):  # half of a part: let it be seen as it is
                lines += ["```json", json.dumps(figures, indent=1), "```"]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def table(heads: Cells, rows: Sequence[Cells]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def error(figures: Any) -> str:
    """The last line of what went wrong; empty where it went well."""
    return str(figures["error"]).splitlines()[-1] if isinstance(figures, dict) and "error" in figures else ""


def _facts(figures: dict[str, Any]) -> list[str]:
    host, device, driver = figures["machine"], figures.get("device"), figures.get("nvidia_smi", {})
    rows = [("processor", f"{host['processor']}, {host['cores']} cores, {host['memory_gb']:.0f} GB")]
    if device:
        rows.append(("GPU", f"{device['name']}, {device['memory_gb']:.0f} GB, capability {device['capability']}"))
        rows.append(("driver, CUDA, cuDNN", f"{driver.get('driver_version')}, {device['cuda']}, {device['cudnn']}"))
        rows.append(("power limit", driver.get("power.limit")))
    rows.append(("C compiler", "yes" if figures["compiler"] else "no: nothing can be compiled"))
    rows.append(("versions", ", ".join(f"{k} {v}" for k, v in figures["versions"].items())))
    return table(["", ""], rows)


def _forecast(figures: dict[str, Any]) -> list[str]:
    rows = []
    for name, told in figures.items():
        if name == "rounds":
            continue
        if error(told):
            rows.append((name, error(told), *[""] * 9))
            continue
        rates = [number(told["stages"][stage]["images_per_second"]) for stage in ("loader", "model", "both")]
        took, joules = told["forecast"], told["energy"]["joules_per_image"]
        memory = number(told["memory_gb"]["reserved"], 1) if "memory_gb" in told else ""
        rows.append(
            (
                name,
                told["precision"],
                told["micro_batch_size"],
                *rates,
                number(told["ratio"], 3),
                number(joules, 2),
                number(took["seconds"] / 3600, 1),
                number(took["kwh"], 1),
                memory,
            )
        )
    heads = ["network", "precision", "micro-batch", "loader alone", "model alone", "both", "both / model"]
    lines = table([*heads, "J an image", "hours, 100 million", "kWh", "GPU memory, GB"], rows)
    rounds = figures.get("rounds")
    if rounds and not error(rounds):
        shown = ", ".join(f"{ratio:.3f}" for ratio in rounds["ratio"])
        lines += ["", f"{rounds['network']}, model alone and both in turn: {shown}, median {rounds['median']:.3f}", ""]
        lines[-2] += " (goal: 0.97)."
    elif rounds:
        lines += ["", f"In turn: {error(rounds)}"]
    return lines


def _settings(figures: dict[str, Any]) -> list[str]:
    base = {"copied by the step": "copied ahead"}
    rows = []
    for name, rates in figures.items():
        if error(rates):
            rows.append((name, error(rates), ""))
            continue
        beside = figures.get(base.get(name, "defaults"))
        share = f"{max(rates) / max(beside):.3f}" if isinstance(beside, list) and beside is not rates else ""
        rows.append((name, ", ".join(number(rate) for rate in rates), share if name != "copied ahead" else ""))
    return table(["setting", "images/s, rounds", "of the defaults, best"], rows)


def _loop(figures: dict[str, Any]) -> list[str]:
    rows: list[Cells] = []
    for name, told in figures.items():
        if error(told):
            rows.append((name, error(told), "", "", ""))
            continue
        low, high = told["ratio_min_max"]
        rows.append((name, told["bare_ms"], told["trainer_ms"], told["ratio_median"], f"{low} to {high}"))
    return [*table(["step", "bare, ms", "Trainer, ms", "ratio", "least to most"], rows), "", "Goal: 0.98 at 20 ms."]


def _waits(figures: dict[str, Any]) -> list[str]:
    lines = [
        "{steps} steps, of which {steps_that_waited} waited: {waits_a_step} waits a step.".format(**figures),
        "",
        *table(["waited at", "times"], [(f"`{place}`", count) for place, count in figures["places"].items()]),
    ]
    if profiled := figures.get("profiled"):
        lines += ["", *table(["seen by the profiler", "a step"], list(profiled.items()))]
    return lines


def _resume(figures: dict[str, Any]) -> list[str]:
    def equal(found: dict[str, Any]) -> str:
        if found["equal"]:
            return f"all {found['tensors']} tensors equal to the last bit"
        return f"largest difference {found['largest_difference']:.3g}"

    ledger = figures["ledger"]
    rows = [
        ("optimizer steps", figures["steps"]),
        ("killed after steps", ", ".join(map(str, figures["killed_after_steps"]))),
        ("steps done again, from the last checkpoint on", figures["done_again"]),
        ("samples lost, repeated", f"{ledger['lost']}, {ledger['repeated']}"),
        ("what else is wrong with the ledger", "; ".join(ledger["wrong"]) or "nothing"),
        ("weights, against a run that was never cut", equal(figures["weights"])),
        ("two runs that were never cut", equal(figures["never_cut_twice"])),
    ]
    return table(["", ""], rows)


def _fashion(figures: dict[str, Any]) -> list[str]:
    told = figures.get("left_out")
    if "accuracy" not in figures:
        return [f"Left out: {told}."]
    accuracy, money = figures["accuracy"], figures["cost"]
    rows = [
        ("test accuracy (goal: 95%)", "not tested" if accuracy is None else f"{accuracy:.2%}"),
        ("images trained on", number(figures["images_seen"])),
        ("seconds", number(figures["seconds"], 1)),
        ("images/s, waiting for data", f"{number(figures['images_per_second'])}, {figures['data_wait_fraction']:.0%}"),
        ("kWh", number(figures["kwh"], 4)),
        ("cents", number(None if money is None else 100 * money, 2)),
    ]
    return [*table(["", ""], rows), *(["", f"Not complete: {told}."] if told else [])]


def _loader(figures: dict[str, Any]) -> list[str]:
    rates = figures["images_per_second"]
    cores = sorted({int(count) for found in rates.values() for count in found})
    rows = [[PEERS[name].title, *(number(found.get(str(c))) for c in cores)] for name, found in rates.items()]
    left_out = [f"- not measured: {name}, {reason}" for name, reason in figures["missing"].items()]
    return [*table(["images/s on cores", *cores], rows), "", *left_out]


def _tests(figures: dict[str, Any]) -> list[str]:
    rows, failures = [], []
    for name, told in figures.items():
        rows.append((name, *(told.get(kind, "") for kind in ("passed", "failed", "errors", "skipped"))))
        failures += told.get("names", [])
        if remark := told.get("left_out") or told.get("stopped"):
            failures.append(f"{name}: {remark}")
    lines = table(["file", "passed", "failed", "errors", "skipped"], rows)
    return lines + ([""] + [f"- `{failure}`" for failure in failures] if failures else [])


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "facts": _facts,
    "data": lambda figures: [],
    "forecast": _forecast,
    "settings": _settings,
    "loop": _loop,
    "waits": _waits,
    "resume": _resume,
    "fashion": _fashion,
    "loader": _loader,
    "tests": _tests,
}
