"""The documentation: every link leads somewhere, and every command and Python block works.

Fenced `bash` and `python` blocks of README.md, CONTRIBUTING.md and docs/ run in a temporary folder,
page by page, with a small network trained by the commands of `make demo`. A block after the comment
`<!-- not run: reason -->` does not run; its commands are parsed, so that an unknown program, flag,
config key or make target fails. Commands and names within a line of text are checked as well.
"""

import argparse
import ast
import contextlib
import functools
import importlib.util
import io
import re
import runpy
import shlex
import shutil
import sys
import traceback
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from configs import clip_default, default, efficient_default
from data_pipelines import loading
from tests.source import ROOT
from tests.zse_jax import abstract, shared_steps
from zse_jax.commands import COMMANDS
from zse_jax.runtime import cli, distributed, sharding

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
LINKED = [
    *PAGES, "CHANGELOG.md", "launch/README.md", "tests/golden/README.md",
    "tests/benchmarks/RESULTS.md",
]  # fmt: skip

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*\S) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CONFIG_KEY = re.compile(r"--config\.([a-z_][a-z0-9_.]*)(?![\w.])")
SOURCE_FILE = re.compile(r"(?:configs|data_pipelines|launch|tests|zse_jax)/[\w./]*\w|\w+/\w+\.py")

NETWORK = {
    "image_size": 32, "patch_size": 8, "scale_channels": 4, "width": 80, "depth": 1, "heads": 4,
    "mlp_width": 32, "cross_heads": 4, "cross_mlp_width": 32, "anchors": 16, "anchor_width": 16,
}  # fmt: skip
# The same optimizer for both configs: they share a compiled train step.
SMALL = {f"model.{name}": value for name, value in NETWORK.items()} | {
    "init_from": "random",
    "model.dropout": 0.0, "train.steps": 2, "train.batch_size": 8, "data.workers": 0,
    "optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "optimizer.clip_norm": 1.0,
    "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.01,
    "evaluation.every": 2, "evaluation.batch_size": 8, "checkpoint.every": 2,
    "log.tensorboard": False,
}  # fmt: skip
CONFIG_FILE = f'''"""A setting of the project at a small size."""

from configs import NAME as setting


def get_config(arg=""):
    config = setting.get_config(arg)
    config.update_from_flattened_dict({SMALL})
    return config
'''


class Block(NamedTuple):
    """A fenced block: its language, its text, and why it does not run ("" if it does)."""

    line: int
    language: str
    text: str
    reason: str


