"""The command line that all programs share: flags, quiet logs, the compilation cache, one or
several processes (`zse_jax.runtime.distributed`), and user errors as one paragraph with exit code 1
and no traceback (unless --debug).
"""

import gc
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from logging import CRITICAL, ERROR, WARNING, Formatter, getLogger
from pathlib import Path
from typing import TypeVar

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from data_pipelines import paths
from data_pipelines.terminal import OUTPUT_CLOSED, allow_any_name, output_is_closed
from zse_jax.runtime import config_io, distributed, preemption
from zse_jax.runtime.cache import cache_folder
from zse_jax.runtime.console import escape_logs, say

Result = TypeVar("Result")
Main = Callable[..., None]
DefineFlags = Callable[[flags.FlagValues, Sequence[str]], None]

ANY_NUMBER = "..."
"""Instead of the names of positional arguments: the program takes any number of them."""

USER_ERRORS = (ValueError, OSError, LookupError, ArithmeticError, MemoryError)
"""Errors that the library raises for wrong input; their messages say what to do."""


def run(main: Main, define_flags: DefineFlags, arguments: Sequence[str] = ()) -> None:
    """Runs a program: parses the flags, joins the other processes, calls `main`.

    Exits with 1 after an error, 130 after Ctrl-C, and `distributed.AGAIN` if the same command
    should be run again.

    Args:
      main: the program; gets the parsed flags and the positional arguments.
      define_flags: defines its flags; gets the command line, because some depend on it.
      arguments: display names of the positional arguments, all of which are required; or
        `ANY_NUMBER` alone.
    """
    gc.freeze()  # what the imports made is never garbage, so it need not be looked at
    gc.enable()
    options = flags.FLAGS
    flags.DEFINE_bool("debug", False, "Show the traceback of an error (or set ZSE_DEBUG=1).")

    distributed.define_flags(options)

    def checked(argv: Sequence[str]) -> list[str]:
        quiet()
        argv = with_message(lambda: [*map(_located_config, argv)])
        if not {"--help", "-h", "--helpfull"} & set(argv):
            with_message(lambda: distributed.initialize(**distributed.from_arguments(argv)))
        with_message(lambda: define_flags(options, argv))
        _show_in_help(options, argv[0])
        try:
            return with_message(lambda: parse(options, argv))
        except SystemExit as end:
            helped = end.code == 1 and {"--help", "-h", "--helpfull"} & set(argv)
            sys.exit(0 if helped else end.code)  # absl ends its help with 1

    def guarded(argv: Sequence[str]) -> None:
        quiet()  # again: absl has set its verbosity meanwhile
        with_message(lambda: _check_arguments(argv[1:], arguments))
        enable_compilation_cache()
        with_message(lambda: main(options, *argv[1:]))
        with_message(sys.stdout.flush)
        with_message(distributed.finish)

    app.run(guarded, flags_parser=checked)


def _show_in_help(options: flags.FlagValues, program: str) -> None:
    """Makes --help list the program's flags also if another module defines them.

    The flags of `zse_jax.runtime` are left to --helpfull.
    """
    for module, found in options.flags_by_module_dict().items():
        if module.startswith("zse_jax.") and not module.startswith("zse_jax.runtime."):
            for flag in found:
                options.register_key_flag_for_module(program, flag)


