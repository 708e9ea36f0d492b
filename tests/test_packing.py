"""Rows packed into one line, dropout from a fast generator: the same results as padding and torch.

B rows, D features of a pooled vector, T tokens, H heads, d features of a head.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from families import FAMILIES, PACKED, PADDED
from outshine import dropout, packing
from outshine.batches import Rows
from outshine.depths import find_layers
from outshine.forward import LINE_MULTIPLE, Forward, compile_encoder, make_forward
from outshine.model import build_model
from outshine.packing import attention
from outshine.segments import TOKENS, Segments, rounded
from outshine.tasks import Task
from outshine.training import train

Checkpoint = Callable[[str], Path]

TEAM = Task(name="team", text=("a",), label="y", labels=("billing", "tech", "other"))
CPU = torch.device("cpu")
LENGTHS = (23, 3, 17, 9, 9, 1, 40)


def make(
    folder: Path,
    *,
    plain: bool,
    replayed: bool = False,
    max_tokens: int = 0,
    pooling: str = "auto",
) -> Forward:
    """A forward pass with random biases, so that none is zero by chance."""
    model = build_model(str(folder), [TEAM], pooling=pooling, dropout=0.0, attention_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"plain": plain, "replayed": replayed, "max_tokens": max_tokens}
    return make_forward(model, tokenizer, CPU, "fp32", **options)


def some_rows(lengths: tuple[int, ...] = LENGTHS) -> Rows:
    """Random tokens; the second half of each row is of the second segment."""
    rng = np.random.default_rng(0)
    types = [(np.arange(n) >= n / 2).astype(np.int64) for n in lengths]
    tokens = rng.integers(5, 150, sum(lengths))
    return Rows(tokens, np.concatenate(types), np.array(lengths, np.int64))


def one_row(rows: Rows, i: int) -> Rows:
    start = int(rows.lengths[:i].sum())
    place = slice(start, start + int(rows.lengths[i]))
    return Rows(rows.tokens[place], rows.types[place], rows.lengths[i : i + 1])


def with_gradients(forward: Forward, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, C) logits and the gradients of a loss that weighs each of them otherwise."""
    model = forward.model.train()
    logits = model.head("team")(forward.pooled(rows))
    factors = torch.arange(1.0, logits.numel() + 1).view_as(logits).cos()
    (logits * factors).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def is_key_bias(name: str) -> bool:
    """A key's bias moves all scores of a query alike: its gradient is rounding noise about 0."""
    return name.endswith((".key.bias", ".k_lin.bias"))


# --- packed rows ----------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "max_tokens"), [("auto", 8192), ("auto", 30), ("mean", 30)])
@pytest.mark.parametrize("family", PACKED)
def test_packed_equals_padded(
    family: str, pooling: str, max_tokens: int, checkpoint: Checkpoint
) -> None:
    packed = make(checkpoint(family), plain=False, max_tokens=max_tokens, pooling=pooling)
    padded = make(checkpoint(family), plain=True, pooling=pooling)
    assert packed.packing is not None
    assert padded.packing is None
    found, gradients = with_gradients(packed, some_rows())
    wanted, other = with_gradients(padded, some_rows())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert gradients.keys() == other.keys()
    for name, gradient in gradients.items():
        if not is_key_bias(name):
            assert (gradient - other[name]).norm() <= 1e-5 * other[name].norm(), name


@pytest.mark.parametrize("family", PACKED)
def test_the_last_feed_forward_network_sees_first_tokens_alone_behind_a_post_norm(
    family: str, checkpoint: Checkpoint
) -> None:
    forward = make(checkpoint(family), plain=False)
    _, layers = find_layers(forward.model.encoder, forward.model.network.config)
    sizes = []
    wide = [m for m in layers[-1].modules() if isinstance(m, nn.Linear) and m.in_features == 64]
    assert len(wide) == 1
    wide[0].register_forward_hook(lambda module, args, output: sizes.append(args[0][..., 0]))
    with torch.no_grad():
        forward.pooled(some_rows())
    num_tokens = sum(LENGTHS) - sum(LENGTHS) % -LINE_MULTIPLE["fp32"]
    assert [size.numel() for size in sizes] == [
        num_tokens if family == "modernbert" else len(LENGTHS)
    ]


