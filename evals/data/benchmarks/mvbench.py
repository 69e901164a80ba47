"""MVBench: twenty tasks of 200 questions.

Taken from the repository's branch `video`, where the videos lie as files, already cut to the seconds that a question is
about; those of the main branch would have to be cut.

Layout: the repository's file list; lmms-eval 0.7.3, tasks `mvbench_*`, which name each task's folder of videos.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, VideoFiles

_FOLDERS = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}

MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    about="twenty tasks about what happens over time, multiple choice",
    paper="2311.17005",
    repository="OpenGVLab/MVBench",
    revision="video",
    questions=4000,
    metric="letter",
    parts=tuple(
        Part(f"json/{task}.json", task, "train", adds={"task": task, "folder": folder})
        for task, folder in _FOLDERS.items()
    ),
    columns=("video", "question", "candidates", "answer"),
    question="question",
    answers="answer",
    choices="candidates",
    kind="task",
    by="task",
    group=lambda row: f"{row['folder']}/{row['video']}",
    media=VideoFiles(lambda row: f"{row['folder']}/{row['video']}"),
)