def with_message(function: Callable[[], Result]) -> Result:
    """Returns `function()`; a user error in it ends the process with one paragraph."""
    try:
        return function()
    except (*USER_ERRORS, flags.Error, jax.errors.JaxRuntimeError) as error:
        distributed.stop_watching()
        if isinstance(error, BrokenPipeError) and output_is_closed():
            distributed.leave(OUTPUT_CLOSED, "the reader of its output is gone")
            sys.exit(OUTPUT_CLOSED)
        message, code = _paragraph(error), 1
        if not message and not _debug() and not distributed.together():
            raise
        if distributed.is_loss(error):
            code = distributed.AGAIN
            message = (
                "a computation across all processes failed because another process is gone: "
                f"{str(error).splitlines()[0][:200]}. See its output. Run the same command to "
                "resume from the last checkpoint."
            )
        if _debug() or not message:
            say(traceback.format_exc(), error=True, keep="\n\t")
        else:
            which = f" (process {distributed.this_process()})" if distributed.together() else ""
            say(f"error{which}: {message}", error=True)
        distributed.leave(code, message or f"{type(error).__name__}: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        distributed.leave(130, "interrupted")
        sys.exit(130)
    except preemption.Preempted:
        distributed.finish()  # all processes exit at the same step
        raise
    except Exception as error:
        if distributed.together():
            distributed.stop_watching()
            traceback.print_exc()
            distributed.leave(1, f"{type(error).__name__}: {error}")
        raise


def _debug() -> bool:
    asked = "debug" in flags.FLAGS and flags.FLAGS.is_parsed() and flags.FLAGS.debug
    return asked or os.environ.get("ZSE_DEBUG", "0") not in ("", "0")


def _paragraph(error: BaseException) -> str:
    """The message of a user error as one line; empty for an internal error."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        if "RESOURCE_EXHAUSTED" not in str(error):
            return ""
        return (
            "The device is out of memory: choose a smaller --config.train.batch_size or "
            "--config.evaluation.batch_size, compute in bfloat16 (--config.compute_dtype=bfloat16) "
            f"or split the parameters (--config.mesh.fsdp). {str(error).splitlines()[0][:200]}"
        )
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Error whilst parsing config file" in text:  # config_flags appends a whole traceback
        text = re.split(r"\n\w*Error: ", text)[-1]
    return " ".join(text.split()) or type(error).__name__


def parse(options: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses the command line, `--config` and its overrides; returns the positional arguments.

    Raises:
      ValueError, OSError, flags.Error: an argument is wrong; suggests the nearest right one.
    """
    path, overrides = config_arguments(argv)
    if (path is not None or overrides) and "config" not in options:
        raise ValueError("This program takes no --config: it uses the checkpoint's. See --help.")
    if path is not None:
        check_config_file(path)
        config = config_flags.ConfigFileFlagParser("config").parse(path)
        config_io.check_keys(config, overrides)
    elif overrides and options["config"].default is None:
        raise ValueError(f"--config.{overrides[0]} needs --config=FILE in front of it.")
    _check_repeated(options, argv)
    return options(argv)


def _check_repeated(options: flags.FlagValues, argv: Sequence[str]) -> None:
    """Raises ValueError if a flag with one value is given twice: absl would use the last value."""
    matches = [re.match(r"--?(\w+)(?:=|$)", argument) for argument in argv[1:]]
    names = [match[1] for match in matches if match]
    names = [name if name in options else name.removeprefix("no") for name in names]
    for name in names:
        if (
            names.count(name) > 1
            and name in options
            and not isinstance(options[name], flags.MultiFlag)
        ):
            raise ValueError(f"--{name} is given {names.count(name)} times: give it once.")


def config_arguments(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config, and the keys of all --config.KEY overrides."""
    path, overrides = None, []
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            path = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
        elif match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            overrides.append(match[1])
    return path, overrides


def _located_config(argument: str) -> str:
    """`--config=~/mine.py:variant` with the place of the file; other arguments unchanged."""
    if not (match := re.fullmatch(r"(--?config=)([~$][^:]*)(:.*)?", argument)):
        return argument
    return f"{match[1]}{paths.local(match[2], '--config')}{match[3] or ''}"


def check_config_file(path: str) -> None:
    """Raises FileNotFoundError with the nearest existing file unless the config file exists."""
    file = Path(path.partition(":")[0])
    if file.is_file():
        return
    folder = file.parent if file.parent.is_dir() else Path("configs")
    names = [str(p) for p in sorted(folder.glob("*.py")) if p.stem not in ("__init__", "default")]
    hint = f"Did you mean {config_io.nearest(str(file), names)}?" if names else ""
    raise FileNotFoundError(f"--config={path}: there is no file {file}. {hint}".strip())


def _check_arguments(given: Sequence[str], wanted: Sequence[str]) -> None:
    if ANY_NUMBER in wanted:
        return
    if len(given) > len(wanted):
        raise ValueError(f"{given[len(wanted)]!r} is not a flag: write --name=value. See --help.")
    if len(given) < len(wanted):
        raise ValueError(f"{wanted[len(given)]} is missing. See --help.")


def quiet() -> None:
    """Silences the logs of libraries, whose errors also reach us as exceptions.

    Warnings of this project are printed: "warning: ...". Control characters in names are escaped.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else a notice at every start
    # Batches that worker processes have prepared when a run stops; the tracker frees them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    escape_logs()
    allow_any_name()
    if not _debug():
        logging.set_verbosity(logging.FATAL)
        getLogger("asyncio").setLevel(CRITICAL)
        sys.unraisablehook = lambda _: None
        for package in ("data_pipelines", "zse_jax"):
            getLogger(package).setLevel(ERROR if distributed.this_process() else WARNING)
        logging.get_absl_handler().setFormatter(Formatter("warning: %(message)s"))


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next run of the same config starts faster.

    In JAX_COMPILATION_CACHE_DIR if it is set, else in the user's cache folder; if that cannot be
    written, in a temporary folder.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder = cache_folder("jax")
        except OSError:
            folder = Path(tempfile.mkdtemp(prefix="zse_jax-"))
            say(
                f"note: there is no cache folder that can be written; compiled programs are kept "
                f"in {folder} for this run. Set XDG_CACHE_HOME to keep them for the next one.",
                error=True,
            )
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def require(options: flags.FlagValues, **examples: str) -> None:
    """Checks that flags have values.

    Raises:
      ValueError: names the first flag without a value, and its value in `examples`.
    """
    for name, example in examples.items():
        if not options[name].value:
            raise ValueError(f"--{name} is missing: give, for example, --{name}={example}.")


def require_suffix(options: flags.FlagValues, **suffixes: str) -> None:
    """Checks the output files of flags, if given: their places, and the suffix of their content.

    A wrong one is then an error at the start, not after everything is computed.

    Args:
      options: the parsed flags.
      suffixes: by flag, the accepted suffixes, separated by spaces; "": any, as for a folder.

    Raises:
      ValueError: names the flag, and a file name that it accepts; and as `paths.located`.
    """
    for name, accepted in suffixes.items():
        file = options[name].value
        if not file:
            continue
        paths.located(file)
        if accepted and not str(file).lower().endswith(tuple(accepted.split())):
            raise ValueError(
                f"--{name}={file}: give a file name that ends with {' or '.join(accepted.split())}."
            )
