"""The user's own classes and functions in a `.keras` file.

A file names them, and whoever loads it must have imported them.
"""

import importlib
import json
import types
import zipfile

import keras


def is_serializable(value):
    """Whether a file can hold `value`, a layer or another callable.

    A function has to be registered: Keras writes its name alone, and of a
    lambda the code, which it refuses to load.
    """
    if isinstance(value, types.FunctionType):
        name = keras.saving.get_registered_name(value)
        return keras.saving.get_registered_object(name) is value
    return hasattr(value, "get_config")


def find_custom_objects(archive):
    """What another process has to import before it loads a file.

    Args:
        archive: Path of a `.keras` file that this process wrote.

    Returns:
        A sorted list of `(module, name, registered name)`.

    Raises:
        ValueError: If the main program defines one of them.
    """
    with zipfile.ZipFile(archive) as file:
        pending = [json.loads(file.read("config.json"))]
    found = set()
    while pending:
        config = pending.pop()
        if isinstance(config, list):
            pending.extend(config)
        if not isinstance(config, dict):
            continue
        pending.extend(config[key] for key in config if key != "compile_config")
        if not config.keys() >= {"module", "class_name", "registered_name"}:
            continue
        module, name, registered_name = _identify(config)
        # Keras writes `None` for some of what the main program defines.
        if module in (None, "__main__"):
            raise ValueError(
                "The model is exported by another Python process, which cannot "
                f"import `{name}` from `__main__`. Move it to a module of its "
                "own and import it from there, or export on the TensorFlow "
                "backend."
            )
        if module.partition(".")[0] not in ("builtins", "keras", "keras_hub"):
            found.add((module, name, registered_name))
    return sorted(found)


def _identify(config):
    """`(module, name, registered name)` of what `config` describes."""
    name = config["class_name"]
    if name != "function":
        return config["module"], name, config["registered_name"] or name
    # Keras writes the module `builtins` for each function, but it remembers
    # the registered ones.
    registered_name = config["config"]
    function = keras.saving.get_registered_object(registered_name)
    if function is None:
        return config["module"], registered_name, registered_name
    return function.__module__, function.__name__, registered_name


def import_custom_objects(custom_objects):
    """Imports them.

    Args:
        custom_objects: What `find_custom_objects` returned.

    Returns:
        A dictionary for the `custom_objects` of `keras.saving.load_model`.

    Raises:
        ImportError: If a module cannot be imported.
    """
    imported = {}
    for module, name, registered_name in custom_objects:
        try:
            value = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise ImportError(
                f"`{name}` of the model is in the module `{module}`, which "
                f"another Python process cannot import: {error}"
            ) from error
        if value is not None:
            imported[registered_name] = value
    return imported
