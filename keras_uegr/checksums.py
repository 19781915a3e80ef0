"""A checksum in the weight files, which Keras writes without one.

HDF5 notices a file that was cut short, but not a byte that changed among the
weights. The checksum is an attribute of the file, which Keras doesn't look at.
"""

import hashlib
import json
import pathlib

import h5py

ATTRIBUTE = "keras_uegr_checksum"


def write(path):
    """Adds a checksum to the files that `save_weights` wrote.

    Args:
        path: String or path, what `save_weights` was given.
    """
    for file_path in _files(path):
        with h5py.File(file_path, "r+") as file:
            # It has one already where Keras was told not to overwrite it.
            if ATTRIBUTE not in file.attrs:
                file.attrs[ATTRIBUTE] = _checksum(file)


def check(path):
    """Checks the files that `load_weights` is about to read.

    Args:
        path: String or path, what `load_weights` was given. A file without a
            checksum is taken as it is.

    Raises:
        OSError: If a file doesn't hold what was written. Keras'
            `BackupAndRestore` then takes the backup before, if there is one.
    """
    for file_path in _files(path):
        with h5py.File(file_path, "r") as file:
            expected = file.attrs.get(ATTRIBUTE)
            if expected is not None and expected != _checksum(file):
                raise OSError(
                    "The weights could not be loaded, for they have changed "
                    "since they were saved: the file has another checksum. Use "
                    f"an earlier file, or a copy. Received: {file_path}"
                )


def _files(path):
    """The local HDF5 files of `path`, which may be the index of several."""
    path = pathlib.Path(path)
    if not path.exists():
        # Where Keras writes several files, it gives their index this name.
        path = path.with_suffix(".json")
    # Keras reads remote paths too; a `.keras` archive has its own checksums.
    if not path.exists() or path.suffix not in (".h5", ".json"):
        return []
    if path.suffix == ".h5":
        return [path]
    index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    names = {
        name
        for value in index.values()
        for name in (value if isinstance(value, list) else [value])
    }
    return [path.with_name(name) for name in sorted(names)]


def _checksum(file):
    """SHA-256 of the names, types, shapes and values of all arrays."""
    digest = hashlib.sha256()

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            digest.update(f"{name} {item.dtype} {item.shape}".encode())
            digest.update(item[()].tobytes())

    file.visititems(add)
    return digest.hexdigest()
