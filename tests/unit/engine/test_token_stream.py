"""Pieces of one request that a late reader takes together."""

from quickmatch.engine.token_stream import join
from quickmatch.engine.wire import Tokens


def test_pieces_join_to_what_they_are_together() -> None:
    first = Tokens(
        request_id="r", token_ids=[1, 2], num_cached_tokens=5, queue_s=0.5,
        num_accepted_prediction_tokens=2, num_rejected_prediction_tokens=1,
    )  # fmt: skip
    last = Tokens(
        request_id="r", token_ids=[3], finish_reason="length",
        num_accepted_prediction_tokens=1, num_rejected_prediction_tokens=4,
    )  # fmt: skip
    assert join([first, last]) == Tokens(
        request_id="r", token_ids=[1, 2, 3], finish_reason="length", num_cached_tokens=5,
        queue_s=0.5, num_accepted_prediction_tokens=3, num_rejected_prediction_tokens=5,
    )  # fmt: skip
    assert join([last]) is last
