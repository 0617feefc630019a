"""Check the answers before a single file is written: the first bad one is refused with one sentence.

Cookiecutter renders this file, runs it in the new, still empty project folder, and removes that folder again
when the status is not zero. The answers arrive as JSON in a raw string, so no quote, backslash or letter
in them can break out. A slug with a slash would make parent folders that nobody removes: cookiecutter.json
flattens it (`__one_folder`) before the folder is made, and keeps what was typed in `__typed_slug`.
"""

from __future__ import annotations

import json
import keyword
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any


def words(text: str) -> set[str]:
    """The words of a text: lists of names stay readable, and short to change."""
    return set(text.split())


# Folders and modules of a generated project: a package of that name would hide one of them, or be hidden.
OWN_NAMES = words(
    """
    src test tests train conftest configs config sample samples data runs build dist docs slurm hooks
    benchmarks examples scripts notebooks site pack adopt verify forecast evaluate predict export setup
    main utils engine lightning_shards
    """
)
# What the environment of a generated project can import, or often has beside it (a test reads a real one).
INSTALLED = words(
    """
    absl aiohappyeyeballs aiohttp aiosignal albumentations annotated_types anyio array_api_compat arrow
    ast_serialize attr attrs av boto3 botocore braceexpand bs4 cachetools certifi cffi
    charset_normalizer click cloudpickle coreweave_evaluations cuda cv2 cycler dask datasets dateutil
    deeplake deepspeed deflate distro dns docker docstring_parser einops example execnet fairscale
    fastapi ffcv filelock flask flatbuffers fontTools frozenlist fsspec functorch gcsfs git gitdb google
    grpc h11 h5py httpcore httpx huggingface_hub hydra hypothesis idna imageio importlib_metadata
    iniconfig IPython isympy jax jinja2 joblib jsonargparse jsonschema jupyter keras kornia librt
    lightning lightning_cloud lightning_fabric lightning_utilities litdata llvmlite markdown markdown_it
    markupsafe matplotlib mdurl ml_dtypes mpl_toolkits mpmath multidict mypy mypy_extensions mypyc
    networkx ninja nodeenv numba numpy nvidia omegaconf onnx onnx_ir onnxruntime onnxscript opencv
    opentelemetry orjson packaging pandas pathspec peft PIL pip pkg_resources platformdirs pluggy polars
    propcache proto protobuf psutil py pyarrow pycocotools pycparser pydantic pydantic_core pygments
    pylab pynvml pyparsing pyright pytest pytorch_lightning pytz ray regex requests rich ruff s3fs
    safetensors scipy seaborn sentencepiece sentry_sdk setproctitle setuptools simplejpeg six sklearn
    skimage slugify smmap sniffio sortedcontainers soupsieve sqlalchemy streaming sympy tensorboard
    tensorboard_data_server tensorflow threadpoolctl tifffile timm tokenizers tomli toml torch
    torchaudio torchdata torchgen torchmetrics torchvision tornado tqdm transformers triton ty
    typeshed_client typer typing_extensions typing_inspection tzdata ujson urllib3 uv wandb watchdog
    wcwidth webdataset websockets werkzeug wheel wrapt xxhash yaml yarl zipp zstandard
    """
)
# Distributions not named like their module: the project may not be called like one of its dependencies.
DISTRIBUTIONS = words(
    """
    gitpython grpcio hatchling lightning-shards nvidia-ml-py opencv-python opencv-python-headless pillow protobuf pyyaml
    python-dateutil scikit-learn scikit-image tensorboard-data-server
    """
)
# Standard modules that some of the Pythons it may run on have, and the one that runs this may not.
OTHER_STANDARD = {"annotationlib", "asynchat", "asyncore", "compression", "distutils", "imp", "smtpd"}

# What opens a piece of template; written so that it does not open one here.
MARKS = tuple("{" + letter for letter in "#%{")
FREE_TEXT = ("project_name", "description", "author")
CHOICES = {
    "license": ("MIT", "BSD-3-Clause", "Apache-2.0", "Proprietary"),
    "python_version": ("3.11", "3.12", "3.13", "3.14"),
    "task": ("single_label", "multi_label", "regression", "segmentation", "detection"),
    "scaling": ("one_gpu", "many_gpus", "slurm"),
    "torch_build": ("default", "cpu", "cu126", "cu128", "cu130"),
}


