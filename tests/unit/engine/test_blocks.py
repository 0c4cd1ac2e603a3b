import pytest

from quickmatch.engine.blocks import BlockAllocator, OutOfBlocks, block_digest, root_digest

ROOT = root_digest(0, "")


def test_digest_depends_on_all_that_the_kv_depends_on() -> None:
    first = block_digest(ROOT, [1, 2, 3, 4])
    assert first == block_digest(ROOT, [1, 2, 3, 4])
    others = {
        block_digest(ROOT, [1, 2, 3, 5]),
        block_digest(ROOT, [2, 1, 3, 4]),
        block_digest(first, [1, 2, 3, 4]),
        block_digest(root_digest(1, ""), [1, 2, 3, 4]),
        block_digest(root_digest(0, "tenant"), [1, 2, 3, 4]),
    }
    assert first not in others
    assert len(others) == 5
    assert root_digest(1, "2") != root_digest(12, "")


def test_gives_every_block_once_then_none() -> None:
    blocks = BlockAllocator(3, 4)
    table = [blocks.allocate() for _ in range(3)]
    assert sorted(table) == [0, 1, 2]
    assert blocks.num_used == 3
    with pytest.raises(OutOfBlocks, match="3 KV blocks"):
        blocks.allocate()
    blocks.check_integrity([table])
    blocks.release(table)
    assert blocks.num_free == 3
    blocks.check_integrity([])


def test_a_shared_block_is_free_only_after_its_last_holder() -> None:
    blocks = BlockAllocator(2, 4)
    digest = block_digest(ROOT, [1, 2, 3, 4])
    block = blocks.allocate()
    blocks.publish(block, digest)
    assert blocks.find(digest) == block
    blocks.share(block)
    blocks.release([block])
    assert blocks.num_used == 1
    blocks.check_integrity([[block]])
    blocks.release([block])
    assert blocks.num_used == 0
    assert blocks.num_idle([block]) == 1
    assert blocks.find(digest) == block  # still of use to a later sequence
    blocks.share(block)
    assert blocks.num_idle([block]) == 0
    blocks.check_integrity([[block]])


def test_evicts_least_recently_used_and_the_end_before_the_beginning() -> None:
    blocks = BlockAllocator(4, 1)
    tables = []
    for start in (10, 20):
        parent, table = ROOT, []
        for token in (start, start + 1):
            parent = block_digest(parent, [token])
            table.append(blocks.allocate())
            blocks.publish(table[-1], parent)
        tables.append(table)
    blocks.release(tables[0])
    blocks.release(tables[1])
    order = [blocks.allocate() for _ in range(4)]
    assert order == [tables[0][1], tables[0][0], tables[1][1], tables[1][0]]
    assert blocks.find(block_digest(ROOT, [10])) is None
    blocks.check_integrity([order])


def test_prefers_worthless_blocks_over_eviction() -> None:
    blocks = BlockAllocator(2, 1)
    digest = block_digest(ROOT, [1])
    block = blocks.allocate()
    blocks.publish(block, digest)
    blocks.release([block])
    assert blocks.allocate() != block
    assert blocks.find(digest) == block


def test_the_first_block_of_a_content_stays_the_one() -> None:
    blocks = BlockAllocator(2, 1)
    digest = block_digest(ROOT, [1])
    first, second = blocks.allocate(), blocks.allocate()
    blocks.publish(first, digest)
    blocks.publish(second, digest)
    assert blocks.find(digest) == first
    blocks.release([second])
    blocks.check_integrity([[first]])
    assert blocks.allocate() == second  # held nothing of worth


def test_without_prefix_caching_nothing_is_found() -> None:
    blocks = BlockAllocator(1, 1, prefix_caching=False)
    digest = block_digest(ROOT, [1])
    blocks.publish(blocks.allocate(), digest)
    assert blocks.find(digest) is None


@pytest.mark.parametrize(
    "tables", [[], [[0, 0]], [[1]], [[0], [0]]], ids=["leak", "twice", "other", "double-owned"]
)
def test_check_integrity_notices(tables: list[list[int]]) -> None:
    blocks = BlockAllocator(2, 4)
    assert blocks.allocate() == 0
    with pytest.raises(AssertionError):
        blocks.check_integrity(tables)


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(num_tokens: int, num_blocks: int) -> None:
    assert BlockAllocator(8, 4).blocks_for(num_tokens) == num_blocks


def test_a_block_takes_the_place_of_one_with_the_same_content() -> None:
    blocks = BlockAllocator(4, 2)
    held, idle, new = blocks.allocate(), blocks.allocate(), blocks.allocate()
    blocks.publish(held, b"held")
    blocks.publish(idle, b"idle")
    blocks.release([idle])
    blocks.publish(new, b"held")
    assert blocks.find(b"held") == held
    blocks.publish(new, b"held", in_place=True)
    assert blocks.find(b"held") == new
    blocks.check_integrity([[held], [new]])
    other = blocks.allocate()
    blocks.publish(other, b"idle", in_place=True)
    assert blocks.find(b"idle") == other
    blocks.check_integrity([[held], [new], [other]])
    assert blocks.num_free == 1
