"""`quickmatch quantize`: a model in 8 or 4 bits as a folder of its own, and what that cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from quickmatch import __version__
from quickmatch.cli.output import Output, OutputFormat, note, number, print_json, print_table, size
from quickmatch.cli.session import open_session
from quickmatch.core.errors import ConfigError, DatasetError, InvalidRequest, ModelNotFound
from quickmatch.core.shipped import model_source
from quickmatch.store.documents import Dataset, Model, ModelKind

if TYPE_CHECKING:
    from quickmatch.engine.config import Quantization
    from quickmatch.engine.quantization.quality import Quality
    from quickmatch.store.protocol import Store

_MAX_CALIBRATION_TOKENS = 16_384
_MAX_HELD_OUT_TOKENS = 8_192


class Format(StrEnum):
    """What `--to` takes."""

    INT8 = "int8"
    INT4 = "int4"
    INT4_ASYMMETRIC = "int4-asym"
    MXFP4 = "mxfp4"


@dataclass(frozen=True, slots=True)
class _Text:
    """Token ids, and where they are from."""

    name: str
    windows: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.windows))


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        epilog="Examples: quickmatch quantize quickmatch-base --to int8 --out base-int8 · "
        "quickmatch quantize ./Qwen2.5-0.5B --to int4 --out qwen-int4 --calibrate chats.jsonl"
    )(quantize)


def quantize(
    model: Annotated[str, typer.Argument(help="A model's name, a folder, or a hub id.")],
    to: Annotated[Format, typer.Option(help="Bits a weight; -asym: groups with a zero point.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    calibrate: Annotated[
        str, typer.Option(help="A dataset, or a file of chats or text, like what will be served.")
    ] = "",
    from_traces: Annotated[
        bool, typer.Option("--from-traces", help="Calibrate on recorded calls.")
    ] = False,
    filter: Annotated[str, typer.Option(help="Which traces: FIELD=VALUE AND …")] = "",
    held_out: Annotated[
        str, typer.Option(help="A dataset or a file to measure on; default: text of our own.")
    ] = "",
    output: Output = OutputFormat.TEXT,
) -> None:
    """Write a model with its weights in 8 or 4 bits, and measure what that cost.

    Serve the folder like any other; its format is that of compressed-tensors.

    Calibrated, by GPTQ, the rounding keeps what the model makes of such text. It takes minutes; the
    table then tells what rounding without it would have cost.
    """
    if filter and not from_traces:
        raise InvalidRequest("--filter chooses traces; give --from-traces with it")
    if calibrate and from_traces:
        raise InvalidRequest("calibrate on --calibrate or on --from-traces, not on both")
    with open_session() as session:
        source = _folder_of(session.store, model)
        _check(source, out)
        learnt = None
        if from_traces:
            learnt = _calls(session.store, filter, source)
        elif calibrate:
            learnt = _text(session.store, calibrate, source, _MAX_CALIBRATION_TOKENS)
        measured = _text(session.store, held_out, source, _MAX_HELD_OUT_TOKENS)
    result = _quantize(source, to.value, out, learnt, measured)
    if output is OutputFormat.JSON:
        print_json({"model": model, "format": to.value, "path": str(out.resolve()), **result})
    else:
        _print(to.value, result)
        note(f"wrote {out}; serve it: quickmatch serve {out}")


def _folder_of(store: "Store", name: str) -> Path:
    """Return a base model's folder. Raises ModelNotFound, ModelLoadError, ConfigError."""
    from quickmatch.engine.folder import resolve_model

    known = store.get(Model, name)
    if known is not None and known.model_kind is not ModelKind.BASE:
        raise ConfigError(
            f"{name!r} is of kind {known.model_kind}; quantize its base, {known.base_model!r}"
        )
    if known is None and not Path(name).exists() and "/" not in name:
        names = ", ".join(m.id for m in store.find(Model))
        raise ModelNotFound(f"no model, folder or hub id {name!r}; models: {names}")
    return resolve_model(model_source(known.path if known else name))


def _check(source: Path, out: Path) -> None:
    """Raise ConfigError for a folder that is not empty or a model in few bits already."""
    from quickmatch.engine.quantization.model import read_unquantized
    from quickmatch.engine.quantization.writer import check_destination

    check_destination(out)
    read_unquantized(source)


