"""A state cut one way and read another way is the same state, bit for bit; what does not fit together is named."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_cluster.store.resharding import ITEM_TYPES, Misfit, open_parts, pieces_from, whole_pieces
from realign_cluster.store.state_part import Corrupt, PartHeader, PieceOf, data_path, write_part

LAYERS = 5


def cut(array, piece):
    """As the piece is defined, independently of how it is read."""
    if piece.axis == -1:
        return array
    return np.concatenate(
        [np.take(array, range(begin, end), axis=piece.axis) for begin, end in piece.ranges]
        or [np.take(array, [], axis=piece.axis)],
        axis=piece.axis,
    )


def split(length, count):
    """Unequal and perhaps empty ranges."""
    return [(length * at * at // count**2, length * (at + 1) ** 2 // count**2) for at in range(count)]


def layout_of(name, tensors):
    """Which pieces each rank holds: a list of dictionaries by tensor name."""
    kind, *counts = name.split("-")
    match kind:
        case "whole":
            return [{name: PieceOf(whole=array.shape) for name, (_, array) in tensors.items()}]
        case "pipeline":
            ends = np.cumsum([int(count) for count in counts])
            ranks = [{} for _ in counts]
            for name, (_, array) in tensors.items():
                head = name.split(".")[0]
                # norms and tied embeddings are held by both ends
                owners = (
                    {0, len(ranks) - 1} if head == "tied" else {int(np.searchsorted(ends, int(head), side="right"))}
                )
                for rank in owners:
                    ranks[rank][name] = PieceOf(whole=array.shape)
            return ranks
        case "sharded":
            count = int(counts[0])
            return [
                {
                    name: PieceOf(whole=array.shape, axis=0, ranges=(split(array.shape[0], count)[rank],))
                    if array.ndim
                    else PieceOf(whole=array.shape)
                    for name, (_, array) in tensors.items()
                }
                for rank in range(count)
            ]
        case "tensor":
            count = int(counts[0])
            ranks = [{} for _ in range(count)]
            for name, (_, array) in tensors.items():
                for rank in range(count):
                    ranks[rank][name] = tensor_piece(name, array.shape, rank, count)
            return ranks
    raise AssertionError(name)


def tensor_piece(name, shape, rank, count):
    """Rows, columns, rows of two fused matrices, or all on every rank, by name."""
    if not shape or name.endswith("norm"):
        return PieceOf(whole=shape)
    axis = 1 if name.endswith("down") and len(shape) > 1 else 0
    if name.endswith("fused"):
        half = shape[0] // 2
        first, second = split(half, count)[rank], split(shape[0] - half, count)[rank]
        return PieceOf(whole=shape, axis=0, ranges=(first, (half + second[0], half + second[1])))
    return PieceOf(whole=shape, axis=axis, ranges=(split(shape[axis], count)[rank],))


def write_layout(folder, layout, pieces, arrays, generation=1):
    """Part files of a state: `pieces` and `arrays` by rank. Their paths, last rank first."""
    paths = []
    for rank, (held, of) in enumerate(zip(pieces, arrays, strict=True)):
        header = PartHeader(
            kind="snapshot", step=3, part=rank, parts=len(pieces), layout=layout, generation=generation, pieces=held
        )
        tensors = [(name, code, array.shape, np.ascontiguousarray(array)) for name, (code, array) in of.items()]
        paths.append(data_path(folder, write_part(folder, header, tensors, durable=False)))
    return paths[::-1]


def reread(paths, pieces):
    """Arrays by rank, in another layout."""
    parts = open_parts(paths)
    ranks = []
    for held in pieces:
        got = {name: (code, array) for name, code, array in pieces_from(parts, held)}
        assert list(got) == list(held)
        ranks.append(got)
    return ranks


codes = st.sampled_from(sorted(ITEM_TYPES))
shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 7)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
)
endings = st.sampled_from(["q", "down", "fused", "norm"])


@st.composite
def states(draw):
    heads = [*range(LAYERS), "tied"]
    tensors = {}
    for at in range(draw(st.integers(1, 8))):
        name = f"{draw(st.sampled_from(heads))}.{at}.{draw(endings)}"
        code, shape = draw(codes), draw(shapes)
        item = np.dtype(ITEM_TYPES[code])
        size = int(np.prod(shape, dtype=int)) * item.itemsize
        data = np.random.default_rng(draw(st.integers(0, 999))).bytes(size)
        if code == "BOOL":
            data = bytes(byte & 1 for byte in data)
        tensors[name] = code, np.frombuffer(data, item).reshape(shape)
    return tensors


LAYOUTS = ["tensor-2", "pipeline-2-3", "sharded-3", "whole", "tensor-3", "pipeline-1-1-3", "sharded-2"]


@settings(max_examples=60, deadline=None)
@given(states(), st.permutations(LAYOUTS))
def test_through_any_layouts_and_back_a_state_is_the_same_bit_for_bit(tensors, layouts):
    pieces = layout_of("tensor-2", tensors)
    arrays = [
        {name: (tensors[name][0], cut(tensors[name][1], piece)) for name, piece in held.items()} for held in pieces
    ]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_layout(Path(folder), "tensor-2", pieces, arrays)
        for at, layout in enumerate([*layouts, "whole"]):
            pieces = layout_of(layout, tensors)
            arrays = reread(paths, pieces)
            for held, got in zip(pieces, arrays, strict=True):
                for name, piece in held.items():
                    code, array = got[name]
                    expected = cut(tensors[name][1], piece)
                    assert (code, array.shape, array.dtype) == (tensors[name][0], expected.shape, expected.dtype)
                    assert array.tobytes() == expected.tobytes()
            paths = write_layout(Path(folder) / str(at), layout, pieces, arrays)
        assert whole_pieces(open_parts(paths)) == pieces[0]


WHOLE = np.arange(24, dtype=np.float32).reshape(6, 4)


def held_by(folder, *ranges, arrays=None):
    pieces = [{"weights/a": PieceOf(whole=WHOLE.shape, axis=0, ranges=(part,))} for part in ranges]
    arrays = arrays or [{"weights/a": ("F32", cut(WHOLE, held["weights/a"]))} for held in pieces]
    return open_parts(write_layout(folder, f"sharded-{len(ranges)}", pieces, arrays))


def misfit(parts, **wanted):
    with pytest.raises(Misfit) as caught:
        list(pieces_from(parts, wanted or {"weights/a": PieceOf(whole=WHOLE.shape)}))
    return caught.value.message


def test_what_one_part_holds_is_not_copied(tmp_path):
    parts = held_by(tmp_path, (0, 4), (4, 6))
    wanted = PieceOf(whole=WHOLE.shape, axis=0, ranges=((0, 1), (1, 4)))
    ((_, _, array),) = pieces_from(parts, {"weights/a": wanted})
    assert array.base is not None
    assert not array.flags.writeable
    assert np.array_equal(array, WHOLE[:4])


def test_gaps_and_overlaps_are_named(tmp_path):
    name = "snapshot-00000003.sharded-2"
    said = misfit(held_by(tmp_path / "gap", (0, 2), (3, 6)))
    assert said == f"weights/a: 2 to 3 of axis 0 are in no part; {name}.1-of-2 begins behind them"
    said = misfit(held_by(tmp_path / "end", (0, 2), (2, 5)))
    assert said == f"weights/a: 5 to 6 of axis 0 are in no part; {name}.1-of-2 ends before them"
    said = misfit(held_by(tmp_path / "both", (0, 4), (2, 6)))
    assert said == f"weights/a: 2 to 4 of axis 0 are in both {name}.0-of-2 and {name}.1-of-2"
    said = misfit(held_by(tmp_path / "a", (0, 2), (2, 6)), b=PieceOf(whole=(3,)))
    assert said.startswith("b is in no part of snapshot-00000003.sharded-2")
    said = misfit(held_by(tmp_path / "b", (0, 2), (2, 6)), **{"weights/a": PieceOf(whole=(6, 5))})
    assert said.startswith("weights/a has shape (6, 4) in snapshot-00000003.sharded-2.")


@pytest.mark.parametrize("other", [("F32", WHOLE + 1), ("U32", WHOLE.view(np.uint32))], ids=["bytes", "dtype"])
def test_copies_that_differ_are_named(tmp_path, other):
    whole = [{"weights/a": PieceOf(whole=WHOLE.shape)}] * 2
    paths = write_layout(tmp_path, "tensor-2", whole, [{"weights/a": ("F32", WHOLE)}, {"weights/a": other}])
    names = "snapshot-00000003.tensor-2.1-of-2 and snapshot-00000003.tensor-2.0-of-2"
    assert misfit(open_parts(paths)) == f"weights/a differs between {names}"


def test_pieces_of_different_dtypes_are_refused(tmp_path):
    arrays = [{"weights/a": ("F32", WHOLE[:3])}, {"weights/a": ("U32", WHOLE[3:].view(np.uint32))}]
    assert misfit(held_by(tmp_path, (0, 3), (3, 6), arrays=arrays)) == (
        "weights/a is F32 in snapshot-00000003.sharded-2.0-of-2 and U32 elsewhere"
    )


def test_a_tensor_cut_in_two_ways_is_refused(tmp_path):
    pieces = [
        {"a": PieceOf(whole=(6, 4), axis=0, ranges=((0, 3),))},
        {"a": PieceOf(whole=(6, 4), axis=1, ranges=((0, 2),))},
    ]
    arrays = [{"a": ("F32", cut(WHOLE, held["a"]))} for held in pieces]
    parts = open_parts(write_layout(tmp_path, "tensor-2", pieces, arrays))
    assert misfit(parts, a=PieceOf(whole=(6, 4))).startswith("a is cut in different ways in ")


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    whole = [{"a": PieceOf(whole=(6, 4))}] * 3
    arrays = [{"a": ("F32", WHOLE)}] * 3
    three = write_layout(tmp_path / "three", "sharded-3", whole, arrays)
    two = write_layout(tmp_path / "two", "sharded-2", whole[:2], arrays[:2])
    with pytest.raises(Misfit, match="are not of one state"):
        open_parts([three[0], two[0]])
    with pytest.raises(Misfit, match="are not of one state"):
        open_parts([])
    later = write_layout(tmp_path / "later", "sharded-3", whole, arrays, generation=2)
    with pytest.raises(Misfit, match="are not of one state"):
        open_parts([three[0], later[1], three[2]])
    with pytest.raises(Misfit, match="part 1 of 3 is missing"):
        open_parts([three[0], three[2]])
    with pytest.raises(Misfit, match="part 2 of 3 is there twice"):
        open_parts([*three, three[0]])


def test_a_damaged_part_is_never_read(tmp_path):
    whole = [{"a": PieceOf(whole=(6, 4))}]
    (path,) = write_layout(tmp_path, "whole", whole, [{"a": ("F32", WHOLE)}])
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="tensor a is damaged"):
        open_parts([path])
