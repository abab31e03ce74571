"""The `subeight` command: parse, call the verb, show the record. No logic lives here.

Exit status: 0 done, 1 the answer is no, 2 bad input (one sentence), 3 the data do not suffice, 130 interrupted.
"""

import logging
import os
import sys
import warnings
from typing import NoReturn

import click
import typer

from subeight.cli import verbs
from subeight.errors import SubeightError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Takes a language model below 8 bits, shows what breaks, and finds out why.",
)
for name, function in verbs.COMMANDS.items():
    app.command(name)(function)


def main() -> NoReturn:
    """Runs the command line and leaves with its exit status."""
    _quieten()
    try:
        status = app(standalone_mode=False) or 0
    except SubeightError as error:
        print(f"subeight: {error}", file=sys.stderr)
        status = error.exit_status
    except click.ClickException as error:
        print(f"subeight: {error.format_message()} See `subeight --help`.", file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("subeight: interrupted; the same command continues where it stopped.", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    sys.exit(status if isinstance(status, int) else 0)


def _quieten() -> None:
    """Libraries talk on standard error, where our own words and progress go; only their errors pass."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("compressed_tensors").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(?!subeight)")


if __name__ == "__main__":
    main()
