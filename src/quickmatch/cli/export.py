"""`quickmatch export`: a trained head as a folder that other servers load."""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from quickmatch.cli.output import Output, OutputFormat, print_json
from quickmatch.cli.session import Session, open_session
from quickmatch.core.errors import ConfigError
from quickmatch.core.shipped import model_source
from quickmatch.store.documents import Model
from quickmatch.store.protocol import require
from quickmatch.store.versions import require_draft

Format = Literal["eagle3", "speculators"]
_FORMATS = ("eagle3", "speculators")


def register(app: typer.Typer) -> None:
    """Add the verb group to the command."""
    group = typer.Typer(help="Write a model for other servers.", no_args_is_help=True)
    group.command(
        epilog="Example: quickmatch export draft support-head --format speculators --out head/"
    )(draft)
    group.callback()(_group)
    app.add_typer(group, name="export")


def _group() -> None:
    """Write a model for other servers."""


def draft(
    name: Annotated[str, typer.Argument(help="A draft's name, or NAME@VERSION.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    format: Annotated[
        str, typer.Option(help="eagle3 (SGLang and others) or speculators (vLLM).")
    ] = "eagle3",
    output: Output = OutputFormat.TEXT,
) -> None:
    """Write a trained head as a folder: `vllm serve DIR`, or SGLang's --speculative-draft-model."""
    if format not in _FORMATS:
        raise ConfigError(f"format is {format!r}; choose one of: {', '.join(_FORMATS)}")
    with open_session() as session:
        version_id = _export(session, name, cast("Format", format), out)
    if output is OutputFormat.JSON:
        print_json({"draft": version_id, "format": format, "path": str(out.resolve())})
    else:
        typer.echo(f"exported {version_id} to {out} ({format})")


def _export(session: Session, name: str, format: Format, out: Path) -> str:
    from quickmatch.engine.folder import resolve_model
    from quickmatch.engine.model_config import read_model_config
    from quickmatch.engine.speculation.head_config import default_aux_layers
    from quickmatch.engine.speculation.head_folder import read_head, write_head

    model, version = require_draft(session.store, name)
    base = require(session.store, Model, model.base_model)
    target = resolve_model(model_source(base.path))
    config, tensors = read_head(Path(model.path_of(version)))
    shape = read_model_config(target)
    if not config.aux_layers:
        from dataclasses import replace

        config = replace(config, aux_layers=default_aux_layers(shape.num_layers))
    write_head(
        out,
        config,
        tensors,
        format=format,
        target_name=str(target),
        target_architecture=shape.architecture,
    )
    return f"{model.id}@{version}"
