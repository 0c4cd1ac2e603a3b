"""`quickmatch verify audit`: whether the audit log is whole."""

from typing import Annotated

import typer

from quickmatch.cli.output import Output, OutputFormat, print_json
from quickmatch.cli.session import open_session


def register(app: typer.Typer) -> None:
    """Add the verb group to the command."""
    group = typer.Typer(help="Check that records are whole.", no_args_is_help=True)
    group.command(epilog="Example: quickmatch verify audit --head 3f0c…")(audit)
    group.callback()(_group)
    app.add_typer(group, name="verify")


def _group() -> None:
    """Check that records are whole."""


def audit(
    head: Annotated[
        str, typer.Option(help="A hash that an earlier check printed: it must be there still.")
    ] = "",
    output: Output = OutputFormat.TEXT,
) -> None:
    """Derive the audit log's hashes anew. Exit code 1 if a record was changed or is missing."""
    from quickmatch.observe.audit import verify

    with open_session() as session:
        found = verify(session.store, head)
    if output is OutputFormat.JSON:
        told = {"holds": found.holds, "num_records": found.num_records, "head": found.head}
        print_json(told | {"error": found.error})
    elif found.holds:
        typer.echo(f"the audit log is whole: {found.num_records} records, head {found.head}")
    else:
        typer.echo(f"the audit log does not hold: {found.error}")
    if not found.holds:
        raise typer.Exit(1)
