"""`quickmatch update`: change the settings of a live deployment."""

from typing import Annotated

import typer

from quickmatch.cli import server_lock
from quickmatch.cli.output import Output, OutputFormat, print_json
from quickmatch.cli.session import open_session
from quickmatch.cli.settings import SetOption, check_changes, parse_changes
from quickmatch.core.errors import InvalidRequest
from quickmatch.store.documents import Deployment, Model
from quickmatch.store.protocol import require


def register(app: typer.Typer) -> None:
    """Add the verb group to the command."""
    group = typer.Typer(help="Change the settings of a deployment.", no_args_is_help=True)
    group.callback()(_group)
    group.command(
        epilog="Examples: quickmatch update deployment quickmatch-base --set speculation.adapt=true"
        " · --set speculation.drafters=off · --set trace=true"
    )(deployment)
    app.add_typer(group, name="update")


def _group() -> None:
    """Change the settings of a deployment."""


def deployment(
    name: Annotated[str, typer.Argument(help="The deployment's name.")],
    set_: SetOption = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Change a deployment's settings. Those of the engine start its process again."""
    changes = parse_changes(set_)
    if not changes:
        raise InvalidRequest("nothing to change; write --set speculation.adapt=true")
    with open_session() as session:
        document = require(session.store, Deployment, name)
        model = require(session.store, Model, document.model)
        check_changes(session, model, document, changes)
        document = session.store.update(Deployment, name, changes.apply)
        is_served = server_lock.running_server(session.home) is not None
    if output is OutputFormat.JSON:
        print_json(document.model_dump(mode="json"))
        return
    effect = "its engine is started again for it" if changes.restarts else "it takes effect at once"
    when = effect if is_served and document.wanted else "it takes effect with `quickmatch serve`"
    typer.echo(f"updated deployment {name}: {', '.join(set_ or ())}; {when}")
