"""One cell of the grid, and the file that its result is in."""

import dataclasses
import json
import pathlib

import keras


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all cells of a comparison have in common.

    Args:
        train_size: integer. Training examples.
        test_size: integer. Examples that models are measured on.
        epochs: integer.
        split: string. `"validation"` or `"test"`: what is measured on.
        learning_rate: float. The first one.
        decay: string. `"none"`, or `"linear"` down to 0 at the last step.
        batch_size: integer.
        sequence_length: integer. Tokens of an example.
        radii: tuple of floats. Of the white-box attack.
        attack_steps: integer. Of the white-box attack.
        white_box_size: integer. Examples that it attacks.
        attacks: tuple of strings. Names of text attacks.
        attack_size: integer. Examples that those attack.
        matmul_precision: string. `"float32"` or `"bfloat16"`.
        adversarial_glue: string. The path of AdvGLUE's `dev.json`, or empty.
    """

    train_size: int = 1600
    test_size: int = 1000
    epochs: int = 3
    split: str = "validation"
    learning_rate: float = 1e-4
    decay: str = "none"
    batch_size: int = 32
    sequence_length: int = 48
    radii: tuple[float, ...] = (0.02, 0.05)
    attack_steps: int = 5
    white_box_size: int = 300
    attacks: tuple[str, ...] = ()
    attack_size: int = 200
    matmul_precision: str = "float32"
    adversarial_glue: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run.

    Args:
        method: string.
        dataset: string.
        seed: integer.
    """

    method: str
    dataset: str
    seed: int


class CellStore:
    """A folder with one JSON file for each finished cell.

    A file appears at once and complete, so a run that is killed leaves only
    finished cells behind, and several runs may share a folder.

    Args:
        folder: `pathlib.Path`.
        settings: `Settings`. Cells made with others, or on another backend,
            are not mixed in.
    """

    def __init__(self, folder, settings):
        self.folder = pathlib.Path(folder) / "cells"
        self.settings = json.loads(json.dumps(dataclasses.asdict(settings)))
        if not settings.adversarial_glue:
            # The first cells don't tell.
            del self.settings["adversarial_glue"]

    def path(self, cell):
        """Return the file of a cell."""
        name = name_in_files(cell.method)
        return self.folder / f"{cell.dataset}-{name}-{cell.seed}.json"

    def read(self, cell, method):
        """Return the result of a cell, or `None` if it isn't finished.

        Args:
            cell: `Cell`.
            method: dict. What the method is made of.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        stored = _stored_in(path)
        expected = {
            "settings": self.settings,
            "method": method,
            "backend": keras.backend.backend(),
        }
        for name, value in expected.items():
            # The first cells didn't tell their backend.
            if stored.get(name, value) != value:
                raise ValueError(
                    "`output` must be a folder whose cells were made with the "
                    f"same {name}: choose another one. Received: {value}, and "
                    f"{path} has {stored[name]}"
                )
        return stored["result"]

    def write(self, cell, method, result):
        """Keep the result of a finished cell."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "cell": dataclasses.asdict(cell),
            "method": method,
            "settings": self.settings,
            "backend": keras.backend.backend(),
            "result": result,
        }
        path = self.path(cell)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        unfinished.replace(path)


def name_in_files(method):
    """Return the name of a method with the signs that a file's may have."""
    return "".join(x if x.isalnum() or x in "=.,-" else "_" for x in method)


def _stored_in(path):
    """Return what the file of a cell holds."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        stored = None
    # A full disk or a power cut may leave it empty.
    if not isinstance(stored, dict) or "result" not in stored:
        raise ValueError(
            "The file of a cell must hold its result as JSON: delete it, and "
            f"the cell is trained again. Received: {path}"
        )
    return stored
