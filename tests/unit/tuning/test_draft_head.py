"""The trainable head is what drafts while serving, unrolled; and it learns."""

from dataclasses import replace

import pytest
import torch

from quickmatch.engine.model_config import ModelConfig, RopeConfig
from quickmatch.engine.speculation.head_config import check_tensors, new_head_config
from quickmatch.tuning import draft_head, draft_loss
from quickmatch.tuning.draft_head import DraftHead, HeadBatch
from quickmatch.tuning.draft_loss import STEP_WEIGHT, head_loss
from tests.unit.engine.speculation.dense_head import DenseHead
from tests.unit.engine.speculation.random_head import random_head

VOCAB, HIDDEN, MAX_LEN = 40, 16, 64
TARGET = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=24,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_model_len=MAX_LEN,
    rms_norm_eps=1e-5,
    rope=RopeConfig(original_max_len=MAX_LEN),
    windows=(None,) * 4,
)
CONFIG = new_head_config(TARGET, draft_vocab_size=12)
EMBEDDING = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(1))
LENGTHS = ((7, 6), (3, 9), (5, 4))  # prompt, output


def make_head(config=CONFIG, seed=0):
    tensors = random_head(config, seed=seed, scale=0.25)
    ids = torch.arange(config.draft_vocab_size) + tensors["d2t"]
    head = DraftHead(config, EMBEDDING, ids)
    assert head.load(tensors) == config.draft_vocab_size
    return head, tensors


def make_batch(seed=0, lengths=LENGTHS, num_soft=5):
    """Random states, tokens and targets; about a fifth of the positions is not the head's."""
    generator = torch.Generator().manual_seed(seed)
    n, longest = len(lengths), max(p + o for p, o in lengths) - 1
    drafts = torch.tensor([o - 1 for _, o in lengths])
    best = torch.randint(12, (n, int(drafts.max())), generator=generator)
    best[torch.rand(best.shape, generator=generator) < 0.2] = -1
    return HeadBatch(
        aux=torch.randn(n, longest, 3 * HIDDEN, generator=generator),
        next_ids=torch.randint(VOCAB, (n, longest), generator=generator),
        offset=torch.zeros(n, dtype=torch.int64),
        first=torch.tensor([p - 1 for p, _ in lengths]),
        num_drafts=drafts,
        target_ids=torch.stack(
            [torch.randperm(12, generator=generator)[:num_soft] for _ in range(best.numel())]
        ).view(*best.shape, num_soft),
        target_probs=torch.rand(*best.shape, num_soft, generator=generator).softmax(-1),
        target_best=best,
    )


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, num_kv_heads=4),
        replace(CONFIG, num_kv_heads=1, norm_before_residual=True),
        replace(CONFIG, rope=RopeConfig(kind="linear", factor=4.0, original_max_len=MAX_LEN)),
    ],
    ids=["usual", "one query a key", "normed residual", "stretched"],
)
def test_every_step_of_every_draft_is_what_drafting_computes(config):
    head, tensors = make_head(config)
    dense, batch = DenseHead(config, tensors, EMBEDDING), make_batch()
    states = list(head.unroll(batch, 4))
    assert [s.shape[1] for s in states] == [8, 7, 6, 5]
    for row, (prompt, output) in enumerate(LENGTHS):
        for begin in range(output - 1):
            at = prompt - 1 + begin  # the last row that the target has computed
            tokens = batch.next_ids[row].tolist()
            g = dense.fuse(batch.aux[row, : at + 1])
            depth = min(4, output - 1 - begin)
            path = tokens[at + 1 : at + depth]
            expected = dense.along(g, tokens[: at + 1], path)
            for step in range(depth):
                found = head.logits(states[step][row, begin]).softmax(-1)
                assert torch.allclose(found, expected[step], atol=1e-5), (row, begin, step)


def test_the_loss_is_the_plain_formula():
    head, _ = make_head()
    batch = make_batch()
    loss, sums = head_loss(head, batch, 3)
    expected = torch.zeros(())
    for step, state in enumerate(head.unroll(batch, 3)):
        nats = []
        for row, (_, output) in enumerate(LENGTHS):
            for begin in range(output - 1 - step):
                if batch.target_best[row, begin + step] < 0:
                    continue
                log_probs = head.logits(state[row, begin]).log_softmax(-1)
                ids = batch.target_ids[row, begin + step]
                nats.append(-(batch.target_probs[row, begin + step] * log_probs[ids]).sum())
        assert sums.num_learnt[step] == len(nats)
        expected = expected + STEP_WEIGHT**step * torch.stack(nats).mean()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert sums.loss == pytest.approx(float(loss.detach()), abs=1e-4)
    assert sums.num_drafts == [16, 13, 10]


def test_gradients_are_right_and_reach_every_weight():
    head, _ = make_head()
    head = head.double()
    batch = make_batch(lengths=((4, 5), (2, 4)))
    doubled = replace(batch, aux=batch.aux.double(), target_probs=batch.target_probs.double())
    head_loss(head, doubled, 3)[0].backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        found = float((parameter.grad * way).sum())
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * 1e-5 * way
                values.append(float(head_loss(head, doubled, 3)[0]))
                parameter -= sign * 1e-5 * way
        assert found == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-2, abs=1e-4), name


