"""A task of two rounds for lmms-eval: a question about a clip, then one about a picture. Copied beside its YAML."""

from __future__ import annotations


def first_shown(doc):
    return [doc["shown"][0]]


def asked(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["asked"][0]
    if round_idx == len(doc["asked"]):
        return None, None, True, previous_output, None
    return [doc["shown"][round_idx]], doc["asked"][round_idx], False, previous_output, None


def judged(doc, results):
    (answers,) = results
    return {"answers": len(answers)}
