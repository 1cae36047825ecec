"""Arrays of MLX go into a part as they lie in memory, and MLX reads the part as a safetensors file."""

import mlx.core as mx
import numpy as np
import pytest

from realign_cluster.store.state_part import PartHeader, data_path, open_part, write_part

CODES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32", mx.bool_: "BOOL"}


@pytest.mark.parametrize("dtype", CODES)
def test_mlx_reads_what_was_written_of_its_arrays(tmp_path, dtype):
    arrays = {
        "weights/a": (mx.random.normal((7, 33)) * 100).astype(dtype),
        "weights/b": mx.arange(5).astype(dtype),
        "optimizer/step": mx.array(3, dtype=dtype),
        "optimizer/none": mx.zeros((0, 4), dtype=dtype),
        "rng": mx.random.key(5),
    }
    mx.eval(arrays)
    codes = {name: CODES[array.dtype] for name, array in arrays.items()}
    tensors = [(name, codes[name], array.shape, memoryview(array)) for name, array in arrays.items()]
    part = write_part(tmp_path, PartHeader(kind="checkpoint", step=1), tensors, durable=False)
    loaded = mx.load(str(data_path(tmp_path, part)))
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert mx.array_equal(loaded[name], array), name
    half = open_part(data_path(tmp_path, part))["weights/b"]
    if dtype == mx.bfloat16:
        back = mx.array(np.frombuffer(half.data, np.uint16)).view(mx.bfloat16)
        assert mx.array_equal(back, arrays["weights/b"])


def test_what_mlx_writes_and_what_we_write_hold_the_same_bytes(tmp_path):
    array = mx.random.normal((64, 64))
    part = write_part(
        tmp_path, PartHeader(kind="snapshot", step=1), [("a", "F32", array.shape, memoryview(array))], durable=False
    )
    mx.save_safetensors(str(tmp_path / "theirs.safetensors"), {"a": array})
    ours, theirs = data_path(tmp_path, part).read_bytes(), (tmp_path / "theirs.safetensors").read_bytes()
    assert ours[-array.nbytes :] == theirs[-array.nbytes :]
