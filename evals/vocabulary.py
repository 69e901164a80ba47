"""The tokenizer and processor of tiny-llava: byte-level BPE learnt from the wording of the questions, CLIP pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from vtprune.evals.questions import TEMPLATES, plural
from vtprune.evals.scenes import CHARACTERS, COLOURS, QUADRANTS, SHAPES
from vtprune.evals.tiny_llava import IMAGE_ID, IMAGE_SIZE, MAX_LENGTH, PATCH_SIZE, VOCAB_SIZE

SPECIALS: tuple[str, ...] = ("<pad>", "<s>", "</s>", "<image>")
"""The special tokens of tiny-llava; their places are their ids."""

PROMPT = "USER: <image>\n{question} ASSISTANT:"
"""What the model is given (behind <s>); the answer follows as " {answer}</s>"."""


def chat_template(picture: str, video: str | None = None) -> str:
    """The chat template; pictures and videos of a message come before its text, as in training.

    Args:
        picture: What stands for a picture; a line break follows it.
        video: What stands for a video; None for a model that takes none.
    """
    kinds = {"image": picture} if video is None else {"image": picture, "video": video}
    loop = "{%- for part in message['content'] if part['type'] == 'KIND' -%}{{- 'TEXT\\n' -}}{%- endfor -%}"
    seen = "".join(loop.replace("KIND", kind).replace("TEXT", text) for kind, text in kinds.items())
    return _TEMPLATE.replace("SEEN", seen)


_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set user = message['role'] == 'user' -%}"
    "{%- if user -%}{{- 'USER: ' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- ' ASSISTANT: ' -}}"
    "{%- elif message['role'] != 'system' -%}"
    "{{- raise_exception('role must be user, assistant or system, got ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}SEEN"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '</s>' -}}"
    "{%- elif not user -%}{{- ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
)
# <s> is left to the tokenizer, which writes it once.


def build_tokenizer(
    picture: str = SPECIALS[IMAGE_ID], more: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer: 576 tokens, any text can be encoded, <s> is put in front, padding goes to the left.

    It is learnt afresh from a fixed text on the first call (about a second), always with the same result.

    Args:
        picture: What the token that stands for a picture is called; it always has the same id.
        more: Other special tokens by the names of their attributes; their ids follow those of all others.
    """
    named = {"image_token": picture} if more is None else dict(more)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_learnt(picture)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=MAX_LENGTH,
        extra_special_tokens=named,
    )


def build_processor() -> LlavaProcessor:
    """The processor: pictures of any size are resized (not cropped) to 224 px; each becomes 256 <image> tokens."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pictures = CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, default_to_square=True, resample=Image.Resampling.BICUBIC
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        # The tower's [CLS] token; the strategy "default" takes it away again.
        num_additional_image_tokens=1,
        chat_template=chat_template(SPECIALS[IMAGE_ID]),
    )


@functools.cache
def _learnt(picture: str) -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[picture if place == IMAGE_ID else name for place, name in enumerate(SPECIALS)],
        # All 256 bytes, so that any text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIALS.index("<s>"))]
    )
    return bpe.to_str()


def _corpus() -> list[str]:
    """The text that the tokenizer is learnt from; a change to it changes the ids, on which the shipped weights rely."""
    lines = []
    for templates in TEMPLATES.values():
        for template in templates:
            for colour in COLOURS:
                for shape in SHAPES:
                    text = template.format(colour=colour, shape=shape, things=plural(shape))
                    lines += [f"USER: \n{text} ASSISTANT: {colour}", f"{text} ASSISTANT: {shape}"]
                    text = template.format(colour=colour, shape=shape, things=f"{colour} objects")
                    lines += [f"{text} ASSISTANT: yes", f"{text} ASSISTANT: no"]
                    lines.append(template.format(colour=colour, shape=shape, things="objects"))
    for answer in (*QUADRANTS, *CHARACTERS, *"0123456789"):
        lines += [f" ASSISTANT: {answer}"] * 50
    return lines
