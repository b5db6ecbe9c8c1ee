"""Starts the program `storyfi-lite`, also as `python -m storyfi_lite`. Signals are handled before the slow imports."""

from __future__ import annotations

from storyfi_lite import stopping


def main() -> None:
    """Run the command line. Raises SystemExit with the command's exit code."""
    stopping.install()
    from storyfi_lite import cli

    try:
        cli.main()
    finally:
        stopping.finish()


if __name__ == "__main__":
    main()
