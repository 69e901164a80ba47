"""`attn_implementation="vtprune"` computes what sdpa computes, and tells how important keys were."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

import vtprune
from tests.families import FAMILIES, IMAGE, Family
from tests.kernels.conftest import mend_interpreter
from vtprune import attention
from vtprune.attention import Request
from vtprune.integrations import integrate
from vtprune.kernels import _measured, attention_forward
from vtprune.kernels._dispatch import VARIABLE

mend_interpreter()
NUMBERS = dict(atol=1e-5, rtol=1e-4)
# Triton's products are added up in another order than torch's, and the random layers enlarge the difference.
TRITON = dict(atol=5e-4, rtol=1e-3)
INTERPRETED = "llava-siglip"  # in Triton's interpreter one family has to do


@pytest.fixture(params=["sdpa", "triton"])
def forward(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton")
        if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
            pytest.skip("Triton kernels need a GPU or TRITON_INTERPRET=1")
        monkeypatch.setenv(VARIABLE, "triton")
    assert attention_forward("cpu").forward == request.param
    return request.param


@pytest.fixture(params=FAMILIES.values(), ids=lambda f: f.name)
def family(request: pytest.FixtureRequest, forward: str) -> Family:
    if forward == "triton" and request.param.name != INTERPRETED and not torch.cuda.is_available():
        pytest.skip("slow in the interpreter")
    return request.param


def inputs(family: Family) -> dict[str, Tensor]:
    return family.inputs(family.row(5, IMAGE, 7), family.row(2, IMAGE, 4, seed=1))


@torch.no_grad()
def test_logits_and_answers_are_those_of_sdpa(family: Family, forward: str) -> None:
    numbers = TRITON if forward == "triton" else NUMBERS
    batch = inputs(family)
    plain, ours = family.model("sdpa"), family.model("vtprune")
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours(**batch).logits[real], plain(**batch).logits[real], **numbers)
    expected, actual = (
        model.generate(**batch, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True)
        for model in (plain, ours)
    )
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(actual.logits, expected.logits, **numbers)


@pytest.mark.parametrize("method", ["fastv:layer=2,keep=0.3", "fastervlm:keep=0.3"])
@torch.no_grad()
def test_methods_on_top(family: Family, method: str, forward: str) -> None:
    if forward == "triton" and not torch.cuda.is_available():
        pytest.skip("slow in the interpreter")
    batch = inputs(family)
    found = []
    for implementation in ("sdpa", "vtprune"):
        model = family.model(implementation)
        with vtprune.applied(model, method):
            done = model.generate(
                **batch, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        found.append(done)
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(found[1].logits, found[0].logits, **(TRITON if forward == "triton" else NUMBERS))


@torch.no_grad()
def test_collecting_tells_what_eager_attention_shows(family: Family, forward: str) -> None:
    if forward == "triton" and not torch.cuda.is_available():
        pytest.skip("slow in the interpreter")
    batch = inputs(family)
    seen: dict[str, list[Tensor]] = {}
    eager = family.model("eager")
    for name, module in modules(eager).items():
        module.register_forward_hook(lambda m, a, output, name=name: seen.setdefault(name, []).append(output))
    eager(**batch)
    ours = family.model("vtprune")
    last = torch.tensor([[-1, batch["input_ids"].shape[1] - 1]])
    chosen = modules(ours)
    with attention.collecting({m: Request(last if n == "decoder" else None) for n, m in chosen.items()}) as found:
        ours(**batch)
    received = found[chosen["decoder"]]
    assert len(received) == 1
    numbers = TRITON if forward == "triton" else NUMBERS
    torch.testing.assert_close(received[0].scores, seen["decoder"][0][1].mean(1)[:, -1], **numbers)
    towers = found[chosen["encoder"]]
    if family.typed:  # packed pictures: one call for each, and a module that keeps its weights to itself
        assert [r.scores.shape[1] for r in towers] == batch["image_grid_thw"].prod(-1).tolist()
        for one in towers:
            torch.testing.assert_close(one.scores.sum(1), torch.ones(1), **numbers)
    else:
        for one, (_, full) in zip(towers, seen["encoder"], strict=True):
            torch.testing.assert_close(one.scores, full.mean((1, 2)), **numbers)
    ours(**batch)
    with pytest.raises(ValueError, match="nothing was asked of this"):
        attention.take(chosen["decoder"])


def modules(model: Any) -> dict[str, nn.Module]:
    """A decoder's and an encoder's attention."""
    integration = integrate(model)
    decoder: Any = integration.decoder_layers[2]
    block = integration.encoder_blocks[integration.scored_block]
    return {"decoder": decoder.self_attn, "encoder": block.attention}


@pytest.fixture
def calls(forward: str) -> Callable[..., Any]:
    """Our attention function on small random tensors: (batch 2, heads 4, kv_heads 2, dim 8)."""
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    g = torch.Generator().manual_seed(0)

    def call(rows: int, keys: int, mask: Tensor | None, asked: Request | None = None, **more: Any) -> Any:
        q, k, v = (torch.randn(2, h, n, 8, generator=g) for h, n in ((4, rows), (2, keys), (2, keys)))
        if asked is not None:
            attention.request(module, asked)
        out, _ = attention.attention(module, q, k, v, mask, **more)
        return q, k, v, out, attention.take(module)[0] if asked is not None else None

    return call


def dense(rows: int, keys: int, valid: Tensor | None = None, causal: bool = True) -> Tensor:
    seen = torch.ones(2, 1, rows, keys, dtype=torch.bool)
    if causal:
        seen &= torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    return seen if valid is None else seen & valid[:, None, None]


@pytest.mark.parametrize("rows", ["all", "numbers", "mask"])
@pytest.mark.parametrize("kind", ["none", "encoder", "decode", "padding", "dense", "added", "static"])
def test_every_mask(kind: str, rows: str, calls: Any, forward: str) -> None:
    length, keys = (1, 9) if kind == "decode" else (5, 9)
    valid = torch.arange(keys) >= torch.tensor([[0], [3]])
    given, seen, more = None, dense(length, keys), {}
    if kind == "none":
        keys = 5
        seen = dense(5, 5)
    elif kind == "encoder":
        seen, more = dense(length, keys, causal=False), dict(is_causal=False)
    elif kind == "padding":
        given, seen = valid, dense(length, keys, valid)
    elif kind == "dense":
        given = seen = dense(length, keys, valid)
    elif kind == "added":
        seen = dense(length, keys, valid)
        given = torch.zeros(2, 1, length, keys).masked_fill(~seen, torch.finfo(torch.float32).min)
    elif kind == "static":
        seen = nn.functional.pad(dense(5, 5), (0, 4))
    chosen = dict(all=None, numbers=torch.tensor([[length - 1, -1]]), mask=torch.arange(length)[None] >= length - 1)
    q, k, v, out, received = calls(length, keys, given, Request(chosen[rows]), **more)
    keys_all = k.repeat_interleave(2, 1)
    logits = (q @ keys_all.transpose(-1, -2) * 8**-0.5).masked_fill(~seen, -torch.inf)
    full = logits.softmax(-1).nan_to_num(0.0)
    torch.testing.assert_close(out, (full @ v.repeat_interleave(2, 1)).transpose(1, 2), **NUMBERS)
    expected = full.mean((1, 2)) if rows == "all" else full[:, :, -1].mean(1)
    torch.testing.assert_close(received.scores, expected, **NUMBERS)
    if forward == "triton" and kind not in ("dense", "added"):
        torch.testing.assert_close(received.lse, logits.logsumexp(-1), **NUMBERS)


def test_heads_apart(calls: Any) -> None:
    *_, received = calls(5, 5, None, Request(reduce_heads=None))
    assert received.scores.shape == (2, 4, 5)
    torch.testing.assert_close(received.scores.sum(-1), torch.ones(2, 4))


def test_training_takes_sdpa(forward: str) -> None:
    family = FAMILIES["llava-siglip"]
    batch = inputs(family)
    gradients = []
    for implementation in ("sdpa", "vtprune"):
        model = family.model(implementation).train()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "cache"])
def test_refuses_what_would_change_the_result(name: str, calls: Any) -> None:
    with pytest.raises(ValueError, match=f"attn_implementation='vtprune' does not support {name}"):
        calls(3, 3, None, **{name: 1.0})


def test_position_bias_is_computed_but_not_told(calls: Any) -> None:
    bias = torch.zeros(1, 1, 3, 3)
    assert calls(3, 3, None, position_bias=bias)[3].shape == (2, 3, 4, 8)
    with pytest.raises(ValueError, match="where a position_bias is added"):
        calls(3, 3, None, Request(), position_bias=bias)


def test_take_says_who_did_not_answer() -> None:
    family = FAMILIES["llava-clip"]
    model = family.model("sdpa")
    module = modules(model)["decoder"]
    with pytest.raises(RuntimeError, match="made no attention call that could answer"):  # noqa: SIM117
        with attention.collecting({module: Request()}):
            model(**inputs(family))
    with pytest.raises(ValueError, match="nothing was asked"):
        attention.take(module)


def test_masks(forward: str) -> None:
    config = SimpleNamespace(_attn_implementation="vtprune", is_causal=True)
    hidden = torch.zeros(2, 5, 8)
    valid = torch.arange(5) >= torch.tensor([[0], [3]])
    common = dict(config=config, inputs_embeds=hidden, past_key_values=None)
    padded = create_causal_mask(**common, attention_mask=valid)
    assert create_causal_mask(**common, attention_mask=None) is None
    assert torch.equal(padded, valid if forward == "triton" else dense(5, 5, valid))
    both = create_bidirectional_mask(config=config, inputs_embeds=hidden, attention_mask=valid)
    assert torch.equal(both, dense(5, 5, valid, causal=False))
    packed = create_causal_mask(
        **common, attention_mask=None, position_ids=torch.tensor([[0, 1, 0, 1, 2]]).expand(2, -1)
    )
    assert packed.shape == (2, 1, 5, 5)
    assert not packed[0, 0, 2, 1]
    special = create_causal_mask(**common, attention_mask=None, and_mask_function=lambda b, h, q, k: k != 1)
    assert special.shape == (2, 1, 5, 5)


def test_the_choice_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert attention_forward("cpu") == _measured.Choice("sdpa", "not on a CUDA GPU")
    table = {"A": {"attention_forward": "triton"}, "B": {"attention_forward": "sdpa"}, "C": {"attention_forward": "x"}}
    monkeypatch.setattr(_measured, "_table", lambda: table)
    assert _measured.measured("A") == _measured.Choice("triton", "measured to be faster on A")
    assert _measured.measured("B").forward == "sdpa"
    assert "nobody has measured the kernels on D; run evals/gpu_bench.py" in _measured.measured("D").why
    with pytest.raises(ValueError, match="must be 'sdpa' or 'triton', got 'x'"):
        _measured.measured("C")
    monkeypatch.setenv(VARIABLE, "torch")
    assert attention_forward("cpu") == _measured.Choice("sdpa", "VTPRUNE_KERNELS=torch")


def test_the_table_can_be_read() -> None:
    for name in _measured._table():
        assert _measured.measured(name).why