@pytest.mark.parametrize("family", PADDED)
def test_families_that_cannot_pack_are_padded(family: str, checkpoint: Checkpoint) -> None:
    assert make(checkpoint(family), plain=False).packing is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_rows_one_by_one(family: str, checkpoint: Checkpoint) -> None:
    forward = make(checkpoint(family), plain=False)
    forward.model.eval()
    with torch.no_grad():
        together = forward.pooled(some_rows())
        alone = [forward.pooled(one_row(some_rows(), i)) for i in range(len(LENGTHS))]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_bare_pooling_of_a_batch_equals_its_rows_one_by_one(
    pooling: str, checkpoint: Checkpoint
) -> None:
    model = build_model(str(checkpoint("bert")), [TEAM], pooling=pooling)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"))
    forward = make_forward(model, tokenizer, CPU, "fp32")
    assert forward.packing is not None
    with torch.no_grad():
        together = forward.pooled(some_rows())
        alone = [forward.pooled(one_row(some_rows(), i)) for i in range(len(LENGTHS))]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=1e-5)


def test_segment_ids_reach_the_encoders_that_take_them(checkpoint: Checkpoint) -> None:
    rows = some_rows()
    flat = Rows(rows.tokens, np.zeros_like(rows.types), rows.lengths)
    for family, takes in (("bert", True), ("distilbert", False), ("roberta", False)):
        forward = make(checkpoint(family), plain=False)
        assert forward.takes_types is takes
        with torch.no_grad():
            same = torch.equal(forward.pooled(rows), forward.pooled(flat))
        assert same is not takes


