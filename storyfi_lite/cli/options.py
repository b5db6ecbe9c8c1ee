"""Options that several commands share. No heavy import."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

TASK_NAMES = ("blueprint", "characters", "story_arc", "chapters")


class _Ids(click.ParamType):
    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1,2,3", param, ctx)


chapter_ids_option = click.option(
    "--chapter-ids", type=_Ids(), metavar="1,2,…", help="For the chapters task. [default: 1]"
)


class Number(click.FloatRange):
    """click's own takes "nan", which is in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class _Price(click.ParamType):
    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float, float]:
        model, _, figures = value.partition("=")
        try:
            prompt_usd, completion_usd = (float(figure) for figure in figures.split(","))
        except ValueError:
            prompt_usd = completion_usd = -1.0
        if not (model and 0 <= prompt_usd < math.inf and 0 <= completion_usd < math.inf):
            self.fail(f"{value!r} is not a model and two prices, such as gpt-4-turbo=10,30")
        return model, prompt_usd, completion_usd


threads_option = click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(1, 1024),
    help="CPU threads; fewer than the cores where other programs are busy.  [default: the physical cores]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
hardware_option = click.option(
    "--hardware",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Plan for the machine that this file describes.",
)


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def chain_options(wallet: str) -> Callable[[Any], Any]:
    """Which subnet and which wallet, in the mission's dotted names and btcli's. `wallet`: the default's name."""
    return _together(
        click.option("--netuid", default=108, show_default=True, help="The subnet: 108 on test, 92 on finney."),
        click.option(
            "--subtensor.network",
            "--network",
            "-n",
            "network",
            default="test",
            show_default=True,
            help="test, finney, local, ws://HOST:PORT, several with commas, or dev (a chain on this machine).",
        ),
        click.option("--wallet.name", "--wallet", "-w", "wallet", default=wallet, show_default=True),
        click.option("--wallet.hotkey", "--wallet-hotkey", "-H", "hotkey", default="default", show_default=True),
        click.option(
            "--wallet.path", "--wallet-path", "wallet_path", type=click.Path(path_type=Path), help="Directory."
        ),
    )


model_options = _together(
    click.option(
        "--model.name",
        "model_name",
        envvar="MODEL_NAME",
        help="A model of the registry.  [default: the best that fits]",
    ),
    click.option(
        "--model.path",
        "model_path",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Any GGUF file.",
    ),
    click.option("--quant", help="A quantization of --model.name, for example Q4_K_M."),
    click.option("--ctx", type=click.IntRange(min=512), help="Tokens of context for each answer."),
    threads_option,
)
placement_options = _together(
    click.option(
        "--policy",
        type=click.Choice(["reward", "fastest", "largest"]),
        default="reward",
        show_default=True,
        help="What the best model is: the best paid, the fastest, or the largest, among those fast enough.",
    ),
    click.option("--min-quant", help="Take no coarser file than this.  [default: Q3_K_M]"),
)
api_options = _together(
    click.option(
        "--model.fallback_api",
        "fallback_api",
        type=click.Choice(["gemini", "openai"]),
        help="Answer through this API (half reward) when no local model can run.",
    ),
    click.option("--api.base-url", "api_base_url", help="An OpenAI-compatible server in place of OpenAI's own."),
    click.option(
        "--api.key-file",
        "api_key_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file of mode 600 with a line GEMINI_API_KEY=… or OPENAI_API_KEY=….",
    ),
    click.option(
        "--api.daily-tokens", "daily_tokens", type=click.IntRange(min=1), help="Use no more API tokens than this a day."
    ),
    click.option(
        "--api.price",
        "api_prices",
        type=_Price(),
        multiple=True,
        metavar="MODEL=PROMPT,COMPLETION",
        help="The vendor's price of an API model: US dollars for a million tokens. May be repeated.",
    ),
    click.option(
        "--api.daily-usd",
        "daily_usd",
        type=Number(min=0, min_open=True),
        help="Spend no more US dollars than this a day; needs --api.price.",
    ),
)
