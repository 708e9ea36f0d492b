"""The word embedding's gradient, kept in one buffer: the same values as torch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from outshine.embedding import Embedding, merge_rows, train_rows, use_row_gradients

IDS = torch.tensor([[3, 1, 3, 0], [7, 3, 1, 9]])


class Lookups(nn.Module):
    """A word embedding beside another one."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4, padding_idx=padding_idx)
        self.positions = nn.Embedding(10, 4)


def pair(padding_idx: int | None = None, *, direct: bool = True) -> tuple[nn.Embedding, Embedding]:
    """torch's embedding and ours with equal weights, in training mode."""
    theirs = Lookups(padding_idx)
    ours = copy.deepcopy(theirs)
    use_row_gradients(ours, ours.words, direct=direct)
    assert isinstance(ours.words, Embedding)
    return theirs.words, ours.words


def backward(module: nn.Embedding, ids: Tensor, seed: int) -> None:
    out = module(ids)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_the_gradient_is_that_of_torch_over_several_backward_passes(
    padding_idx: int | None,
) -> None:
    theirs, ours = pair(padding_idx)
    for module in (theirs, ours):
        backward(module, IDS, 0)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    for module in (theirs, ours):
        backward(module, IDS[:1] + 1, 1)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-6, rtol=0)


def test_a_new_step_starts_from_zeros() -> None:
    theirs, ours = pair()
    backward(ours, IDS, 0)
    ours.weight.grad = None
    for module in (theirs, ours):
        backward(module, torch.tensor([5, 5, 2]), 1)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


def test_steps_with_adamw_give_bitwise_the_weights_of_torch() -> None:
    weights = []
    for module in pair(padding_idx=0):
        optimizer = torch.optim.AdamW([module.weight], lr=0.1, fused=True)
        for step in range(5):
            backward(module, (IDS + step) % 10, step)
            torch.nn.utils.clip_grad_norm_([module.weight], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        weights.append(module.weight.detach())
    assert torch.equal(*weights)


def test_without_training_it_is_torchs_own_lookup() -> None:
    _, ours = pair()
    ours.eval()
    backward(ours, IDS, 0)
    assert ours._buffer is None
    assert ours.weight.grad is not None
    ours.train()
    with torch.no_grad():
        assert not ours(IDS).requires_grad


def test_the_weight_keeps_its_name_and_place() -> None:
    module = Lookups()
    weight = module.words.weight
    before = module.state_dict().keys()
    use_row_gradients(module, module.words)
    assert module.state_dict().keys() == before
    assert module.words.weight is weight
    assert type(module.positions) is nn.Embedding


# --- rows of words that occur -----------------------------------------------------------------

USED = torch.tensor([0, 1, 3, 5, 7, 9])


def adamw_steps(module: nn.Embedding, parameters: list[nn.Parameter]) -> Iterator[int]:
    """Yields after each of some updates, with other learning rates and a decay that is felt."""
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.3, fused=True)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        backward(module, USED[(torch.arange(7) * (step + 1)) % len(USED)], step)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("padding_idx", [None, 0, 2])
def test_training_the_rows_of_some_words_gives_the_whole_table_of_adamw(
    padding_idx: int | None, direct: bool
) -> None:
    theirs, ours = pair(padding_idx, direct=direct)
    weight = ours.weight
    ours.train_rows(USED)
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == {"rows", "decay"}
    assert ours.rows.shape == (6, 4)
    both = zip(
        adamw_steps(theirs, [theirs.weight]),
        adamw_steps(ours, [ours.rows, ours.decay]),
        strict=True,
    )
    for _ in both:
        with torch.no_grad():
            ours.eval()
            torch.testing.assert_close(ours(torch.arange(10)), theirs.weight, atol=1e-6, rtol=0)
            ours.train()
    ours.merge_rows()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=0)
    assert ours.weight is weight
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == ["weight"]
    assert ours.state_dict().keys() == {"weight"}
    backward(ours, torch.tensor([4]), 0)  # any word may come again
    assert ours.weight.grad is not None


def test_a_table_that_other_modules_share_is_left_alone() -> None:
    module = Lookups()
    module.positions.weight = module.words.weight
    use_row_gradients(module, module.words)
    assert type(module.words) is nn.Embedding


def test_modules_without_such_an_embedding_are_left_alone() -> None:
    module = Lookups()
    train_rows(module, lambda _: pytest.fail("nobody needs the words"))
    merge_rows(module)
    assert dict(module.named_parameters()).keys() == {"words.weight", "positions.weight"}
