from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState
from quickmatch.engine.blocks import block_digest, root_digest
from quickmatch.engine.sequence import Sequence, SequenceState

ROOT = root_digest(0, "")


def make(prompt: list[int]) -> Sequence:
    return Sequence(
        request_id="r",
        token_ids=list(prompt),
        sample=SampleState(SamplingParams(), 0, prompt),
        max_len=100,
        root=ROOT,
        arrival_s=0.0,
    )


def test_counts_are_derived_from_the_tokens() -> None:
    sequence = make([5, 6, 7])
    assert sequence.state is SequenceState.WAITING
    assert (sequence.num_tokens, sequence.num_new_tokens, sequence.num_output_tokens) == (3, 3, 0)
    sequence.num_computed_tokens = 3
    sequence.extend([8])
    assert (sequence.num_tokens, sequence.num_new_tokens, sequence.num_output_tokens) == (4, 1, 1)
    assert sequence.sample.output_token_ids == [8]
    assert sequence.sample.prompt_token_ids == [5, 6, 7]


def test_digests_chain_and_survive_preemption() -> None:
    sequence = make([1, 2, 3, 4, 5])
    second = sequence.digest(1, 2)
    first = block_digest(ROOT, [1, 2])
    assert second == block_digest(first, [3, 4])
    assert sequence.digest(0, 2) == first
    sequence.block_table.extend([3, 1])
    sequence.num_computed_tokens = 4
    sequence.num_published_blocks = 2
    sequence.forget_kv()
    assert sequence.block_table == []
    assert sequence.num_new_tokens == 5
    assert sequence.num_published_blocks == 0
    sequence.extend([6])
    assert sequence.digests == [first, second]
    assert sequence.digest(2, 2) == block_digest(second, [5, 6])