class Stop(BaseException):
    """Ends a program once its flags are defined, or its command line is parsed."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    text = text_of(page)
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(line, match["language"], match["text"], match["reason"] or "")


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a bash block, as words; `NAME=value` in front of a command is left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            yield words


def code_spans(page: str) -> Iterator[str]:
    """The code within lines of text."""
    yield from CODE.findall(FENCE.sub("", text_of(page)))


def slugs(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = sum(slug == re.sub(r"-\d+$", "", other) for other in found)
        found.add(f"{slug}-{count}" if slug in found else slug)
    return found


def execute(words: Sequence[str], run: bool) -> None:
    """Runs one command in this process, or, without `run`, parses it.

    Raises:
      AssertionError: an unknown command, or one that fails.
    """
    match words:
        case ["python" | ".venv/bin/python", "-m", module, *arguments]:
            program(module, arguments, run)
        case ["zse-jax" | ".venv/bin/zse-jax", name, *arguments]:
            program(COMMANDS[name].module, arguments, run)
        case ["python", script, *arguments] if script.endswith(".py"):
            program(script, arguments, run)
        case ["make", *arguments] if not run:
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            unknown = {word for word in arguments if "=" not in word} - set(targets)
            assert not unknown, f"the Makefile has no target {unknown}"
        case [".venv/bin/pip", "install", *arguments] if not run:
            pins = (ROOT / "requirements.txt").read_text().splitlines()
            for name, version in re.findall(r"([\w-]+)\[\w+\]==(\S+)", " ".join(arguments)):
                assert f"{name}=={version}" in pins, f"{name}=={version} is not what is pinned"
        case ["python", "-c", text] if not run:
            compile(text, "-c", "exec")
        case ["export" | "source" | "git" | ".venv/bin/pre-commit" | "hf", *_] if not run:
            pass
        case _:
            raise AssertionError(f"this test cannot run: {shlex.join(words)}")


def program(name: str, arguments: Sequence[str], run: bool) -> None:
    """Runs or parses `python -m NAME ARGUMENTS`, or a script."""
    with pytest.MonkeyPatch.context() as patch:
        handed: list[tuple] = []

        def start(main, define_flags, arguments=()):
            handed.append((main, define_flags, arguments))
            raise Stop

        patch.setattr(cli, "run", start)
        patch.setattr(sys, "argv", [name, *arguments])
        if not run:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", parsed_only())
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                runpy.run_path(str(source_of(name)), run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"exit code {end.code}: {errors.getvalue()}"
        except Stop:
            pass
        else:
            assert run, f"{name} has parsed nothing"
    for main, define_flags, names in handed:
        argv = [name, *(arguments if run else existing(arguments))]
        options = flags.FlagValues()
        distributed.define_flags(options)
        define_flags(options, argv)
        given = cli.parse(options, argv)[1:]
        known = len(given) if cli.ANY_NUMBER in names else len(names)
        assert len(given) == known, f"{name} takes {names}, not {given}"
        if run:
            main(options, *given)


def source_of(program: str) -> Path:
    """The file of a script or a module.

    Programs run from their files, not by `runpy.run_module`. That would ask the import hook of
    conftest.py for the code, and leave the type-checked code where every later Python process looks
    for the compiled module, and fails: the hook is not there.
    """
    if program.endswith(".py"):
        return ROOT / program
    path = ROOT / program.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def test_programs_leave_no_checked_code_for_other_processes():
    program("zse_jax.main", [], run=False)
    path = Path(importlib.util.cache_from_source(str(source_of("zse_jax.main"))))
    assert not path.exists() or b"jaxtyp" not in path.read_bytes()


def parsed_only():
    """A `parse_known_args` that stops the program after it, and knows every argument."""
    original = argparse.ArgumentParser.parse_known_args

    def parse(self, *args, **kwargs):
        _, unknown = original(self, *args, **kwargs)
        assert not unknown, f"unknown arguments: {unknown}"
        raise Stop

    return parse


def existing(arguments: Sequence[str]) -> list[str]:
    """The arguments, with missing checkpoints and weights replaced by those of `world`."""
    weights = ".pth", ".pt", ".npz", ".safetensors"
    found = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag == "--checkpoint" and not Path(value).exists():
            argument = "--checkpoint=demo"
        elif argument.startswith("hf://") or (argument[0] != "-" and argument.endswith(weights)):
            argument = "weights.safetensors"
        found.append(argument)
    return found


def check(block: Block, place: str, finished: set[tuple[str, ...]]) -> None:
    """Runs a block, apart from commands that have run before, or parses what does not run."""
    if block.language == "python" and block.reason:
        check_imports(block.text)
    elif block.language == "python":
        exec(compile(block.text, place, "exec"), {"__name__": "__main__"})
    elif block.language == "bash":
        for words in map(tuple, commands(block.text)):
            if words not in finished:
                execute(words, run=not block.reason)
            if not block.reason:
                finished.add(words)


def check_imports(text: str) -> None:
    """Everything that a Python block imports exists."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def has_key(config: ConfigDict, key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in config and (not rest or has_key(config[first], rest))


