"""`quickmatch quantize`: a model in 8 or 4 bits as a folder of its own, and what that cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickmatch import __version__
from quickmatch.cli.output import note, number, print_json, print_table, size
from quickmatch.cli.session import open_session
from quickmatch.core.errors import ConfigError, ModelNotFound
from quickmatch.core.shipped import model_source
from quickmatch.store.documents import Model, ModelKind

if TYPE_CHECKING:
    from quickmatch.engine.quantization.quality import Quality

_MAX_CALIBRATION_TOKENS = 16_384
_MAX_HELD_OUT_TOKENS = 8_192


class Format(StrEnum):
    """What `--to` takes."""

    INT8 = "int8"
    INT4 = "int4"
    INT4_ASYMMETRIC = "int4-asym"
    MXFP4 = "mxfp4"


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        epilog="Examples: quickmatch quantize quickmatch-base --to int8 --output base-int8 · "
        "quickmatch quantize ./Qwen2.5-0.5B --to int4 --output qwen-int4 --calibrate chats.jsonl"
    )(quantize)


def quantize(
    model: Annotated[str, typer.Argument(help="A model's name, a folder, or a hub id.")],
    to: Annotated[Format, typer.Option(help="Bits a weight; -asym: groups with a zero point.")],
    output: Annotated[Path, typer.Option("--output", "--out", help="The folder to make.")],
    calibrate: Annotated[
        Path | None, typer.Option(help="Chat JSONL or text like what will be served (GPTQ).")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Chat JSONL or text to measure on; default: our own.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a model with its weights in 8 or 4 bits, and measure what that cost.

    Serve the folder like any other; its format is that of compressed-tensors.

    With --calibrate the rounding keeps what the model makes of such text, which takes minutes.
    """
    source = _folder_of(model)
    result = _quantize(source, to.value, output, calibrate, held_out)
    if json:
        print_json({"model": model, "format": to.value, "path": str(output.resolve()), **result})
    else:
        _print(to.value, result)
        note(f"wrote {output}; serve it: quickmatch serve {output}")


def _folder_of(name: str) -> Path:
    """Return a base model's folder. Raises ModelNotFound, ModelLoadError, ConfigError."""
    from quickmatch.engine.folder import resolve_model

    with open_session() as session:
        known = session.store.get(Model, name)
        names = ", ".join(m.id for m in session.store.find(Model))
    if known is not None and known.model_kind is not ModelKind.BASE:
        raise ConfigError(
            f"{name!r} is of kind {known.model_kind}; quantize its base, {known.base_model!r}"
        )
    if known is None and not Path(name).exists() and "/" not in name:
        raise ModelNotFound(f"no model, folder or hub id {name!r}; models: {names}")
    return resolve_model(model_source(known.path if known else name))


def _quantize(
    source: Path, to: str, output: Path, calibrate: Path | None, held_out: Path | None
) -> dict[str, Any]:
    """Check what was given, write the folder, measure it. Returns sizes and measures."""
    from quickmatch.engine.config import EngineConfig
    from quickmatch.engine.quantization.formats import find_format
    from quickmatch.engine.quantization.model import quantize_model, read_unquantized
    from quickmatch.engine.quantization.quality import compare
    from quickmatch.engine.quantization.writer import check_destination, write_quantized
    from quickmatch.tuning.text_windows import own_windows, read_windows

    check_destination(output)
    read_unquantized(source)
    texts = None
    if calibrate is not None:
        texts = read_windows(calibrate, source, max_tokens=_MAX_CALIBRATION_TOKENS)
    measured_on = (
        own_windows(source, max_tokens=_MAX_HELD_OUT_TOKENS)
        if held_out is None
        else read_windows(held_out, source, max_tokens=_MAX_HELD_OUT_TOKENS)
    )
    made_how: dict[str, Any] = {
        "made_by": f"quickmatch {__version__}",
        "source": source.name,
        "format": to,
        "rounding": "nearest" if calibrate is None else "gptq",
    }
    if calibrate is not None and texts is not None:
        made_how["calibration"] = {"file": calibrate.name, "num_tokens": sum(map(len, texts))}
    with _progress() as phase:
        rounded = quantize_model(
            source, find_format(to), calibration=texts, progress=phase(f"rounding to {to}")
        )
        write_quantized(source, output, find_format(to), rounded, made_how)
        quality = compare(
            EngineConfig(model=str(source)),
            EngineConfig(model=str(output)),
            measured_on,
            progress=phase("measuring"),
        )
    return _result(source, output, quality)


def _result(source: Path, output: Path, quality: "Quality") -> dict[str, Any]:
    return {
        "size_bytes_before": _size_bytes(source),
        "size_bytes_after": _size_bytes(output),
        "perplexity_before": quality.perplexity_reference,
        "perplexity_after": quality.perplexity_quantized,
        "top1_agreement": quality.top1_agreement,
        "num_held_out_tokens": quality.num_tokens,
    }


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Give a function that begins a bar and returns what moves it: (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:

        def phase(title: str) -> Callable[[int, int], None]:
            task = bar.add_task(title, total=None, start=True)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield phase


def _print(to: str, result: dict[str, Any]) -> None:
    before, after = result["size_bytes_before"], result["size_bytes_after"]
    print_table(
        ("", "BEFORE", to.upper()),
        [
            ("weights", size(before), f"{size(after)} ({after / before:.0%})"),
            (
                "perplexity",
                number(result["perplexity_before"], 3),
                number(result["perplexity_after"], 3),
            ),
            ("same likeliest token", "–", f"{result['top1_agreement']:.1%}"),
        ],
        empty="",
    )
    typer.echo(f"measured on {result['num_held_out_tokens']:,} held-out tokens")