@pytest.mark.parametrize("family", PACKED)
def test_the_last_attention_asks_for_first_tokens_alone(
    family: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = packing._probabilities

    def counting(q_g: Tensor, *rest: Any) -> Tensor:
        asked.append(q_g.shape[2])
        return real(q_g, *rest)

    forward = make(checkpoint(family), plain=False)
    monkeypatch.setattr(packing, "_probabilities", counting)
    with torch.no_grad():
        forward.pooled(some_rows())
    layers = forward.model.network.config.num_hidden_layers
    last = asked[-(len(asked) // layers) :]
    assert len(asked) % layers == 0
    assert set(last) == {1}
    assert 1 not in asked[: -len(last)]


def test_attention_of_long_rows_has_the_gradients_of_short_ones(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, wanted = with_gradients(make(checkpoint("bert"), plain=False), some_rows())
    monkeypatch.setattr(packing, "LONG", 10)
    _, gradients = with_gradients(make(checkpoint("bert"), plain=False), some_rows())
    for name, gradient in gradients.items():
        assert torch.equal(gradient, wanted[name]), name


def by_segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Tensor,
    bounds_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """What torch's kernel for rows of any length computes, which no CPU has; (T, H, d)."""
    assert (bounds_q.dtype, bounds_k.dtype) == (torch.int32, torch.int32)
    assert longest_q >= bounds_q.diff().max()
    assert longest_k >= bounds_k.diff().max()
    out = []
    for i in range(len(bounds_q) - 1):
        own, seen = (slice(*b[i : i + 2].tolist()) for b in (bounds_q, bounds_k))
        scores = torch.einsum("qhd,khd->hqk", q[own], k[seen]) * scale
        if window_size[0] >= 0:
            # the last query stands beside the last key, also where there are fewer queries
            place = torch.arange(scores.shape[-1])
            far = (place[-scores.shape[1] :, None] - place[None, :]).abs() > window_size[0]
            scores = scores.masked_fill(far, -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[seen]))
    return torch.cat(out)


@pytest.mark.parametrize("family", PACKED)
def test_a_kernel_for_rows_of_any_length_gives_the_same(
    family: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, gradients = with_gradients(make(checkpoint(family), plain=False), some_rows())
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_segment)
    monkeypatch.setattr(packing, "_has_varlen", lambda *_: True)
    monkeypatch.setattr(packing, "_probabilities", None)  # the rectangles are not used
    wanted, other = with_gradients(make(checkpoint(family), plain=False), some_rows())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert gradients.keys() == other.keys()
    for name, gradient in gradients.items():
        if not is_key_bias(name):
            assert (gradient - other[name]).norm() <= 1e-5 * other[name].norm(), name


# --- lines for CUDA graphs ------------------------------------------------------------------


@torch.library.custom_op("outshine_tests::by_segment", mutates_args=())
def by_segment_op(
    q: Tensor, k: Tensor, v: Tensor, of_q: Tensor, of_k: Tensor, longest: list[int], scale: float
) -> Tensor:
    """`by_segment` as torch.compile sees torch's kernel: one operation, not looked into."""
    return by_segment(q, k, v, of_q, of_k, *longest, scale=scale)


@torch.library.custom_op("outshine_tests::by_segment_backward", mutates_args=())
def by_segment_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    of_q: Tensor,
    of_k: Tensor,
    longest: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Written out, for autograd does not look into an operation of one's own."""
    grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(len(of_q) - 1):
        own, seen = (slice(*b[i : i + 2].tolist()) for b in (of_q, of_k))
        probs = (torch.einsum("qhd,khd->hqk", q[own], k[seen]) * scale).softmax(-1)
        grad_p = torch.einsum("qhd,khd->hqk", grad[own], v[seen])
        grad_s = probs * (grad_p - (grad_p * probs).sum(-1, keepdim=True)) * scale
        grads[0][own] = torch.einsum("hqk,khd->qhd", grad_s, k[seen])
        grads[1][seen] = torch.einsum("hqk,qhd->khd", grad_s, q[own])
        grads[2][seen] = torch.einsum("hqk,qhd->khd", probs, grad[own])
    return grads


by_segment_op.register_fake(lambda q, *_: torch.empty_like(q))
by_segment_backward.register_fake(
    lambda _, q, k, v, *_more: tuple(map(torch.empty_like, (q, k, v)))
)


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def call_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    given = by_segment_backward(grad, *ctx.saved_tensors, ctx.longest, ctx.scale)
    return *given, None, None, None, None


by_segment_op.register_autograd(call_backward, setup_context=keep_inputs)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with torch's kernel for rows of any length, and with a compiler that is quick."""

    def varlen_attn(
        q: Tensor, k: Tensor, v: Tensor, *given: Any, scale: float, **window: Any
    ) -> Tensor:
        assert not window
        *bounds, longest_q, longest_k = given
        return by_segment_op(q, k, v, *bounds, [longest_q, longest_k], scale)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr("outshine.forward.has_varlen", lambda *_: True)
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, mode, **more: real(*args, backend="aot_eager", **more)
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("bert", "auto"), ("distilbert", "mean"), ("roberta", "auto"), ("electra", "mean")],
)
def test_lines_of_few_shapes_are_compiled_once_and_give_the_same(
    family: str,
    pooling: str,
    checkpoint: Checkpoint,
    kernel: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    padded = make(checkpoint(family), plain=True, pooling=pooling)
    forward = make(checkpoint(family), plain=True, replayed=True, pooling=pooling)
    assert forward.rounds
    monkeypatch.setattr(packing, "_SegmentAttention", None)  # the rectangles are not used
    compile_encoder(forward)
    for lengths in (LENGTHS, LENGTHS[:3], (5, *LENGTHS), (90, 60, 60)):
        for other in (forward, padded):
            other.model.zero_grad(set_to_none=False)
        found, gradients = with_gradients(forward, some_rows(lengths))
        wanted, others = with_gradients(padded, some_rows(lengths))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        for name, gradient in others.items():
            if not is_key_bias(name):
                assert (gradient - gradients[name]).norm() <= 1e-5 * gradient.norm(), name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(("pooling", "keep"), [("auto", "all"), ("cls", "predictions")])
def test_training_on_lines_of_few_shapes_is_that_on_padded_rows(
    pooling: str,
    keep: str,
    encoder: Path,
    duplicate: Path,
    tickets: Path,
    tmp_path: Path,
    kernel: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also the head that gets no row in some steps, and the pooler that is not used."""
    settings: dict[str, Any] = {
        "encoder": str(encoder),
        "device": "cpu",
        "precision": "fp32",
        "dropout": 0.0,
        "max_steps": 6,
        "batch_size": 12,
        "max_tokens": 60,
        "log_every": 1,
        "lr": 1e-3,
    }
    settings |= {"pooling": pooling, "keep": keep, "weight_decay": 0.1, "sampling": "explicit"}
    settings |= {"sampling_weights": {"duplicate": 1.0, "tickets": 0.02}}
    tasks = [Task.load(duplicate), Task.load(tickets)]
    passes: list[int] = []
    monkeypatch.setattr(
        torch.compiler, "cudagraph_mark_step_begin", lambda: passes.append(len(curves))
    )
    curves: list[list[float]] = []
    metrics = []
    for rounds in (True, False):
        torch._dynamo.reset()
        monkeypatch.setattr("outshine.forward.has_varlen", lambda *_, rounds=rounds: rounds)
        out = tmp_path / str(rounds)
        run = train(tasks, compile=True, out=out, **settings)
        curves.append([json.loads(line)["loss"] for line in run.log_path.open()])
        metrics.append(run.metrics())
    assert set(passes) == {0}
    assert len(curves[0]) == 6
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    for task in tasks:
        found, wanted = (numbers[task.name]["dev"] for numbers in metrics)
        assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 32, 33, 128, 1000])
def test_rounded_lines_have_few_shapes_and_little_to_fill_up(rows: int) -> None:
    rng = np.random.default_rng(0)
    shapes, tokens, filled = set(), 0, 0
    for _ in range(300):
        lengths = rng.integers(8, 81, rows)
        line = rounded(lengths)
        assert line[:rows].tolist() == lengths.tolist()
        assert 1 <= line[rows:].min() <= line[rows:].max() <= TOKENS
        segments = Segments(line, rows, CPU, lambda _: [], is_rounded=True)
        assert line.max() <= segments.longest
        shapes.add((len(line), int(line.sum()), segments.longest))
        tokens, filled = tokens + int(lengths.sum()), filled + int(line.sum())
    assert len(shapes) <= 8
    assert filled <= 1.15 * tokens or rows == 1


def test_no_filler_of_a_rounded_line_is_longer_than_what_is_said() -> None:
    for rows in (1, 30, 60, 64, 500):
        for tokens in (*range(rows, 3000, 7), 1023, 2047, 4095, 8191, 65535):
            lengths = np.full(rows, tokens // rows)
            lengths[0] += tokens % rows
            filler = rounded(lengths)[rows:]
            assert 1 <= filler.min() <= filler.max() <= TOKENS


def test_an_encoder_without_heads_has_no_kernel_for_them() -> None:
    assert not packing.has_varlen(SimpleNamespace(config=SimpleNamespace()), CPU, "bf16")


@pytest.mark.parametrize("family", PACKED)
def test_a_graph_needs_the_kernel_for_all_attention_of_an_encoder(
    family: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(packing, "_has_varlen", lambda *given: not asked.append(given))
    network = build_model(str(checkpoint(family)), [TEAM], attention_dropout=0.0).network
    config = network.config
    assert packing.has_varlen(network, CPU, "bf16")
    size = config.hidden_size // config.num_attention_heads
    windows = {None, config.sliding_window} if family == "modernbert" else {None}
    assert {given[1:] for given in asked} == {(torch.bfloat16, size, w) for w in windows}
    assert not packing.has_varlen(network, CPU, "fp32")
    dropping = build_model(str(checkpoint(family)), [TEAM], attention_dropout=0.1).network
    assert not packing.has_varlen(dropping, CPU, "bf16")
    monkeypatch.setattr(packing, "_has_varlen", lambda *given: given[-1] is not None)
    assert not packing.has_varlen(network, CPU, "bf16")


# --- local attention ------------------------------------------------------------------------


def test_local_attention_stops_at_its_window() -> None:
    # with equal scores and values 0, 1, 2, ... each token becomes the mean of those it sees
    value = torch.arange(7.0).view(1, 1, 7, 1)
    zeros = torch.zeros_like(value)
    segments = Segments(np.array([5, 2]), 2, CPU, lambda _: [np.array([0, 1])])
    out, _ = attention(
        nn.Identity(), zeros, zeros, value, None, segments=segments, sliding_window=2
    )
    assert out.flatten().tolist() == pytest.approx([0.5, 1.0, 2.0, 3.0, 3.5, 5.5, 5.5])


# --- dropout --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_share_it_should_and_scales_by_its_inverse(p: float) -> None:
    dropout.seed(3)
    count = 400_000
    factors = dropout.keep_factors(torch.Size([count]), p, torch.ones(1))
    kept = factors[factors != 0]
    assert len(kept) / count == pytest.approx(1 - p, abs=5 * (p * (1 - p) / count) ** 0.5)
    assert kept.unique().tolist() == pytest.approx([1 / (1 - p)], rel=2e-4)


def test_dropout_masks_are_a_function_of_the_seed_alone() -> None:
    def draw(seed: int) -> list[Tensor]:
        dropout.seed(seed)
        return [dropout.keep_factors(torch.Size([3, 5]), 0.3, torch.ones(1)) for _ in range(2)]

    first, second = draw(1)
    torch.rand(9)
    again, _ = draw(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(2)[0])


def test_dropout_passes_the_gradient_where_it_passes_the_value() -> None:
    dropout.seed(0)
    x = torch.ones(1000, requires_grad=True)
    layer = dropout.Dropout(0.25)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert torch.equal(layer.eval()(x), x)


def test_only_plain_dropout_layers_are_replaced() -> None:
    module = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.AlphaDropout(0.2), nn.Dropout(0.1)))
    dropout.use_fast_dropout(module)
    kinds = [(type(m).__module__, m.p) for m in module.modules() if hasattr(m, "p")]
    assert kinds == [
        ("outshine.dropout", 0.2),
        ("torch.nn.modules.dropout", 0.2),
        ("outshine.dropout", 0.1),
    ]


def test_replaced_dropout_layers_stay_in_the_mode_they_were_in() -> None:
    module = nn.Sequential(nn.Dropout(0.2)).eval()
    dropout.use_fast_dropout(module)
    assert torch.equal(module(torch.ones(50)), torch.ones(50))


def packed_attention(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """(T, H, d) attention of rows of 4, 1 and 3 tokens."""
    lengths = np.array([4, 1, 3])
    segments = Segments(lengths, 3, CPU, lambda _: [np.array([0, 2]), np.array([1])])
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return attention(nn.Identity(), q, k, v, None, dropout=p, segments=segments)[0][0]


def test_attention_with_dropout_has_the_right_expectation() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(8, 2, 3, generator=generator) for _ in range(3))
    wanted = packed_attention(q, k, v, 0.0)
    dropout.seed(1)
    draws = torch.stack([packed_attention(q, k, v, 0.3) for _ in range(1000)])
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - wanted).abs() < 5 * error + 1e-6).all()
    assert (draws.std(dim=0) > 0.01).all()


def test_attention_with_dropout_has_the_gradient_of_its_own_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(8, 2, 3, generator=generator).requires_grad_() for _ in range(3)]

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout.seed(7)
        return (packed_attention(q, k, v, 0.3) * torch.arange(3.0)).square().sum()

    gradients = torch.autograd.grad(loss(*inputs), inputs)
    for i, gradient in enumerate(gradients):
        step = torch.randn(8, 2, 3, generator=generator)
        sides = []
        with torch.no_grad():
            for sign in (1e-2, -1e-2):
                moved = [x + sign * step if j == i else x for j, x in enumerate(inputs)]
                sides.append(loss(*moved))
        slope = float(sides[0] - sides[1]) / 2e-2
        assert float((gradient * step).sum()) == pytest.approx(slope, rel=2e-2, abs=2e-2)
