"""Defines options that several commands share, and hands them over as the objects of storyfi_lite/options.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from storyfi_lite.options import ApiOptions, ChainOptions, ModelOptions
from storyfi_lite.protocol.limits import MAX_THINK_TOKENS

TASK_NAMES = ("blueprint", "characters", "story_arc", "chapters")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE_OR_STDIN = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)


def complete_models(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    """Tell the shell the registry's names that begin so; repositories only once an owner is typed."""
    from storyfi_lite.models.registry import load_registry

    registry = load_registry()
    names = [name for spec in registry.local for name in spec.names if "/" in name] if "/" in begun else registry.keys
    return [name for name in names if name.startswith(begun)]


def complete_quants(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    """Tell the shell the quantizations that begin so, of the model that the line names, else of all."""
    from storyfi_lite.models.registry import load_registry

    named = ctx.params.get("model_name") or ctx.params.get("model")
    specs = [spec for spec in load_registry().local if named is None or named in spec.names]
    quants = {file.quant for spec in specs for file in spec.files}
    return sorted(quant for quant in quants if quant.startswith(begun.upper()))


def complete_api_models(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    from storyfi_lite.models.registry import load_registry

    return [model.key for model in load_registry().api if model.key.startswith(begun)]


def complete_networks(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    return [name for name in ("test", "finney", "local", "dev") if name.startswith(begun)]


class SentenceGroup(click.Group):
    """Lists each command in its help with its whole first sentence, which click would cut."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=1_000)) for name, one in commands if one])


def text(value: str) -> str:
    """Take text for a story, and not nothing. What is not UTF-8 reaches Python as half characters, which no JSON may hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("not UTF-8; the terminal or script that it comes from uses another encoding") from None
    if not value.strip():
        raise click.BadParameter("empty; say what the story is about")
    return value


def _ids(value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2,3") from None


TEXT = click.types.FuncParamType(text)
chapter_ids_option = click.option(
    "--chapter-ids", type=_ids, metavar="1,2,…", help="For the chapters task. [default: 1]"
)
task_option = click.option(
    "--task", type=click.Choice(TASK_NAMES), default="blueprint", help="Which of the four tasks."
)


class Number(click.FloatRange):
    """Accepts finite numbers of a range; click's own FloatRange accepts "nan" in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def _price(value: str) -> tuple[str, float, float]:
    model, _, figures = value.partition("=")
    try:
        prompt_usd, completion_usd = (float(figure) for figure in figures.split(","))
    except ValueError:
        prompt_usd = completion_usd = -1.0
    if not (model and 0 <= prompt_usd < math.inf and 0 <= completion_usd < math.inf):
        raise click.BadParameter(f"{value!r} is not a model and two prices, such as gpt-6-luna=10,30")
    return model, prompt_usd, completion_usd


def _threads(parameter: str) -> Callable[[Any], Any]:
    return click.option(
        "--threads",
        parameter,
        type=click.IntRange(1, 1024),
        help="CPU threads; fewer than the cores where other programs are busy.  [default: the physical cores]",
    )


threads_option = _threads("n_threads")
log_option = click.option(
    "--log",
    "log_format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How each line of the log is written.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
hardware_option = click.option(
    "--hardware", type=FILE, metavar="FILE.json", help="Plan for the machine that this file describes."
)
models_dir_option = click.option("--models-dir", type=DIRECTORY, help="Where model files live.")


def _wallet(prefix: str, **name: Any) -> tuple[Callable[[Any], Any], ...]:
    """Make the options for a wallet, under dotted names and btcli's. `name`: what more the option for its name takes."""
    return (
        click.option("--wallet.name", "--wallet", "-w", f"{prefix}wallet", **name),
        click.option(
            "--wallet.hotkey",
            "--wallet-hotkey",
            "-H",
            f"{prefix}hotkey",
            default="default",
            help="The wallet's key that signs.",
        ),
        click.option(
            "--wallet.path", "--wallet-path", f"{prefix}wallet_path", type=DIRECTORY, help="Directory of the wallets."
        ),
    )


def chain_options(wallet: str) -> Callable[[Any], Any]:
    """Add the options for subnet and wallet, under dotted names and btcli's, as `chain: ChainOptions`. `wallet`: the default
    wallet's name."""
    # fmt: off
    return _as_object(
        "chain",
        _chain,
        click.option("--netuid", "chain_netuid", type=click.IntRange(0, 65535),
                     help="The subnet's number: btcli subnets list shows them.  [default: 108 on test and dev, none elsewhere]"),
        click.option("--subtensor.network", "--network", "-n", "chain_network", shell_complete=complete_networks, default="test",
                     help="test, finney, local, ws://HOST:PORT, several with commas, or dev (a chain on this machine)."),
        *_wallet("chain_", default=wallet, help="btcli's name of the wallet."),
        click.option("--i-know-this-subnet", "chain_known_subnet", metavar="NAME",
                     help="Go on although the subnet calls itself NAME, not StoryFi."),
    )
    # fmt: on


def model_options(*more: Callable[[Any], Any], path: bool = True) -> Callable[[Any], Any]:
    """Add the options for the model, as `model: ModelOptions`; `more`: `placement_options`, `api_options`. `path` false: no file."""
    # fmt: off
    named = click.option("--model.name", "model_name", envvar="MODEL_NAME", shell_complete=complete_models, metavar="NAME",
                         help="A model of the registry, OWNER/REPO[:QUANT][@REVISION] on the hub, or a file.  [default: the best that fits]")
    pointed_at = click.option("--model.path", "model_path", type=FILE, help="Any GGUF file.")
    loaded = (pointed_at, _threads("model_n_threads")) if path else ()
    quant = click.option("--quant", "model_quant", shell_complete=complete_quants,
                         help="A quantization of --model.name, for example Q4_K_M.")
    ctx = click.option(
        "--ctx", "model_n_ctx", type=click.IntRange(min=512), help="Tokens of context for each answer.  [default: 4096]"
    )
    # fmt: on
    return _as_object("model", _model, named, *loaded, quant, ctx, *more)


def _chain(**fields: Any) -> Any:
    from storyfi_lite.chain.networks import default_netuid

    if fields["netuid"] is None:
        fields["netuid"] = default_netuid(fields["network"])
    return ChainOptions(**fields)


def _model(**fields: Any) -> Any:
    """Make ModelOptions; `api_…` fields go to ApiOptions. A file that was typed counts for more than $MODEL_NAME."""
    source = click.get_current_context().get_parameter_source("model_name")
    if fields.get("path") and source is ParameterSource.ENVIRONMENT:
        fields["name"] = None
    api = {name: fields.pop(name) for name in list(fields) if name.startswith("api_")}
    return ModelOptions(**fields, api=ApiOptions(**{name.removeprefix("api_"): value for name, value in api.items()}))


def _as_object(name: str, make: Callable[..., Any], *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Add options whose values reach the command as one object, made from the parameters that begin with its name."""

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def gathered(*args: Any, **flags: Any) -> Any:
            own = {flag: flags.pop(flag) for flag in list(flags) if flag.startswith(f"{name}_")}
            made = make(**{flag.removeprefix(f"{name}_"): value for flag, value in own.items()})
            return command(*args, **flags, **{name: made})

        return _together(*options)(gathered)

    return decorate


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# fmt: off
think_option = click.option("--think", "model_think_tokens", type=click.IntRange(1, MAX_THINK_TOKENS), metavar="N",
                            help="Let a local reasoning model think N tokens before it writes.  [default: none]")
signing_options = _together(*_wallet("", help="Sign with this wallet's hotkey.  [default: unsigned]"))
placement_options = _together(
    click.option("--policy", "model_policy", type=click.Choice(["reward", "fastest", "largest"]), default="reward",
                 help="What the best model is: the best paid, the fastest, or the largest, among those fast enough."),
    click.option("--min-quant", "model_min_quant", shell_complete=complete_quants,
                 help="Take no coarser file than this.  [default: Q3_K_M]"),
    click.option("--traffic", "model_traffic", type=FILE, metavar="FILE",
                 help="What validators ask: a miner's requests.jsonl, or a file like placement/traffic.yaml.  [default: the network's figures]"),
)
api_options = _together(
    click.option("--model.fallback_api", "model_api_fallback", type=click.Choice(["gemini", "openai"]),
                 help="Answer through this API (half reward) when no local model can run."),
    click.option("--api.model", "model_api_model", metavar="NAME", shell_complete=complete_api_models,
                 help="Any model of that API, or of an API alone: gpt-6-luna, gemini-3.5-flash-lite.  [default: see models]"),
    click.option("--api.base-url", "model_api_base_url", help="An OpenAI-compatible server in place of OpenAI's own."),
    click.option("--api.key-file", "model_api_key_file", type=FILE,
                 help="A file of mode 600 with a line GEMINI_API_KEY=… or OPENAI_API_KEY=…."),
    click.option("--api.daily-tokens", "model_api_daily_tokens", type=click.IntRange(min=1),
                 help="Use no more API tokens than this a day."),
    click.option("--api.price", "model_api_prices", type=_price, multiple=True, metavar="MODEL=PROMPT,COMPLETION",
                 help="The vendor's price of an API model: US dollars for a million tokens. May be repeated."),
    click.option("--api.daily-usd", "model_api_daily_usd", type=Number(min=0, min_open=True),
                 help="Spend no more US dollars than this a day; needs --api.price."),
)
# fmt: on