def test_what_is_too_much_to_keep_is_computed_piece_by_piece(monkeypatch):
    head, _ = make_head(replace(CONFIG, num_kv_heads=1))
    batch = make_batch(lengths=((1, 12), (1, 12), (2, 11)))

    def learn():
        kept = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.add(t.shape) or t, lambda t: t
        ):
            loss, sums = head_loss(head, batch, 3)
        head.zero_grad()
        loss.backward()
        return loss, sums, {n: p.grad.clone() for n, p in head.named_parameters()}, kept

    loss, sums, gradients, kept = learn()
    num_seqs, length = batch.next_ids.shape
    scores = (num_seqs, 1, CONFIG.num_heads * batch.max_drafts, length)
    too_much = {scores, (sums.num_learnt[0], CONFIG.draft_vocab_size)}
    assert too_much <= kept
    for module in (draft_head, draft_loss):
        monkeypatch.setattr(module, "MAX_KEPT", 288)  # two columns of scores, 24 rows of logits
    same_loss, same_sums, same_gradients, less = learn()
    assert not too_much & less
    assert torch.allclose(loss, same_loss, atol=1e-5)
    assert sums.nats == pytest.approx(same_sums.nats, abs=1e-4)
    assert (sums.hits, sums.reached) == (same_sums.hits, same_sums.reached)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, same_gradients[name], atol=1e-5), name


def test_positions_count_what_the_head_does_not_see():
    head, _ = make_head()
    batch = make_batch()
    moved = replace(batch, offset=torch.tensor([20, 3, 40]))
    for near, far in zip(head.unroll(batch, 4), head.unroll(moved, 4), strict=True):
        assert torch.allclose(near, far, atol=1e-4)  # distances are what turned keys tell
        assert not torch.equal(near, far)


def test_hits_count_as_a_greedy_draft_would_get_on():
    head, _ = make_head()
    batch = make_batch()
    with torch.no_grad():
        best = [head.logits(state).argmax(-1) for state in head.unroll(batch, 3)]
        # The target agrees with the head's first step everywhere, so with its second by chance.
        target = torch.where(batch.target_best < 0, -1, best[0])
        agreeing = replace(batch, target_best=target)
        _, sums = head_loss(head, agreeing, 3)
    learnt = sum(
        int((target[row, : output - 1] >= 0).sum()) for row, (_, output) in enumerate(LENGTHS)
    )
    assert sums.hits[0] == sums.reached[0] == learnt < sums.num_drafts[0]
    reached = 0
    for row, (_, output) in enumerate(LENGTHS):
        for begin in range(output - 2):
            both = (target[row, begin], target[row, begin + 1]) == (
                best[0][row, begin],
                best[1][row, begin],
            )
            reached += both
    assert sums.reached[1] == reached
    shares = [r / n for r, n in zip(sums.reached, sums.num_drafts, strict=True)]
    assert sums.accepted_length == pytest.approx(1 + sum(shares))


def test_it_learns_to_foretell_a_rule():
    """Targets that follow from the next token: a few dozen steps suffice for every depth."""
    torch.manual_seed(0)
    head, _ = make_head()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)

    def batch(seed):
        drawn = make_batch(seed, lengths=((3, 9),) * 16)
        after = drawn.next_ids.gather(
            1, (drawn.first[:, None] + torch.arange(8)).clamp(max=drawn.next_ids.shape[1] - 1)
        )
        best = after % 12
        probs = torch.zeros(*best.shape, 5)
        probs[..., 0] = 1.0
        ids = torch.cat((best[..., None], drawn.target_ids[..., 1:]), -1)
        return replace(drawn, target_ids=ids, target_probs=probs, target_best=best)

    for step in range(200):
        loss, _ = head_loss(head, batch(step + 1), 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        _, sums = head_loss(head, batch(1000), 3)
    assert min(sums.acceptance) > 0.9, sums.acceptance
    assert sums.accepted_length > 3.4


def test_the_folder_s_tensors_are_a_head_s():
    head, tensors = make_head()
    written = head.tensors(torch.bfloat16)
    check_tensors(CONFIG, written, "the test")
    assert torch.equal(written["d2t"], tensors["d2t"])
    assert torch.equal(written["t2d"], tensors["t2d"])
    assert written["fc.weight"].dtype == torch.bfloat16
    assert "embedding" not in written


def test_a_warm_start_moves_rows_to_where_their_tokens_are():
    _, tensors = make_head()
    old_ids = (torch.arange(12) + tensors["d2t"]).tolist()
    fresh = [t for t in range(VOCAB) if t not in old_ids][:6]
    new_ids = sorted(old_ids[::2] + fresh)
    config = replace(CONFIG, draft_vocab_size=len(new_ids))
    head = DraftHead(config, EMBEDDING, torch.tensor(new_ids))
    before = head.lm_head.weight.detach().clone()
    assert head.load(tensors) == 6
    for row, token in enumerate(new_ids):
        known = token in old_ids
        expected = tensors["lm_head.weight"][old_ids.index(token)] if known else before[row]
        assert torch.equal(head.lm_head.weight[row], expected)
    for name, parameter in head.named_parameters():
        if name != "lm_head.weight":
            assert torch.equal(parameter, tensors[name]), name
