"""The `quickmatch` command: puts the verbs together and turns errors into one line.

Exit codes: 0 done, 1 the work itself failed (a job, a bench), 2 wrong use or a refused action.
Nothing heavy is imported here: a verb imports what it needs when it runs, so that `--help`
answers at once.
"""

import itertools
import json
import sys
from typing import Annotated

import typer

from quickmatch import __version__
from quickmatch.cli import (
    audit,
    bench,
    chat,
    create,
    delete,
    deploy,
    drafts,
    export,
    jobs,
    quantize,
    read,
    serve,
    update,
)
from quickmatch.core.errors import QuickmatchError

app = typer.Typer(
    name="quickmatch",
    help="Serve open models, learn from the traffic, answer faster and cheaper.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
serve.register(app)
create.register(app)
read.register(app)
delete.register(app)
deploy.register(app)
drafts.register(app)
update.register(app)
export.register(app)
quantize.register(app)
audit.register(app)
jobs.register(app)
chat.register(app)
bench.register(app)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"quickmatch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, exit."),
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command line. Errors that a user can mend become one line and exit code 2."""
    try:
        app()
    except QuickmatchError as error:
        _show(error)
        sys.exit(2)


def _show(error: QuickmatchError) -> None:
    if _wants_json(sys.argv):
        body = {"message": error.message, "type": error.type, "code": error.code}
        typer.echo(json.dumps({"error": body}), err=True)
    else:
        typer.echo(f"error: {error.message}", err=True)


def _wants_json(argv: list[str]) -> bool:
    pairs = itertools.pairwise(argv)
    return "--output=json" in argv or any(
        pair in (("-o", "json"), ("--output", "json")) for pair in pairs
    )


if __name__ == "__main__":
    main()
