"""`storyfi-lite mine` answers validators until Ctrl-C."""

from __future__ import annotations

from typing import Any

import click

from storyfi_lite.cli.options import (
    DIRECTORY,
    Number,
    api_options,
    chain_options,
    log_option,
    model_options,
    placement_options,
    think_option,
)


@click.command(name="mine")
@chain_options("miner")
@click.option(
    "--axon.port", "--port", "port", default=8091, type=click.IntRange(1, 65535), help="The port to listen on."
)
@click.option("--axon.ip", "host",
              help="The address to listen on, :: for IPv4 and IPv6.  [default: 0.0.0.0; 127.0.0.1 with --network dev]")  # fmt: skip
@click.option("--axon.external_ip", "external_ip", help="What validators call, behind NAT: an address or a DNS name.")
@click.option("--axon.external_port", "external_port", type=click.IntRange(1, 65535),
              help="The port that they call.  [default: --axon.port]")  # fmt: skip
@model_options(placement_options, think_option, api_options)
@click.option("--min-stake", "min_stake_tao", type=Number(min=0), default=0.0, help="Refuse callers with less stake.")
@click.option("--any-neuron", is_flag=True, help="Answer every registered hotkey, also without a validator permit.")
@click.option("--rate", "rate_per_minute", default=30.0, type=Number(min=0.1), help="Answers a minute for one hotkey.")
@click.option("--allow", multiple=True, metavar="HOTKEY", help="Always answer this hotkey. May be repeated.")
@click.option("--deny", multiple=True, metavar="HOTKEY", help="Never answer this hotkey. May be repeated.")
@click.option(
    "--open-pages", is_flag=True, help="Show the status page and /metrics to everybody, not only to this machine."
)
@click.option("--state-dir", type=DIRECTORY, help="Where the replay store lives.")
@log_option
def command(**flags: Any) -> None:
    """Answer validators' requests with stories until Ctrl-C.

    The first Ctrl-C (or SIGTERM) finishes the answers in hand, the second stops at once. The status page is
    at http://127.0.0.1:8091/.

    \b
    storyfi-lite mine --network dev                          try it out, alone on this machine
    storyfi-lite mine --wallet miner --wallet-hotkey default
    storyfi-lite mine --network finney --netuid NUMBER --model.name llama-3-8b
    storyfi-lite mine --axon.external_ip 203.0.113.7 --axon.external_port 18091
    """
    from storyfi_lite.miner import logs
    from storyfi_lite.miner.run import MineOptions, run

    logs.setup(flags.pop("log_format"))
    run(MineOptions(**flags))