def taken_names() -> set[str]:
    """Names a package must not have, in lower case: some file systems do not tell the cases apart."""
    standard = set(sys.stdlib_module_names) | OTHER_STANDARD
    return {name.lower() for name in OWN_NAMES | INSTALLED | standard}


def free_text_problems(answers: dict[str, Any]) -> Iterator[str]:
    """Free text is any one line: it ends up in TOML, Markdown and the licence, and cruft renders it again."""
    for name in FREE_TEXT:
        text = str(answers[name])
        if not text.strip():
            yield f"{name} is empty: type a few words."
        elif any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in text):
            yield f"{name} has a line break or a control character: type one line of plain text."
        elif any(mark in text for mark in MARKS):
            yield f"{name} has {' or '.join(MARKS)} in it, which is read as template syntax: type it without."
        elif len(text) > 300:
            yield f"{name} has {len(text)} characters: type at most 300."


def slug_problems(slug: str) -> Iterator[str]:
    """The slug is one folder and the name of the distribution."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?", slug):
        yield (
            f"project_slug {slug!r} cannot be a folder and a distribution: type letters (a-z), digits, "
            "hyphens or underscores, a letter or digit first and last, such as my-images."
        )
    elif len(slug) > 64:
        yield f"project_slug has {len(slug)} characters: type at most 64."
    # -, _ and . mean the same in the name of a distribution.
    plain = re.sub(r"[-_.]+", "-", slug).lower()
    dependencies = {re.sub("_", "-", name).lower() for name in INSTALLED} | DISTRIBUTIONS
    if plain in dependencies:
        yield f"project_slug {slug!r} is the name of a package it may need: type another, such as my-{plain}."


def package_problems(package: str) -> Iterator[str]:
    """The package is imported by that name, beside everything else that is installed."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", package):
        yield (
            f"package_name {package!r} cannot be imported: type letters (a-z), digits and underscores, a "
            "letter first, such as my_images."
        )
    elif len(package) > 64:
        yield f"package_name has {len(package)} characters: type at most 64."
    elif keyword.iskeyword(package) or keyword.issoftkeyword(package) or package in {"true", "false", "none"}:
        yield f"package_name {package!r} is a word of the Python language: type another, such as my_images."
    elif package.lower() in taken_names():
        yield (
            f"package_name {package!r} would hide, or be hidden by, a module or folder of that name: type "
            f"another, such as my_{package.lower()}."
        )


def setting_problems(answers: dict[str, Any]) -> Iterator[str]:
    """The rest: numbers, choices and names that another service limits."""
    size = str(answers["image_size"])
    if not re.fullmatch(r"[0-9]{1,4}", size) or not 16 <= int(size) <= 1024:
        yield f"image_size {size!r} is not a size in pixels: type a whole number from 16 to 1024."
    for name, choices in CHOICES.items():
        if answers[name] not in choices:
            yield f"{name} {answers[name]!r} is not on offer: type one of {', '.join(choices)}."
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", str(answers["wandb_project"])):
        yield (
            f"wandb_project {answers['wandb_project']!r} is not a name W&B takes: type letters (a-z), "
            "digits, hyphens, dots or underscores, at most 128, such as my-images."
        )
    if not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]{0,63})?", str(answers["wandb_entity"])):
        yield (
            f"wandb_entity {answers['wandb_entity']!r} is not a W&B user or team: type its name as in the "
            "address of its page, or leave it empty."
        )


def problems(answers: dict[str, Any]) -> Iterator[str]:
    """One sentence for each answer that will not do, in the order of the questions."""
    yield from free_text_problems(answers)
    yield from slug_problems(str(answers.get("__typed_slug", answers["project_slug"])))
    yield from package_problems(str(answers["package_name"]))
    yield from setting_problems(answers)


if __name__ == "__main__":
    for sentence in problems(json.loads(r"""{{ cookiecutter | tojson }}""")):
        sys.exit(sentence)
