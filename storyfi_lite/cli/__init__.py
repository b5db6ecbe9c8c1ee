"""Runs the command line: one module a command, which is imported only when that command runs.

`main` is the entry point; it turns a LiteError into one clear message on stderr and its exit code. A command's module reads its
options and prints; what several commands or a program of yours could need belongs in the other packages.
"""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import sys
import traceback
from typing import Any

import click

from storyfi_lite import __version__, files, stopping
from storyfi_lite.cli import helptext
from storyfi_lite.cli.options import SentenceGroup
from storyfi_lite.errors import BadInput, ConfigError, LiteError
from storyfi_lite.machine.build import rebuild_command
from storyfi_lite.terminal import printable

log = logging.getLogger(__name__)

# package -> the extra that brings it
EXTRAS = {"llama_cpp": "local", "gguf": "local", "jinja2": "local", "google": "gemini", "openai": "openai"}

# each is a module of storyfi_lite.cli, with _ for -, that has a click command named `command`
COMMANDS = (
    "mine", "pull", "list", "rm", "generate", "story", "verify", "grammar", "probe", "place", "simulate", "bench", "models", "doctor",
    "prove", "verify-report", "calibrate", "validate", "completion",
)  # fmt: skip
TAKE_A_TEXT = ("generate", "story")


class Notices(logging.Handler):
    """Prints what a command's modules warn of, for the commands that keep no log."""

    def emit(self, record: logging.LogRecord) -> None:
        from storyfi_lite.cli.table import say

        say(record.getMessage(), err=True)


class LazyGroup(SentenceGroup):
    """Lists the commands of COMMANDS and imports a command's module only when that command is used."""

    context_class = helptext.Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]  # the name list is the module of that command here

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return helptext.use_in(importlib.import_module(f"storyfi_lite.cli.{cmd_name.replace('-', '_')}").command)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Accept `help`, `help COMMAND` and `version` as well as the options `--help` and `--version`."""
        if args[:1] == ["help"]:
            args = [*args[1:2], "--help"]
        elif args == ["version"]:
            args = ["--version"]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        typed = args[0] if args else ""
        near = difflib.get_close_matches(typed, (*COMMANDS, "help", "version"), n=2)
        if typed not in COMMANDS and near:
            ctx.fail(f"No such command {typed!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click sees it, which exits 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
            raise click.exceptions.Exit(141) from None
        except click.UsageError as error:
            command = error.ctx.info_name if error.ctx else None
            if command in TAKE_A_TEXT and error.message.startswith("Got unexpected extra argument"):
                hint = f'put the text in quotes: storyfi-lite {command} "a lighthouse keeper"'
                raise click.UsageError(f"{error.message}\n  {hint}", error.ctx) from None
            raise


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(__version__, prog_name="storyfi-lite")
@click.option("--registry", type=click.Path(dir_okay=False),
              help="Your own models.yaml, also $STORYFI_LITE_REGISTRY.  [default: in your configuration's directory]")  # fmt: skip
def cli(registry: str | None) -> None:
    """The lean StoryFi miner: an open model on your own machine, valid JSON by construction.

    \b
    storyfi-lite generate "a lighthouse keeper who hears the sea speak"
    storyfi-lite mine --network dev
    storyfi-lite verify story.json
    """
    if registry:
        os.environ["STORYFI_LITE_REGISTRY"] = registry  # also for the processes that a command starts
        if not os.path.lexists(registry):
            log.warning("%s is not there yet: only the shipped models are known until one is added", registry)


def main() -> None:
    """Run a command and exit with its code: storyfi_lite/errors.py lists them; 130 after Ctrl-C and 143 after SIGTERM
    (storyfi_lite/stopping.py), 141 if the reader of stdout went away. 1 and 3 are commands' answers, so a bug exits with 70."""
    stopping.install()
    logging.lastResort = Notices(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no ✓ is no reason to fail
    sys.exit(stopping.exit_code(_run()))


def _run() -> int:
    """Run a command. Returns its exit code, after one clear message for what went wrong."""
    try:
        return cli.main(standalone_mode=False) or 0
    except click.exceptions.Abort:
        click.echo(err=True)  # the question's line ends without an answer
        return _failed("error: the input ended where an answer was needed", BadInput.exit_code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        return _failed(shown.getvalue().expandtabs(2), error.exit_code)
    except LiteError as error:
        return _failed(f"error: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return _failed_unforeseen()
        message = f"error: this needs {error.name}, which is not installed:\n  pip install '.[{extra}]'"
        return _failed(message, ConfigError.exit_code)
    except OSError as error:
        if error.errno not in files.NO_PLACE:
            return _failed_unforeseen()
        refusal = files.unwritable(error.filename or "the output", error, "another file or HOME")
        return _failed(f"error: {refusal}", refusal.exit_code)
    except Exception as error:
        if str(error).startswith("Failed to load shared library"):  # llama_cpp's; its build lacks a library
            return _failed(f"error: {error}; build it again:\n  {rebuild_command()}", ConfigError.exit_code)
        return _failed_unforeseen()


def _failed_unforeseen() -> int:
    traceback.print_exc()
    return _failed("error: this is a fault of storyfi-lite's; please report the lines above", LiteError.exit_code)


def _failed(message: str, exit_code: int) -> int:
    """Print the message for a person: sentences in the terminal's width; commands, which are indented, as they are."""
    from storyfi_lite.cli.table import reflow

    for line in message.splitlines():
        click.echo(printable(line) if line.startswith(" ") else reflow(line, err=True), err=True)
    return exit_code
