"""Out of memory: told from what a model cannot do, met with smaller parts, and said with what to lower."""

import numpy as np
import pytest
import torch
from test_sharing import TOKENIZER
from test_writing import HEAD, PLAIN, model

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import batch_answering, ecg_generation
from ecgbyte_cli.runtime import memory

ON_CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. expandable_segments:True may help; dimension, size"


def too_much():
    torch.empty(2**50)  # the CPU's own words


def on_cuda():
    raise torch.OutOfMemoryError(ON_CUDA)


def on_cublas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def of_numpy():
    np.empty(2**55)


FULL = [too_much, on_cuda, on_cublas, of_numpy]


def mixed():
    torch.ones(2) + torch.ones(2, device="meta")


def to_numpy():
    raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")


def float64():
    raise TypeError(
        "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
    )


def asserted():
    raise RuntimeError("CUDA error: device-side assert triggered; mask, size and shape do not matter")


def shapes():
    torch.ones(2, 3) + torch.ones(2, 4)


def masks():
    q = torch.ones(1, 1, 4, 8)
    torch.nn.functional.scaled_dot_product_attention(
        q, q, q, attn_mask=torch.ones(1, 1, 3, 5, dtype=torch.bool)
    )


def lacking():
    raise NotImplementedError("flex attention takes no such mask")


@pytest.mark.parametrize("broken", FULL)
def test_out_of_memory_is_known_in_every_wording(broken):
    with pytest.raises((RuntimeError, MemoryError)) as error:
        broken()
    assert memory.out_of_memory(error.value) and not memory.unsupported(error.value)
    with pytest.raises(Failure, match="^out of memory at --batch 4: lower --batch$"):
        with memory.reporting_out_of_memory("at --batch 4", "lower --batch"):
            broken()


@pytest.mark.parametrize("broken", [mixed, to_numpy, float64, asserted])
def test_what_a_device_says_is_nothing_about_the_model(broken):
    with pytest.raises((RuntimeError, TypeError)) as error:
        broken()
    assert not memory.unsupported(error.value) and not memory.out_of_memory(error.value)
    with (
        pytest.raises(type(error.value)),
        memory.reporting_out_of_memory("here", "do this"),
    ):  # and stays as it is
        broken()


@pytest.mark.parametrize("broken", [shapes, masks, lacking])
def test_shapes_and_what_is_lacking_are_about_the_model(broken):
    with pytest.raises(RuntimeError) as error:
        broken()
    assert memory.unsupported(error.value)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 16])
def test_parts_get_smaller_until_they_fit(most):
    asked = []

    def squares(some):
        asked.append(len(some))
        if len(some) > most:
            on_cuda()
        return [i**2 for i in some]

    made = [i for part in memory.in_parts(range(11), 8, squares) for i in part]
    assert made == [i**2 for i in range(11)]
    assert sum(n > most for n in asked) <= 3  # what was too much is not tried again


def test_one_item_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        list(memory.in_parts([1, 2, 3], 2, lambda _: on_cuda()))
    asked = []
    with pytest.raises(RuntimeError, match="device meta"):
        list(memory.in_parts([1, 2, 3], 2, lambda some: (asked.append(some), mixed())))
    assert asked == [[1, 2]]


def test_fewer_ecgs_are_written_side_by_side_where_memory_does_not_suffice(monkeypatch):
    lm, write, draw = model(), ecg_generation._generate_batch, ecg_generation.Sampling(seed=3)
    wanted = list(ecg_generation.generate_ecgs(lm, TOKENIZER, HEAD, range(5), draw))

    def small(lm, tokenizer, heads, starts, numbers, draw):
        if len(numbers) > 2:
            too_much()
        return write(lm, tokenizer, heads, starts, numbers, draw)

    monkeypatch.setattr(ecg_generation, "_generate_batch", small)
    for ids, other in zip(
        ecg_generation.generate_ecgs(lm, TOKENIZER, HEAD, range(5), draw), wanted, strict=True
    ):
        assert (ids == other).all()
    monkeypatch.setattr(ecg_generation, "_generate_batch", lambda *_: too_much())
    for guidance, said in ((1.0, "more memory"), (2.0, "remove --guidance")):
        with pytest.raises(Failure, match=said):
            list(
                ecg_generation.generate_ecgs(
                    lm, TOKENIZER, HEAD, range(2), draw._replace(guidance=guidance), plain=PLAIN
                )
            )


@pytest.mark.parametrize(("count", "said"), [(3, "lower --batch or --max-new;"), (1, "lower --max-new;")])
def test_generate_names_what_to_lower(count, said):
    with pytest.raises(Failure) as failure, batch_answering._failure_line([np.zeros(7)] * count, "record a"):
        on_cuda()
    assert (
        f"out of memory at {count} questions of up to 7 tokens (record a, …): {said}" in failure.value.message
    )
