"""What is told of speculation by adapter, as sums and from a running engine."""

from quickmatch.engine.speculation.by_adapter import ByAdapter
from quickmatch.engine.speculation.scopes import by_adapter, traffic_of
from quickmatch.engine.speculation.tree import DraftTree, Source
from quickmatch.engine.wire import AdapterSpeculation

TREE = DraftTree.chain([1, 2, 3], [0.9] * 3, Source.HEAD)


def test_forwards_are_counted_where_they_belong() -> None:
    sums = ByAdapter()
    sums.add(None, None, 0, 1)
    sums.add("a@1", TREE, 2, 3)
    sums.add("a@1", None, 0, 1)
    assert sums.stats({"a@1": 2}) == {
        "": AdapterSpeculation(num_plain=1, num_emitted=1),
        "a@1": AdapterSpeculation(
            num_verified=1, num_plain=1, num_proposed=3, num_accepted=2, num_emitted=4, num_drifts=2
        ),
    }
    sums.forget("a@1")
    sums.forget("b@1")
    assert list(sums.stats({})) == [""]


def test_drifts_of_all_tenants_of_an_adapter_are_one_sum() -> None:
    drifts = {traffic_of("t", "a@1"): 1, traffic_of("u", "a@1"): 2, traffic_of("t", None): 4}
    assert by_adapter(drifts) == {"a@1": 3, "": 4}
