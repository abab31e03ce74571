"""The `subeight` command: parse, call the verb, show the record. No logic lives here.

Exit status: 0 done, 1 the answer is no, 2 bad input (one sentence), 3 the data do not suffice, 130 interrupted.
"""

import logging
import os
import sys
import warnings
from typing import NoReturn

import typer

from subeight.cli import training, verbs
from subeight.errors import SubeightError

# Some versions of typer bring a click of their own, so its class of errors is found by what typer hands out.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Takes a language model below 8 bits, shows what breaks, and finds out why.",
)
for name, function in verbs.COMMANDS.items():
    app.command(name)(function)
app.add_typer(training.train, name="train")


def main() -> NoReturn:
    """Runs the command line and leaves with its exit status."""
    quieten()
    try:
        status = app(standalone_mode=False) or 0
    except SubeightError as error:
        print(f"subeight: {_line(error)}", file=sys.stderr)
        status = error.exit_status
    except _ClickError as error:
        if message := _line(error.format_message()):  # type: ignore[attr-defined]  # none where the help was shown
            end = "" if message.endswith((".", "?")) else "."
            print(f"subeight: {message}{end} See `subeight --help`.", file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        print("subeight: interrupted; the same command continues where it stopped.", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(status if isinstance(status, int) else 0)


def _line(words: object) -> str:
    """One line, also where another library's message has several."""
    return " ".join(str(words).split())


def quieten() -> None:
    """Silences libraries: they talk on standard error, where our own words and progress go; only their errors pass."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("compressed_tensors").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(?!subeight)")


if __name__ == "__main__":
    main()
