"""Datasets and the loader: every sample once, the same for the same seed, whole batches."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ish.random import Generator, manual_seed
from tinygrad_ish.tensor import Tensor, from_numpy, tensor
from tinygrad_ish.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def numbered(n: int) -> TensorDataset:
    """Samples (i / 10, i)."""
    return TensorDataset(
        from_numpy(np.arange(n, dtype=np.float32).reshape(n, 1) / 10), from_numpy(np.arange(n))
    )


class Squares(Dataset):
    """A dataset of Python numbers, without ``batch``."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[int, float]:
        return i, float(i) ** 2


def labels_of(loader: DataLoader) -> list[list[int]]:
    return [batch[1].tolist() for batch in loader]


@settings(max_examples=40)
@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    whole=st.booleans(),
)
def test_each_sample_comes_once(
    n: int, batch_size: int, shuffle: bool, drop_last: bool, whole: bool
) -> None:
    loader = DataLoader(
        numbered(n),
        batch_size,
        shuffle,
        drop_last=drop_last,
        generator=seeded(0),
        collate_fn=None if whole else default_collate,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == (n // batch_size if drop_last else -(-n // batch_size))
    full = batches if drop_last else batches[:-1]
    assert all(len(y) == batch_size for _, y in full)
    seen = [i for _, y in batches for i in y.tolist()]
    assert len(set(seen)) == len(seen) == (n - n % batch_size if drop_last else n)
    assert shuffle or seen == list(range(len(seen)))
    for x, y in batches:
        assert x.dtype == np.float32 and x.shape == (len(y), 1)
        np.testing.assert_array_equal(x.numpy()[:, 0], y.numpy().astype(np.float32) / 10)


def test_the_same_seed_gives_the_same_batches_and_passes_differ() -> None:
    def two_passes(generator: Generator | None) -> list[list[list[int]]]:
        loader = DataLoader(numbered(50), 8, shuffle=True, generator=generator)
        return [labels_of(loader), labels_of(loader)]

    first, second = two_passes(seeded(7))
    assert first != second
    assert two_passes(seeded(7)) == [first, second]
    assert two_passes(seeded(8)) != [first, second]
    manual_seed(7)
    default = two_passes(None)
    manual_seed(7)
    assert two_passes(None) == default


def test_batches_in_order_are_views_and_shuffled_ones_are_copies() -> None:
    data = numbered(6)
    memory = data.tensors[1].numpy()
    assert all(np.shares_memory(y.numpy(), memory) for _, y in DataLoader(data, 4))
    assert not any(np.shares_memory(y.numpy(), memory) for _, y in DataLoader(data, 4, True))


def test_whole_batches_are_asked_for_unless_collate_fn_is_given() -> None:
    asked: list[Any] = []

    class Whole(Squares):
        def batch(self, rows: Any) -> str:
            asked.append(rows)
            return "whole"

    assert list(DataLoader(Whole(), 6)) == ["whole", "whole"]
    assert asked == [slice(0, 6), slice(6, 10)]
    assert list(DataLoader(Whole(), 6, collate_fn=len)) == [6, 4]
    assert len(asked) == 2


def test_a_plain_dataset_is_collated() -> None:
    (i, square), _ = DataLoader(Squares(), 7)
    assert i.tolist() == list(range(7)) and i.dtype == np.int64
    assert square.tolist() == [float(n * n) for n in range(7)] and square.dtype == np.float64
    (listed,) = DataLoader([True, False], batch_size=5, shuffle=False)
    assert listed.tolist() == [True, False] and listed.dtype == np.bool_


def test_collate_nests() -> None:
    samples = [
        {"x": (np.full((2,), i, np.float32), [tensor([i])]), "n": np.int32(i)} for i in range(3)
    ]
    batch = default_collate(samples)
    assert batch["x"][0].shape == (3, 2) and batch["x"][0].dtype == np.float32
    assert batch["x"][1][0].tolist() == [[0], [1], [2]]
    assert batch["n"].tolist() == [0, 1, 2] and batch["n"].dtype == np.int64
    assert default_collate([1, 2.5]).tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([np.zeros(2), np.zeros(3)], ValueError, "same shapes, got (2,) for the first and (3,)"),
        ([(1, 2), (1,)], ValueError, "same lengths, got 2 for the first and 1 for number 1"),
        ([{"a": 1}, {"b": 1}], ValueError, "same keys, got ['a'] for the first and ['b']"),
        ([object()], TypeError, "got object; give the loader a collate_fn"),
    ],
)
def test_collate_refuses(samples: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        default_collate(samples)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ({"batch_size": -3}, ValueError, "batch_size: expected an integer of at least 1, got -3"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an integer of at least 1, got flo"),
        ({"batch_size": True}, TypeError, "batch_size: expected an integer of at least 1, got boo"),
        ({"dataset": []}, ValueError, "dataset: expected one sample or more, got list of length 0"),
    ],
)
def test_the_loader_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DataLoader(**{"dataset": numbered(3), **options})