def picture(modality: str, seed: str) -> Image.Image:
    """Lines that `seed` determines: black on white for a sketch, in colours for a photo."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    sketch = modality == "sketch"
    image = Image.new(
        "RGB", (64, 64), "white" if sketch else tuple(rng.integers(0, 256, 3).tolist())
    )
    for _ in range(3):
        colour = "black" if sketch else tuple(rng.integers(0, 256, 3).tolist())
        ImageDraw.Draw(image).line(rng.integers(5, 60, 8).tolist(), colour, width=3)
    return image


def write_pictures(folder: Path, modality: str, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        file = folder / f"{modality}{number}.png"
        picture(modality, f"{folder.name}/{number}").save(file)


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory) -> Iterator[None]:
    """Runs use one device and three images of each doodle class, and prepare in a new folder."""
    constants = importlib.import_module("tensorflow_datasets").core.constants
    whole = loading.load_items

    def load_items(name, modality, classes, **options):
        if name != "doodles":
            return whole(name, modality, classes, **options)
        instances = [f"{name}_{number}" for name in classes for number in range(3)]
        encoded = []
        for instance in instances:
            with io.BytesIO() as file:
                picture(modality, instance).save(file, "PNG")
                encoded.append(file.getvalue())
        return loading.Items(
            modality, encoded, np.arange(len(encoded)),
            np.repeat(np.arange(len(classes), dtype=np.int32), 3), tuple(classes),
            tuple(instances), tuple(f"{modality}/{instance}.png" for instance in instances),
        )  # fmt: skip

    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_items", load_items)
        patch.setattr(constants, "DATA_DIR", str(tmp_path_factory.mktemp("prepared")))
        patch.setattr(sharding, "make_mesh", one)  # compiles faster than for eight devices
        abstract.install(patch.setattr)
        shared_steps.install(patch.setattr)
        yield


@pytest.fixture(scope="module")
def world(small_runs, tmp_path_factory) -> Path:
    """What the pages expect: `make demo`'s folder, an album, a sketch, and somebody's own data."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "configs", folder / "configs")
    # All runs train the same small network, which is compiled once.
    for name, arg in (("demo", "arg"), ("folder", '"zse-tiny"')):
        text = CONFIG_FILE.replace("NAME", name)
        text = text.replace("setting.get_config(arg)", f"setting.get_config({arg})")
        (folder / "configs" / f"{name}.py").write_text(text)
    write_pictures(folder / "album", "photo", 4)
    picture("sketch", "cat").resize((200, 200)).save(folder / "cat.png")
    for modality in ("sketch", "photo"):
        for name in ("cat", "dog", "hen", "pig"):
            write_pictures(folder / "my-data" / modality / name, modality, 4)
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    train, evaluate = commands(recipe[1].replace("$(BIN)/", ""))
    with contextlib.chdir(folder):
        execute(train, run=True)
        execute(evaluate, run=False)  # README.md evaluates the same checkpoint
        program("zse_jax.convert", ["--to=zse_sbir", "demo", "weights.safetensors"], run=True)
    return folder


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in slugs(str(file.resolve().relative_to(ROOT))):
            wrong.append(f"{target}: no such heading")
    assert not wrong, f"{page}: {wrong}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_that_is_tested(page):
    wrong = [block.line for block in blocks(page) if block.language not in ("bash", "python")]
    assert not wrong, f"{page}: blocks at lines {wrong} are neither bash nor python"
    text = text_of(page)
    assert len(re.findall(r"^<!-- not run:", text, re.MULTILINE)) == sum(
        bool(block.reason) for block in blocks(page)
    ), page


@pytest.mark.parametrize("page", PAGES)
def test_files_and_config_keys_in_the_text_exist(page):
    spans = "\n".join(code_spans(page))
    missing = {
        path
        for path in SOURCE_FILE.findall(spans)
        if not (ROOT / path).exists() and not (ROOT / "zse_jax" / path).exists()
    }
    configs = [module.get_config() for module in (default, clip_default, efficient_default)]
    for key in set(CONFIG_KEY.findall(text_of(page))):
        if not any(has_key(config, key) for config in configs):
            missing.add(f"--config.{key}")
    assert not missing, f"{page}: {missing}"


@pytest.mark.slow
def test_blocks_run_and_all_other_commands_parse(world, monkeypatch):
    monkeypatch.chdir(world)
    finished: set[tuple[str, ...]] = set()  # on an earlier page
    wrong = []
    for page in [*PAGES, "tests/benchmarks/RESULTS.md"]:
        spans = [
            Block(text_of(page).count("\n", 0, text_of(page).find(span)) + 1, "bash", span, "text")
            for span in code_spans(page)
            if span.startswith(("python -m ", "zse-jax ", "python launch/", "make "))
            and "..." not in span
        ]
        for block in [*blocks(page), *spans]:
            place = f"{page}:{block.line}"
            try:
                check(block, place, finished)
            except Exception as error:
                traceback.print_exc()
                wrong.append(f"{place}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
