"""What vision blocks are asked for equals the full attention matrix, built from the same block in eager attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.engine.test_encoder_layers import Toy
from tests.families import FAMILIES, IMAGE
from vtprune.integrations import integrate
from vtprune.methods.base import EncoderSignal, Keep, Method, Place, Stage

NAMES = ("attention", "received", "logits", "keys")


@dataclasses.dataclass(frozen=True)
class Look(Method):
    """Keeps everything and remembers what it saw."""

    name = "look"
    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    seen = []  # noqa: RUF012

    def stages(self, model):
        asked = frozenset(EncoderSignal(name, block) for name in NAMES for block in model.attention_blocks)
        return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=asked)]

    def decide(self, pictures):
        self.seen.append(pictures.signals)
        return Keep(torch.ones(pictures.encoded.shape[:2], dtype=torch.bool))


def full_attention(module, hidden, arguments, integration, block):
    """Logits, probabilities and keys of a block (batches of (sequences, heads, n, n)), from its own projections."""
    outputs = []
    handles = [p.register_forward_hook(lambda m, a, out: outputs.append(out)) for p in block.projections]
    module(hidden, **arguments)
    for handle in handles:
        handle.remove()
    found = []
    for q, k in integration.encoder_queries_keys(block, outputs[: len(block.projections)], arguments):
        logits = q.double() @ k.double().transpose(-1, -2) * integration.encoder_scale(block)
        found.append((logits, logits.softmax(-1), k))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_signals_of_every_block(name):
    family = FAMILIES[name]
    model = family.model()
    integration = integrate(model)
    inputs = family.inputs(family.row(2, IMAGE, 3))
    calls = {}
    blocks = [*integration.encoder_blocks, *integration.unused_encoder_blocks]
    handles = [
        b.attention.register_forward_pre_hook(
            lambda m, args, kwargs, i=i: calls.__setitem__(i, (args[0] if args else kwargs["hidden_states"], kwargs)),
            with_kwargs=True,
        )
        for i, b in enumerate(blocks)
    ]
    Look.seen.clear()
    with vtprune.applied(model, Look()), torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    (seen,) = Look.seen
    with vtprune.applied(model, Look()), torch.no_grad():
        model(**inputs)
        run = vtprune.api._engines[model].latest.runs[0]
    newline = torch.cat([unit.newlines for unit in run.units])
    for block in integration.attention_blocks:
        hidden, kwargs = calls[block]
        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        with torch.no_grad():
            full = full_attention(blocks[block].attention, hidden, kwargs, integration, blocks[block])
        for signal in NAMES:
            if signal == "keys":
                values = [k.transpose(1, 2).flatten(2) for _, _, k in full]
            elif signal == "logits":
                values = [(x[:, :, 0] if integration.has_cls else x.mean(2)).mean(1)[..., None] for x, _, _ in full]
            elif signal == "attention" and integration.has_cls:
                values = [p[:, :, 0].mean(1)[..., None] for _, p, _ in full]
            else:
                values = [p.mean((1, 2))[..., None] for _, p, _ in full]
            expected = torch.cat(integration.scores_on_slots(run.call, [x.float() for x in values]))
            got = seen[EncoderSignal(signal, block)][0]
            expected = expected[~newline] if signal == "keys" else expected[~newline].squeeze(1)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "llava-siglip", "llava_next"])
def test_padding_of_pictures_that_keep_fewer_tokens_has_no_say(name):
    family = FAMILIES[name]
    model = family.model()
    rows, alone = {}, {}  # by the number of tokens that a picture keeps
    with vtprune.applied(model, [Toy(), Look()]):
        for seed in range(8):
            Look.seen.clear()
            row = family.row(2, IMAGE, 3, seed=seed)
            model(**family.inputs(row))
            (signals,) = Look.seen
            tokens = next(iter(signals.values())).shape[1]
            rows[tokens], alone[tokens] = row, signals
        assert len(rows) > 1, "pictures keep equally many: nothing is tested"
        Look.seen.clear()
        model(**family.inputs(*rows.values()))
    assert len(Look.seen) == len(rows)
    for batch in Look.seen:
        for signal, values in alone[next(iter(batch.values())).shape[1]].items():
            torch.testing.assert_close(batch[signal], values, atol=1e-5, rtol=1e-4)


def test_unknown_block_is_refused():
    family = FAMILIES["llava-clip"]

    @dataclasses.dataclass(frozen=True)
    class Beyond(Look):
        def stages(self, model):
            return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=frozenset({EncoderSignal("attention", 99)}))]

    with pytest.raises(ValueError, match=r"asks for the attention of vision block 99, but of .* it is known for"):
        vtprune.apply(family.model(), Beyond())
