"""Hooks inside vision blocks: they see queries, keys and values, and merge or drop tokens of the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.attention import NAME, Request, request, take
from vtprune.engine.calls import call_arguments
from vtprune.engine.chain import Chain
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.encoder import EncoderRun
from vtprune.engine.patches import Seen
from vtprune.integrations.base import EncoderBlock, Integration
from vtprune.methods.base import EncoderSignal


class BlockHooks:
    """The hooks of all vision blocks.

    Tokens are merged where the residual stream enters the MLP's norm. The block's own addition of the MLP's output is
    fed a zero, and the block's output replaced by the shorter sum: no forward is copied.

    Args:
        integration: The model's family.
        chain: The methods.
        run: The encoder run that is under way on this thread; None if there is none.
    """

    def __init__(self, integration: Integration, chain: Chain, run: Callable[[], EncoderRun | None]) -> None:
        self.integration = integration
        self.chain = chain
        self.run = run

    def attach(self, index: int, block: EncoderBlock, before: Callable[..., None], after: Callable[..., None]) -> None:
        """Put the hooks of a block on its modules.

        Args:
            index: Of the block.
            block: The block.
            before: Registers a hook before a module's forward.
            after: Registers one behind it; with prepend=True as the first.
        """
        stages = [s for s in self.chain.encoder_layer_stages if index in s.layers]
        if stages or any(signal.block == index for signal in self.chain.encoder_signals):
            before(block.attention, self._see_attention)
            for part, projection in enumerate(block.projections):
                after(projection, self._see_projection(index, part, len(block.projections)))
        mass = [s for s in self.chain.encoder_signals if s.block == index and s.name in ("attention", "received")]
        if len(mass) == 1 and not self.chain.biases_keys:
            before(block.attention, self._ask(mass[0], block))
            after(block.attention, self._hear(mass[0]))
        if self.chain.biases_keys and index < len(self.integration.encoder_blocks):
            before(block.attention, self._bias_keys(block))
        if block.values is not None and any("values" in s.signals for s in stages):
            after(block.values, self._see_values)
        inside = [s for s in stages if not s.stage.after_block]
        if inside:
            before(block.before_mlp, self._merge(index, block, inside))
            after(block.mlp, self._hold_mlp_output(block))
        # First of all hooks, so that captured hidden states are the merged ones.
        if behind := [s for s in stages if s.stage.after_block]:
            after(block.layer, self._merge_output(index, block, behind), prepend=True)
        if inside:
            after(block.layer, self._leave_block, prepend=True)

    def _see_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (run := self.run()) is not None:
            run.attention_inputs = call_arguments(module, args, kwargs)

    def _ask(self, signal: EncoderSignal, block: EncoderBlock) -> Callable[..., None]:
        """Have the attention call say what its keys receive, if it can; else queries and keys are looked at."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run = self.run()
            if run is None or self.integration.encoder_attention_implementation(block) != NAME:
                return
            from_cls = self.integration.has_cls and signal.name == "attention"
            request(module, Request(torch.zeros(1, 1, dtype=torch.long) if from_cls else None))
            run.asked = signal

        return hook

    def _hear(self, signal: EncoderSignal) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            run = self.run()
            if run is not None and run.asked == signal:
                run.asked = None
                values = [received.scores.unsqueeze(-1) for received in take(module)]
                run.seen[signal] = Seen(values, run.tokens.owner)

        return hook

    def _see_projection(self, index: int, part: int, parts: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if (run := self.run()) is not None:
                run.see_projection(index, part, parts, output)

        return hook

    def _see_values(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if (run := self.run()) is not None:
            run.values = output.detach()

    def _bias_keys(self, block: EncoderBlock) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self.run()
            if run is None:
                return None
            arguments = call_arguments(module, args, kwargs)
            bias = run.tokens.beside(arguments["hidden_states"]).key_bias(self.chain.weighs_keys)
            if bias is None:
                return None
            # It may have changed since the methods were applied.
            self.chain.check_key_bias(self.integration.encoder_attention_implementation(block))
            bias = bias.to(arguments["hidden_states"].dtype)[:, None, None, :].expand(-1, 1, bias.shape[1], -1)
            return (), {**arguments, "attention_mask": bias}

        return hook

    def _merge_output(self, index: int, block: EncoderBlock, stages: list[ChainStage]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            run = self.run()
            if run is None:
                return None
            merged = run.merge(index, block, stages, output[0] if isinstance(output, tuple) else output)
            if merged is None:
                return None
            return (merged, *output[1:]) if isinstance(output, tuple) else merged

        return hook

    def _merge(self, index: int, block: EncoderBlock, stages: list[ChainStage]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self.run()
            if run is None:
                return None
            run.merged = run.merge(index, block, stages, args[0])
            return None if run.merged is None else ((run.merged, *args[1:]), kwargs)

        return hook

    def _hold_mlp_output(self, block: EncoderBlock) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            run = self.run()
            if run is None or run.merged is None:
                return None
            gain = None if block.gain is None else block.layer.get_parameter(block.gain)
            run.mlp_output = output if gain is None else gain * output
            return output.new_zeros(1)  # the block adds it to its residual, which has the old length

        return hook

    def _leave_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run = self.run()
        if run is None or run.merged is None or run.mlp_output is None:
            return None
        hidden = run.merged + run.mlp_output
        run.merged = run.mlp_output = None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
