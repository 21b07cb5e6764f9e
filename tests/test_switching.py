import pytest
import torch

from sar_gen import switching
from sar_gen.switching import copied, few_threads, size_of, write


def _tensors():
    random = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 5, generator=random),
        "half": torch.randn(3, 2, 2, generator=random).half(),
        "count": torch.tensor(3),
        "nothing": torch.empty(0, 4),
        "turned": torch.randn(4, 6, generator=random).t(),
    }


@pytest.mark.parametrize("chunk", [64, 200, 1 << 20])
def test_a_copy_is_equal_apart_and_as_large_as_it_says(chunk, monkeypatch):
    monkeypatch.setattr(switching, "CHUNK", chunk)
    tensors = _tensors()
    copy = copied(tensors)
    assert list(copy.tensors) == list(tensors)
    assert copy.size == size_of(tensors.values())
    blocks = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in copy.tensors.values()
    }
    assert sum(blocks.values()) == copy.size
    for name, tensor in tensors.items():
        assert copy.tensors[name].dtype == tensor.dtype
        assert torch.equal(copy.tensors[name], tensor)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.zero_()
    write(copy, tensors)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == addresses


def test_few_threads_are_for_little_and_only_meanwhile():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with few_threads(1000):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with few_threads(switching.SMALL + 1):
            assert torch.get_num_threads() == 2
        with pytest.raises(OSError, match="gone"), few_threads(1000):
            raise OSError("gone")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
