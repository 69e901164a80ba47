"""ViP-LLaVA: LLaVA-1.5 with the features of several encoder layers side by side."""

from __future__ import annotations

from vtprune.integrations.llava import LlavaIntegration


class VipLlavaIntegration(LlavaIntegration):
    """`VipLlavaForConditionalGeneration`. Attention is that of the last layer whose features are used."""

    family = "vipllava"
    model_types = ("vipllava",)

    def _check_feature_layer(self) -> None:
        """Several layers are what this family is about."""

    @property
    def _used(self) -> int:
        chosen = self.model.config.vision_feature_layers
        chosen = [chosen] if isinstance(chosen, int) else chosen
        return max(i if i >= 0 else len(self.all_encoder_layers) + 1 + i for i in chosen)

    @property
    def leading(self) -> int:
        return 1

    def refusal(self, method: str, place: str, needs_grid: bool) -> str | None:
        if place == "encoder layer":
            return (
                "the features of several encoder layers are put side by side, which a merge between them would make "
                "of different lengths; use fourier, divprune or fastervlm"
            )
        return super().refusal(method, place, needs_grid)
