"""`storyfi-lite completion` prints the shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL: bash, zsh or fish.

    \b
    storyfi-lite completion bash >> ~/.bashrc
    storyfi-lite completion zsh  >> ~/.zshrc
    storyfi-lite completion fish > ~/.config/fish/completions/storyfi-lite.fish
    """
    from storyfi_lite.cli import cli

    completion = get_completion_class(shell)
    assert completion is not None  # click knows these three
    click.echo(completion(cli, {}, "storyfi-lite", "_STORYFI_LITE_COMPLETE").source())
