"""AdvGLUE: development sets of GLUE that were rewritten to mislead models.

Wang et al., "Adversarial GLUE" (arXiv:2111.02840). `tensorflow-datasets` has no
builder of it. Its publishers offer the development sets as one file,
`dev.json`, at https://adversarialglue.github.io; download it, and read it with

    sentences = adversarial_glue.load("dev.json", "sst2")

These examples are for evaluation: a model that was trained on the task of the
same name in `from_tensorflow_datasets.py` takes them as they are. The
benchmarks ask every model that they train on such a task for them, with

    --datasets sst2 --adversarial-glue dev.json
"""

import json
import pathlib

import numpy as np

import movie_reviews
from text_datasets import from_tensorflow_datasets

# What the file calls the examples of each task.
PARTS = {
    "sst2": ("sst2",),
    "qqp": ("qqp",),
    "mnli": ("mnli", "mnli-mm"),
    "qnli": ("qnli",),
    "rte": ("rte",),
}


def load(path, name):
    """Return the adversarial `Sentences` of a task.

    Args:
        path: string or `pathlib.Path` of the publishers' `dev.json`.
        name: string. One of `PARTS`. Of MNLI both parts are read, the matched
            and the mismatched one.
    """
    if name not in PARTS:
        raise ValueError(
            f"`name` must be one of {list(PARTS)}. Received: {name=}"
        )
    content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    missing = [part for part in PARTS[name] if part not in content]
    if missing:
        raise ValueError(
            f"`path` must be the `dev.json` of AdvGLUE, which has {missing}. "
            f"Received: {path}, which has {list(content)}"
        )
    rows = [row for part in PARTS[name] for row in content[part]]
    columns = from_tensorflow_datasets.SOURCES[name].columns
    texts = [from_tensorflow_datasets.text_of(row, columns) for row in rows]
    labels = np.array([row["label"] for row in rows], dtype="int32")
    return movie_reviews.Sentences(texts, labels)
