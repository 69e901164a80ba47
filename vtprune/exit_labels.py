"""What the routers of `dyvte` are trained with: whether a prompt may lose its pictures behind a layer.

The steps, with the model frozen, for a batch of questions with answers (padded on the right) and one layer, drawn anew:

    full  = logits of the whole model
    blind = logits of the model whose visual tokens leave behind the layer (`exit:layer=...`, text at its positions)
    labels = exit_labels(full, blind, answers)      # which rows may leave
    loss = cross_entropy(route(features, w1[layer], w2[layer]), labels)

`features` are those of `mean_and_last` behind the layer, of the prompt without its answer. Only the layer's router gets
gradients. No trainer comes with this: the authors train for one epoch of about 6,600 rows, with AdamW (learning rate
6e-5, cosine, 3 percent warm-up) and batches of 128; weights begin Xavier-uniform.

Paper: "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings", arXiv
2411.19628.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def answer_losses(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of every row's answer, (rows,), float32.

    As in the authors' code it is the sum over all labels that are not -100, but divided by the number of those above 0.

    Args:
        logits: (rows, slots, vocabulary).
        answers: (rows, slots), token ids, -100 on what is no answer.
    """
    wanted = answers[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), wanted, ignore_index=-100, reduction="none")
    return losses.sum(1) / (wanted > 0).sum(1)


def exit_labels(
    full: Tensor, blind: Tensor, answers: Tensor, agreement: float = 0.99, tolerance: float = 1.03
) -> Tensor:
    """Rows (rows,) that may leave, 1, or may not, 0.

    Their answer is as good without: of its tokens more than `agreement` are the same, and its loss is below `tolerance`
    times that of the whole model.

    Args:
        full: (rows, slots, vocabulary), logits of the whole model.
        blind: The same of the model that loses its visual tokens.
        answers: See `answer_losses`.
        agreement: Share of tokens, in [0, 1].
        tolerance: Factor, above 0.
    """
    asked = answers[:, 1:] > 0
    same = (full[:, :-1].argmax(-1) == blind[:, :-1].argmax(-1)) & asked
    agree = same.sum(1) / asked.sum(1) > agreement
    return (agree & (answer_losses(blind, answers) < tolerance * answer_losses(full, answers))).long()
