"""`quickmatch get` and `quickmatch list`: what there is, and one thing whole."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickmatch.cli.output import Output, OutputFormat, print_json, print_table

if TYPE_CHECKING:
    from quickmatch.store.documents import Deployment

Noun = Annotated[str, typer.Argument(help="model, draft, dataset, job, deployment, trace or audit")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command(
        name="list",
        epilog="Example: quickmatch list traces --filter 'tags.app=credit AND status=200'",
    )(list_)
    app.command(epilog="Example: quickmatch get job sftj-01jd --watch")(get)


def list_(
    noun: Noun,
    filter: Annotated[str, typer.Option(help="Conditions joined by AND, or JSON.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 50,
    output: Output = OutputFormat.TEXT,
) -> None:
    """List models, drafts, datasets, jobs, deployments, traces or audit records."""
    from quickmatch.cli.filters import parse_filter
    from quickmatch.cli.nouns import find_noun
    from quickmatch.cli.session import open_session

    found = find_noun(noun)
    with open_session() as session:
        where = parse_filter(filter) | found.where
        documents = list(
            session.store.find(found.kind, where, descending=found.newest_first, limit=limit)
        )
    if output is OutputFormat.JSON:
        print_json([document.model_dump(mode="json") for document in documents])
        return
    headers = [name for name, _ in found.columns]
    print_table(headers, map(found.row, documents), empty=f"no {found.name}s")


def get(
    noun: Noun,
    name: Annotated[str, typer.Argument(help="Its name or id; without one: list them.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="A job: follow it live.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Show one thing whole, or list all of a kind."""
    if not name:
        list_(noun, output=output)
        return
    from quickmatch.cli.nouns import find_noun
    from quickmatch.cli.session import open_session
    from quickmatch.store.documents import Deployment, Job
    from quickmatch.store.protocol import require

    found = find_noun(noun)
    with open_session() as session:
        if watch and found.kind is Job:
            from quickmatch.cli.jobs import follow

            follow(session, name)
        document = require(session.store, found.kind, name)
    if isinstance(document, Deployment):
        _print_deployment(document, output)
        return
    fields = document.model_dump(mode="json")
    if output is OutputFormat.JSON:
        print_json(fields)
    else:
        for key, value in fields.items():
            _print_field(key, value)


def _print_deployment(document: "Deployment", output: OutputFormat) -> None:
    from quickmatch.cli import speculation

    fields = document.model_dump(mode="json")
    if output is OutputFormat.JSON:
        print_json({**fields, "measured": speculation.measured(document)})
        return
    fields["engine_info"].get("stats", {}).pop("speculation", None)
    for key, value in fields.items():
        if key not in speculation.TOLD:
            _print_field(key, value)
    for line in speculation.lines(document):
        typer.echo(line)


def _print_field(key: str, value: Any, indent: str = "") -> None:
    if isinstance(value, dict) and value:
        typer.echo(f"{indent}{key}:")
        for inner, inner_value in value.items():
            _print_field(inner, inner_value, indent + "  ")
    else:
        typer.echo(f"{indent}{key}: {'–' if value in (None, '', {}, []) else value}")
