"""Two columns against each other, with the slow definition beside: every entry in turn."""

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.store.differences import column_difference


def by_definition(before, after):
    """(row, position, stored, replayed, count) by looking at each entry, lists padded with null."""

    def entries(old, new):
        if isinstance(old, list) or isinstance(new, list):
            old, new = old or [], new or []
            longer = range(max(len(old), len(new)))
            return [tuple(side[i] if i < len(side) else None for side in (old, new)) for i in longer]
        return [(old, new)]

    def same(a, b):
        both = isinstance(a, float) and isinstance(b, float)
        return a == b or (both and math.isnan(a) and math.isnan(b))

    found = [
        (row, position, a, b)
        for row in range(max(len(before), len(after)))
        for position, (a, b) in enumerate(
            entries(*(side[row] if row < len(side) else None for side in (before, after)))
        )
        if not same(a, b)
    ]
    return (*found[0], len(found)) if found else None


numbers = st.one_of(st.none(), st.sampled_from([0.0, 1.0, -2.5, math.nan, math.inf]))
lists = st.lists(st.one_of(st.none(), st.lists(numbers, max_size=4)), max_size=5)


@given(lists, lists)
def test_lists_are_compared_as_each_entry_in_turn(before, after):
    found = column_difference(*(pa.array(side, pa.list_(pa.float64())) for side in (before, after)))
    expected = by_definition(before, after)
    if expected is None:
        assert found is None
    else:
        told = (found.row, found.position, found.stored, found.replayed, found.count)
        assert str(told) == str(expected)


@given(st.lists(numbers, max_size=6), st.lists(numbers, max_size=6))
def test_numbers_are_compared_row_by_row(before, after):
    found = column_difference(*(pa.array(side, pa.float64()) for side in (before, after)))
    expected = by_definition(before, after)
    assert (found is None) == (expected is None)
    if found is not None:
        assert str((found.row, 0, found.stored, found.replayed, found.count)) == str(expected)
        assert found.position is None


def test_the_largest_difference_and_the_first_are_told():
    found = column_difference(pa.array([[1.0, 2.0], [3.0]]), pa.array([[1.0, 2.5], [0.0]]))
    assert (found.row, found.position, found.stored, found.replayed, found.largest, found.count) == (
        0,
        1,
        2.0,
        2.5,
        3.0,
        2,
    )


@pytest.mark.parametrize(("before", "after", "largest"), [
    (pa.array(["a", "b"]), pa.array(["a", "c"]), None),
    (pa.array([True, False]), pa.array([True, True]), None),
    (pa.array([1, 2], pa.int32()), pa.array([1, 5], pa.int32()), 3.0),
    (pa.array([1, 2], pa.int32()), pa.array([1.0, 2.5]), 0.5),
])  # fmt: skip
def test_other_kinds_are_compared_too(before, after, largest):
    found = column_difference(before, after)
    assert (found.row, found.position, found.count, found.largest) == (1, None, 1, largest)


def test_a_column_that_one_side_has_alone_differs_in_every_entry():
    assert column_difference(pa.array([[1.0], [2.0, 3.0]]), None).count == 3
    assert column_difference(None, pa.array(["x"])).replayed == "x"
    assert column_difference(None, None) is None


def test_chunks_and_slices_change_nothing():
    column = pa.chunked_array([pa.array([[1.0]]), pa.array([[2.0, 3.0], [4.0]]).slice(1)])
    assert column_difference(column, pa.array([[1.0], [4.0]])) is None