def test_tensor_dataset() -> None:
    data = numbered(5)
    x, y = data[-1]
    assert len(data) == 5 and y.item() == 4 and x.shape == (1,)
    x, y = data.batch(np.array([3, 0]))
    assert y.tolist() == [3, 0] and isinstance(x, Tensor)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ((), ValueError, "expected one tensor or more, got none"),
        ((np.zeros(3),), TypeError, "argument 0: expected a Tensor, got ndarray"),
        ((tensor(1.0),), ValueError, "argument 0: expected a tensor with samples along dim"),
        (
            (tensor([1.0, 2.0]), tensor([[1.0]])),
            ValueError,
            re.escape("expected tensors of one length, got (2,), (1, 1)"),
        ),
    ],
)
def test_tensor_dataset_refuses(
    tensors: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^TensorDataset: {message}"):
        TensorDataset(*tensors)


def test_dataset_says_what_a_subclass_must_define() -> None:
    with pytest.raises(TypeError, match="Dataset: define __len__"):
        len(Dataset())
    with pytest.raises(TypeError, match="Dataset: define __getitem__"):
        Dataset()[0]


def test_subset_of_tensors_and_of_a_plain_dataset() -> None:
    part = Subset(numbered(10), [7, 2, -1])
    assert len(part) == 3 and part[1][1].item() == 2
    assert labels_of(DataLoader(part, 2)) == [[7, 2], [9]]
    assert labels_of(DataLoader(Subset(part, [2, 0]), 2)) == [[9, 7]]
    (numbers, _), *_ = DataLoader(Subset(Squares(), [7, 2, -1]), 3)
    assert numbers.tolist() == [7, 2, -1]
    assert len(Subset(numbered(3), [])) == 0


def test_subset_refuses() -> None:
    with pytest.raises(ValueError, match=r"indices: expected numbers from 0 to 2, .* got 3"):
        Subset(numbered(3), [0, 3])
    with pytest.raises(TypeError, match="expected a list of integers, got bool"):
        Subset(numbered(3), np.array([True, False, True]))


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [([7, 3], [7, 3]), ([0.8, 0.2], [8, 2]), ([1 / 3, 1 / 3, 1 / 3], [4, 3, 3]), ([10], [10])],
)
def test_random_split_cuts_into_disjoint_parts(lengths: list[Any], sizes: list[int]) -> None:
    parts = random_split(numbered(10), lengths, generator=seeded(1))
    assert [len(p) for p in parts] == sizes
    indices = np.concatenate([p.indices for p in parts])
    assert sorted(indices) == list(range(10)) and list(indices) != list(range(10))
    again = random_split(numbered(10), lengths, generator=seeded(1))
    assert [p.indices.tolist() for p in again] == [p.indices.tolist() for p in parts]


@pytest.mark.parametrize("lengths", [[5, 4], [11, -1], [0.5, 0.4], [5.0, 5.0]])
def test_random_split_refuses(lengths: list[Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"add up to 1; got {lengths}")):
        random_split(numbered(10), lengths)


def test_torchs_collate_gives_the_same_values() -> None:
    torch_data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    samples = [(i, float(i), np.full((2, 2), i, np.float32), {"k": True}) for i in range(4)]
    ours, theirs = default_collate(samples), torch_data.default_collate(samples)
    for a, b in zip([*ours[:3], ours[3]["k"]], [*theirs[:3], theirs[3]["k"]], strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert a.dtype == b.numpy().dtype
