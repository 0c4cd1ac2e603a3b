"""What a run of the demo does, and how much of it: every number that is not measured."""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

from examples.credit_cards.fields import RATINGS

KEY_VARIABLE = "TEACHER_API_KEY"
BASE = "quickmatch-base"
ADAPTER = "credit-explainer"
TEACHER = "teacher"
DATASET = "credit-explanations"
DRAFT = "credit-draft"
APP_TAG = "credit-cards"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes, training settings, and where things go. Counts are of applicants."""

    out: Path = Path("demo-report")
    seed: int = 7
    num_simulated: int = 1500  # a later outcome; for the rating model
    num_train: int = 1200
    num_held_out: int = 150
    num_latency: int = 45
    concurrency: int = 8
    max_tokens: int = 160
    lora_rank: int = 8
    epochs: int = 1
    batch_size: int = 2  # steps teach, not tokens: docs/lab-notes.md
    learning_rate: float = 6e-3
    num_a_phase: int = 25  # asked by one caller in each phase of the stage on speculation
    num_warm: int = 150  # answered in between, to fill the suffix index
    num_during_swap: int = 80  # for those who ask while the head is loaded
    num_draft_rows: int = 320  # prompts of the dataset that the head learns from
    draft_steps: int = 70
    teacher_url: str = ""  # empty: the scripted writer
    teacher_model: str = ""
    serve: bool = False

    @property
    def home(self) -> Path:
        """The Quickmatch home of the run; made anew each time."""
        return self.out / "home"

    @property
    def num_asked(self) -> int:
        """Applicants that the teacher explains."""
        return self.num_train + self.num_held_out

    @property
    def num_a_rating(self) -> int:
        """Applicants that the teacher explains of one rating."""
        return self.num_asked // len(RATINGS)

    @property
    def holdout_share(self) -> float:
        """What `create dataset --holdout` is told."""
        return self.num_held_out / self.num_asked

    @property
    def num_fresh(self) -> int:
        """Applicants that the stage on speculation asks about: four phases, and between them."""
        return 4 * self.num_a_phase + self.num_warm + self.num_during_swap

    def as_json(self) -> dict[str, object]:
        """Return all values, for the report's provenance."""
        names = self.__dataclass_fields__
        return {name: getattr(self, name) for name in names} | {"out": str(self.out)}


def quick(plan: Plan) -> Plan:
    """Return a small version that runs every stage in about two minutes and learns little."""
    return replace(
        plan,
        num_simulated=200,
        num_train=48,
        num_held_out=12,
        num_latency=6,
        num_a_phase=4,
        num_warm=12,
        num_during_swap=24,
        num_draft_rows=16,
        draft_steps=4,
    )


def parse_arguments(argv: list[str] | None = None) -> Plan:
    """Read the command line. Exits with a line of usage where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.credit_cards.demo",
        description="Runs the whole loop on the credit card application and reports on it.",
    )
    usual = Plan()
    parser.add_argument("--out", type=Path, default=usual.out, help="folder for the report")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    parser.add_argument("--batch-size", type=int, default=usual.batch_size)
    parser.add_argument(
        "--teacher", default="", metavar="URL", help="an OpenAI-compatible URL, ending in /v1"
    )
    parser.add_argument("--teacher-model", default="", metavar="NAME", help="the model there")
    parser.add_argument("--serve", action="store_true", help="leave the server up at the end")
    parser.add_argument("--quick", action="store_true", help="a little of all, to test the path")
    args = parser.parse_args(argv)
    if bool(args.teacher) is not bool(args.teacher_model):
        parser.error("--teacher and --teacher-model go together")
    if args.teacher and not os.environ.get(KEY_VARIABLE):
        parser.error(f"--teacher needs its key in the environment: export {KEY_VARIABLE}=…")
    plan = replace(
        usual,
        out=args.out,
        seed=args.seed,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        teacher_url=args.teacher,
        teacher_model=args.teacher_model,
        serve=args.serve,
    )
    return quick(plan) if args.quick else plan
