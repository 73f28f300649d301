"""Launches in another order, some of them at the same time, read and write what they did before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.codegen.cuda import batches, order
from chainrule.codegen.cuda.batches import Launches, arranged
from chainrule.codegen.cuda.order import Group, Touched, ancestors, independent, most_kept, needed, ordered, together

NAMES = [f"b{k}" for k in range(8)]
ENDLESS = 1 << 60


def effect(touched: Sequence[Touched], groups: Sequence[Group]) -> dict[str, object]:
    """What every buffer holds at the end: by whom it was written, from what. Launches of a group see nothing of each
    other."""
    held: dict[str, object] = {}
    for group in groups:
        before = dict(held)
        for k in group:
            reads, writes = touched[k]
            found = k, tuple(sorted((name, hash(before.get(name))) for name in reads))
            held.update(dict.fromkeys(writes, found))
    return held


@st.composite
def programs(draw: st.DrawFn) -> Launches:
    """Launches of few kernels that touch few buffers: many are in each other's way."""
    some = st.frozensets(st.sampled_from(NAMES), max_size=3)
    touched = draw(st.lists(st.tuples(some, some), max_size=14))
    kinds = [draw(st.sampled_from([0, 0, 1, 2, None])) for _ in touched]
    updates = frozenset(k for k, kind in enumerate(kinds) if kind == 0)
    sizes = {name: draw(st.integers(0, 9)) for name in NAMES[2:]}
    return Launches(tuple(touched), tuple(kinds), updates, sizes, frozenset(NAMES[:4]))


@given(launches=programs())
def test_what_is_computed_stays_the_same(launches: Launches) -> None:
    groups = arranged(launches, ENDLESS)
    assert sorted(k for group in groups for k in group) == list(range(len(launches.touched)))
    assert effect(launches.touched, groups) == effect(launches.touched, launches.alone)
    for group in groups:
        assert len({launches.alike[k] for k in group}) == 1
        for k in group:  # whatever order they are done in
            others = [launches.touched[other] for other in group if other != k]
            assert all(launches.touched[k][1].isdisjoint(reads | writes) for reads, writes in others)


@given(launches=programs(), more=st.integers(0, 20))
def test_no_more_is_kept_than_is_allowed(launches: Launches, more: int) -> None:
    allowed = launches.most(launches.alone) + more
    assert launches.most(arranged(launches, allowed)) <= allowed


@given(launches=programs())
def test_an_order_without_batches_is_the_old_one(launches: Launches) -> None:
    assert ordered(needed(launches.touched), ()) == launches.alone


def chains(count: int) -> Launches:
    """For each of `count` parameters a gradient of one byte, and its update."""
    touched = []
    for k in range(count):
        touched.append((frozenset({"x"}), frozenset({f"g{k}"})))
        touched.append((frozenset({f"g{k}", f"w{k}"}), frozenset({f"w{k}"})))
    updates = frozenset(range(1, 2 * count, 2))
    sizes = {f"g{k}": 1 for k in range(count)}
    return Launches(tuple(touched), tuple("update" if k in updates else None for k in range(2 * count)), updates, sizes,
                    frozenset())  # fmt: skip


def test_updates_wait_for_all_gradients_or_for_as_many_as_there_is_room_for() -> None:
    launches = chains(8)
    assert arranged(launches, 8)[-1] == (1, 3, 5, 7, 9, 11, 13, 15)
    halves = arranged(launches, 4)
    assert [group for group in halves if len(group) > 1] == [(1, 3, 5, 7), (9, 11, 13, 15)]
    assert launches.most(halves) == 4
    assert arranged(launches, 1) == launches.alone


def test_what_depends_on_each_other_is_not_done_at_the_same_time() -> None:
    touched = [(frozenset({f"h{k}"}), frozenset({f"h{k + 1}"})) for k in range(4)]
    earlier = ancestors(needed(touched))
    assert independent((0, 1, 2, 3), earlier) == (0,)


def test_groups_do_not_wait_for_each_other_in_a_circle() -> None:
    """a0 -> b0 and b1 -> a1: once the a's are one, the b's cannot be."""
    a, b, c, d = (frozenset({name}) for name in "abcd")
    none = frozenset[str]()
    touched = [(none, a), (a, b), (none, c), (c, d)]  # a0, b0, b1, a1
    launches = Launches(tuple(touched), ("a", "b", "b", "a"), frozenset({0, 3}), {}, frozenset())
    groups = arranged(launches, ENDLESS)
    assert (0, 3) in groups and (1, 2) not in groups
    with pytest.raises(AssertionError, match="before each other"):
        ordered(needed(touched), [(0, 3), (1, 2)])
    earlier = together((0, 3), ancestors(needed(touched)))
    assert independent((1, 2), earlier) == (1,)


def test_an_update_before_the_last_reader_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sabotaged `needed`: what overwrites does not wait for those that read."""
    w, g, h, v = (frozenset({name}) for name in "wghv")
    touched = ((g, w), (w, h), (h, g), (g | v, v), (g, w))
    launches = Launches(touched, ("u", None, None, "u", "u"), frozenset({0, 3, 4}), {}, frozenset())
    assert effect(touched, arranged(launches, ENDLESS)) == effect(touched, launches.alone)

    def careless(touched: Sequence[Touched]) -> list[set[int]]:
        return needed([(reads, frozenset()) for reads, _ in touched])

    monkeypatch.setattr(batches, "needed", careless)
    assert effect(touched, arranged(launches, ENDLESS)) != effect(touched, launches.alone)


def test_a_group_that_its_readers_do_not_wait_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "together", lambda group, earlier: earlier)
    with pytest.raises(AssertionError):
        test_groups_do_not_wait_for_each_other_in_a_circle()


def test_what_is_kept_is_counted_from_the_first_touch_to_the_last() -> None:
    a, b = frozenset({"a"}), frozenset({"b"})
    touched = [(a, b), (b, a), (a, a)]
    sizes = {"a": 10, "b": 1}
    assert most_kept([(0,), (1,), (2,)], touched, sizes, ()) == 11
    assert most_kept([(2,), (0, 1)], touched, sizes, ()) == 11
    assert most_kept([(0,)], [(a, frozenset())], {}, ()) == 0
    assert most_kept([(0,), (1,)], [(b, b), (a, a)], sizes, {"b"}) == 11
    assert order.most_kept([(0,), (1,)], [(b, b), (a, a)], sizes, ()) == 10
