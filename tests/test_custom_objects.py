import functools
import importlib

import keras
import pytest

from keras_uegr.custom_objects import (
    find_custom_objects,
    import_custom_objects,
    is_serializable,
)

OWN_FUNCTIONS = """
import keras


@keras.saving.register_keras_serializable("own", name="twice")
def double(x):
    return 2.0 * x
"""


def save(path, activation):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, activation=activation)]
    )
    model.save(path)
    return path


def test_registered_function_is_found_and_imported(tmp_path, monkeypatch):
    (tmp_path / "own_functions.py").write_text(OWN_FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    double = importlib.import_module("own_functions").double
    found = find_custom_objects(save(tmp_path / "model.keras", double))
    assert found == [("own_functions", "double", "own>twice")]
    assert import_custom_objects(found) == {"own>twice": double}


def test_what_keras_defines_is_not_looked_for(tmp_path):
    assert find_custom_objects(save(tmp_path / "model.keras", "gelu")) == []


def test_function_of_the_main_program_is_an_error(tmp_path):
    def double(x):
        return 2.0 * x

    double.__module__ = "__main__"
    with keras.saving.custom_object_scope({"double": double}):
        archive = save(tmp_path / "model.keras", double)
        match = "cannot import `double` from `__main__`. Move it to a module"
        with pytest.raises(ValueError, match=match):
            find_custom_objects(archive)


def test_module_that_cannot_be_imported_is_an_error():
    match = "`double` of the model is in the module `nowhere`, which another"
    with pytest.raises(ImportError, match=match):
        import_custom_objects([("nowhere", "double", "own>twice")])


def test_layers_and_registered_functions_are_serializable():
    @keras.saving.register_keras_serializable("test_custom_objects")
    def registered(x):
        return x

    def other(x):
        return x

    assert is_serializable(registered)
    assert is_serializable(keras.layers.Dense(2))
    assert not is_serializable(other)
    assert not is_serializable(lambda x: x)
    assert not is_serializable(functools.partial(registered))