def _calls(store: "Store", filter: str, source: Path) -> _Text:
    from quickmatch.cli.filters import parse_filter
    from quickmatch.tuning.text_windows import trace_windows

    where = parse_filter(filter)
    windows = trace_windows(store, where, source, max_tokens=_MAX_CALIBRATION_TOKENS)
    return _Text(f"traces {filter}".strip(), windows)


def _text(store: "Store", name: str, source: Path, max_tokens: int) -> _Text:
    """Read a dataset, a file, or without a name our own text."""
    from quickmatch.tuning.text_windows import dataset_windows, own_windows, read_windows

    if not name:
        return _Text("docstrings", own_windows(source, max_tokens=max_tokens))
    dataset = store.get(Dataset, name)
    if dataset is not None:
        return _Text(f"dataset {name}", dataset_windows(dataset, source, max_tokens=max_tokens))
    if not Path(name).exists():
        names = ", ".join(d.id for d in store.find(Dataset)) or "none"
        raise DatasetError(f"no file and no dataset {name!r}; datasets: {names}")
    return _Text(Path(name).name, read_windows(Path(name), source, max_tokens=max_tokens))


def _quantize(
    source: Path, to: str, out: Path, learnt: _Text | None, measured: _Text
) -> dict[str, Any]:
    """Write the folder, and measure it. Returns sizes and measures."""
    from quickmatch.engine.config import EngineConfig
    from quickmatch.engine.quantization.formats import find_format
    from quickmatch.engine.quantization.model import quantize_model
    from quickmatch.engine.quantization.quality import compare
    from quickmatch.engine.quantization.writer import write_quantized

    made_how: dict[str, Any] = {
        "made_by": f"quickmatch {__version__}",
        "source": source.name,
        "format": to,
        "rounding": "nearest" if learnt is None else "gptq",
    }
    served = [EngineConfig(model=str(out))]
    if learnt is not None:
        made_how["calibration"] = {"text": learnt.name, "num_tokens": learnt.num_tokens}
        nearest = cast("Quantization", to)  # rounded at loading, without any text
        served.append(EngineConfig(model=str(source), quantization=nearest))
    with _progress() as phase:
        rounded = quantize_model(
            source,
            find_format(to),
            calibration=learnt.windows if learnt else None,
            progress=phase(f"rounding to {to}"),
        )
        write_quantized(source, out, find_format(to), rounded, made_how)
        del rounded
        qualities = compare(
            EngineConfig(model=str(source)), served, measured.windows, progress=phase("measuring")
        )
    return _result(source, out, qualities) | {"held_out": measured.name}


def _result(source: Path, out: Path, qualities: "list[Quality]") -> dict[str, Any]:
    made, *others = qualities
    result: dict[str, Any] = {
        "size_bytes_before": _size_bytes(source),
        "size_bytes_after": _size_bytes(out),
        "perplexity_before": made.perplexity_reference,
        "perplexity_after": made.perplexity_quantized,
        "top1_agreement": made.top1_agreement,
        "num_held_out_tokens": made.num_tokens,
    }
    for plain in others:
        result["uncalibrated"] = {
            "perplexity_after": plain.perplexity_quantized,
            "top1_agreement": plain.top1_agreement,
        }
    return result


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
    columns = {to.upper(): result}
    if "uncalibrated" in result:
        columns = {f"{to.upper()}, CALIBRATED": result, "UNCALIBRATED": result["uncalibrated"]}
    found = columns.values()
    print_table(
        ("", "BEFORE", *columns),
        [
            ("weights", size(before), *[f"{size(after)} ({after / before:.0%})"] * len(columns)),
            (
                "perplexity",
                number(result["perplexity_before"], 3),
                *(number(one["perplexity_after"], 3) for one in found),
            ),
            ("same likeliest token", "–", *(f"{one['top1_agreement']:.1%}" for one in found)),
        ],
        empty="",
    )
    tokens = f"{result['num_held_out_tokens']:,} held-out tokens"
    typer.echo(f"measured on {tokens} ({result['held_out']})")
