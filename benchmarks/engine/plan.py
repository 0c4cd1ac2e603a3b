"""How much one run measures: every number of the benchmark that is not measured."""

import argparse
from dataclasses import dataclass, replace

from benchmarks.engine.contenders import OURS, PEERS_BY_NAME, PRECISIONS
from benchmarks.models import LLAMA_15M, QWEN3_600M, SHAPES, Shape

NUM_ADAPTERS = 32  # in one batch
NUM_HELD = 100  # in memory meanwhile


@dataclass(frozen=True, slots=True)
class Batch:
    """So many prompts of one length, extended by so many tokens each."""

    size: int
    prompt_len: int
    new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapePlan:
    """What is measured of a shape; the larger one's batches have short prompts, for time's sake."""

    shape: Shape
    repetitions: int
    warm_up: int  # turns that do not count
    batches: tuple[Batch, ...]
    prompt_lens: tuple[int, ...] = (128, 1024)  # whose first token is timed
    long_prompt_len: int | None = None  # the same in one turn alone
    max_len: int = 2048
    num_steps: int = 30  # pairs of steps that are timed for what eight rows cost


USUAL = (
    ShapePlan(
        shape=LLAMA_15M,
        repetitions=5,
        warm_up=1,
        batches=(Batch(1, 128, 64), Batch(8, 128, 64), Batch(32, 128, 32)),
    ),
    ShapePlan(
        shape=QWEN3_600M,
        repetitions=3,
        warm_up=0,
        batches=(Batch(1, 128, 32), Batch(8, 64, 16), Batch(32, 32, 16)),
        long_prompt_len=8192,
        max_len=8192 + 256,
        num_steps=10,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run."""

    seed: int = 0
    shapes: tuple[ShapePlan, ...] = USUAL
    precisions: tuple[str, ...] = PRECISIONS
    peers: tuple[str, ...] = tuple(n for n, peer in PEERS_BY_NAME.items() if peer.is_usual)
    num_threads: int | None = None  # of ours
    llama_threads: int | None = None  # of llama.cpp; None: all cores
    is_own: bool = True  # whether what has no peer is measured too

    @property
    def is_whole(self) -> bool:
        """Whether it measures every bar, so that its figures may take the place of the last."""
        whole = Plan(seed=self.seed)
        if len(self.shapes) != len(whole.shapes) or not set(whole.peers) <= set(self.peers):
            return False
        pairs = zip(self.shapes, whole.shapes, strict=True)
        return (
            all(one.repetitions >= usual.repetitions for one, usual in pairs)
            and tuple(replace(one, repetitions=0) for one in self.shapes)
            == tuple(replace(usual, repetitions=0) for usual in whole.shapes)
            and replace(self, shapes=USUAL, peers=whole.peers) == whole
        )


def quick(of_shape: ShapePlan) -> ShapePlan:
    """Return a version of one turn and few tokens, which shows that everything runs."""
    batches = tuple(Batch(b.size, min(b.prompt_len, 32), 8) for b in of_shape.batches)
    few = replace(of_shape, repetitions=1, warm_up=0, batches=batches)
    return without_long_prompt(few)


def without_long_prompt(of_shape: ShapePlan) -> ShapePlan:
    """Return a version whose contenders need no memory for it either."""
    return replace(of_shape, long_prompt_len=None, max_len=min(of_shape.max_len, 2048))


def parse_arguments(argv: list[str] | None = None) -> tuple[Plan, argparse.Namespace]:
    """Read the command line. Exits with a line of usage where it is wrong."""
    usual = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description="Measure the engine beside its peers."
    )
    for name, known in (
        ("shapes", tuple(SHAPES)),
        ("precisions", PRECISIONS),
        ("contenders", tuple(PEERS_BY_NAME)),
    ):
        parser.add_argument(f"--{name}", metavar="A,B", help=f"of: {', '.join(known)}")
    parser.add_argument("--repetitions", type=int, help="turns of each contender that count")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--num-threads", type=int, help="of ours; default: as the engine chooses")
    parser.add_argument("--llama-threads", type=int, help="of llama.cpp; default: all cores")
    parser.add_argument("--no-long-prompt", action="store_true", help="leave 8,192 tokens out")
    parser.add_argument("--no-own", action="store_true", help="leave out what has no peer")
    parser.add_argument("--quick", action="store_true", help="one turn of few tokens")
    found = parser.parse_args(argv)
    names = _chosen(parser, "shapes", found.shapes, tuple(SHAPES), tuple(SHAPES))
    shapes = [of_shape for of_shape in usual.shapes if of_shape.shape.name in names]
    if found.quick:
        shapes = [quick(of_shape) for of_shape in shapes]
    if found.repetitions is not None:
        shapes = [replace(of_shape, repetitions=found.repetitions) for of_shape in shapes]
    if found.no_long_prompt:
        shapes = [without_long_prompt(of_shape) for of_shape in shapes]
    plan = replace(
        usual,
        seed=found.seed,
        shapes=tuple(shapes),
        precisions=_chosen(parser, "precisions", found.precisions, PRECISIONS, PRECISIONS),
        peers=_chosen(
            parser, "contenders", found.contenders, (OURS, *PEERS_BY_NAME), usual.peers, none=OURS
        ),
        num_threads=found.num_threads,
        llama_threads=found.llama_threads,
        is_own=not found.no_own,
    )
    return plan, found


def _chosen(
    parser: argparse.ArgumentParser,
    name: str,
    told: str | None,
    known: tuple[str, ...],
    usual: tuple[str, ...],
    none: str = "",
) -> tuple[str, ...]:
    """Return what was named, in the known order, without `none`, which stands for nothing more."""
    if told is None:
        return usual
    wanted = told.split(",")
    unknown = [part for part in wanted if part not in known]
    if unknown:
        parser.error(f"--{name} holds {unknown[0]!r}; known: {', '.join(known)}")
    return tuple(part for part in known if part in wanted and part != none)
