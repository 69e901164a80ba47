"""The samples by the names of their benchmarks."""

from __future__ import annotations

from tests.evals.data.benchmarks import pictures, videos

PUBLISHED = {
    "gqa": pictures.GQA,
    "vqav2": pictures.VQAV2,
    "textvqa": pictures.TEXTVQA,
    "pope": pictures.POPE,
    "mme": pictures.MME,
    "mmbench": pictures.MMBENCH,
    "scienceqa": pictures.SCIENCEQA,
    "chartqa": pictures.CHARTQA,
    "docvqa": pictures.DOCVQA,
    "videomme": videos.VIDEOMME,
    "mvbench": videos.MVBENCH,
    "mlvu": videos.MLVU,
    "nextqa": videos.NEXTQA,
    "egoschema": videos.EGOSCHEMA,
}
