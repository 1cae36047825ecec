from __future__ import annotations

import mlx.core as mx
import pytest

from realign_cluster.training.parallel.base import Piece
from realign_cluster.training.pieces import cut, gather

WHOLE = mx.arange(36, dtype=mx.float32).reshape(3, 12)
# What two ranks hold of three fused projections of widths 4, 2 and 6.
FUSED = [
    Piece(whole=(3, 12), axis=1, ranges=((0, 2), (4, 5), (6, 9))),
    Piece(whole=(3, 12), axis=1, ranges=((2, 4), (5, 6), (9, 12))),
]


def test_ranges_are_joined_in_their_order() -> None:
    assert cut(WHOLE, FUSED[1])[0].tolist() == [2, 3, 5, 9, 10, 11]


def test_a_first_axis_is_cut_like_a_last_one() -> None:
    assert cut(WHOLE, Piece(whole=(3, 12), axis=0, ranges=((1, 3),)))[:, 0].tolist() == [12, 24]


def test_an_uncut_piece_is_the_array_itself() -> None:
    assert cut(WHOLE, Piece(whole=(3, 12))) is WHOLE


def test_a_piece_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 13\) cannot be cut from one of shape \(3, 12\)"):
        cut(WHOLE, Piece(whole=(3, 13), axis=1, ranges=((0, 2),)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_gathered_pieces_add_up_to_the_whole(dtype: mx.Dtype) -> None:
    """With one rank each piece comes back in its place, zeros elsewhere."""
    alone, whole = mx.distributed.init(), WHOLE.astype(dtype)
    placed = [gather({"a": cut(whole, piece)}, {"a": piece}, alone)["a"] for piece in FUSED]
    assert mx.array_equal(placed[0] + placed[1], whole)
    assert placed[0].dtype == dtype
    assert not mx.any(placed[0] * placed[1])


def test_what_is_not_cut_is_given_back() -> None:
    (value,) = gather({"a": WHOLE}, {"a": Piece(whole=(3, 12))}, mx.distributed.init()).values()
    assert mx.array_equal(value, WHOLE)
