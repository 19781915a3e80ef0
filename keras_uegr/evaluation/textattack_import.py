"""The one place that imports TextAttack.

TextAttack 0.3.11 imports `flair` and `bert_score` at the top of its modules,
but uses them only in parts that download models. flair pins releases that
recent Pythons lack, so that both are often absent. While TextAttack is being
imported, empty stand-ins take their place; afterwards nobody else sees them.

TextAttack imports PyTorch, also where Keras uses another backend.
"""

import contextlib
import importlib
import importlib.util
import sys
import types

import keras

from keras_uegr.evaluation import text_resources

_OFTEN_ABSENT = {
    "flair": ("flair", "flair.data", "flair.models"),
    "bert_score": ("bert_score",),
}
_CLASSES = {
    "flair.data": ("Sentence", "Tokenizer"),
    "flair.models": ("SequenceTagger",),
}


def import_textattack(submodule=None):
    """The module `textattack`, or one of its submodules.

    Args:
        submodule: Optional string such as `"transformations"`.

    Returns:
        The module.

    Raises:
        ImportError: If TextAttack, or something that it imports, is missing.
    """
    if importlib.util.find_spec("textattack") is None:
        raise ImportError(
            "Attacks on texts need TextAttack. Install it with "
            "`pip install 'keras-uegr[textattack]'` and then "
            "`pip install --no-deps textattack==0.3.11 OpenHowNet`."
        )
    _keep_triton_out()
    name = f"textattack.{submodule}" if submodule else "textattack"
    try:
        # It asks for stop words at once, for its augmenters.
        with _stand_ins(), text_resources.own_stop_words():
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"TextAttack could not be imported: {error}. Install what it "
            "imports with `pip install 'keras-uegr[textattack]'` and then "
            "`pip install --no-deps textattack==0.3.11 OpenHowNet`."
        ) from error


def _keep_triton_out():
    """Makes PyTorch go without Triton, where PyTorch doesn't do the training.

    Triton and TensorFlow crash the process that loads both, and KerasHub
    imports TensorFlow on every backend.
    """
    if keras.backend.backend() != "torch":
        sys.modules.setdefault("triton", None)


@contextlib.contextmanager
def _stand_ins():
    added = []
    for package, names in _OFTEN_ABSENT.items():
        if package in sys.modules or importlib.util.find_spec(package):
            continue
        for name in names:
            module = types.ModuleType(name)
            for class_name in _CLASSES.get(name, ()):
                setattr(module, class_name, _absent(package, class_name))
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _absent(package, class_name):
    def fail(*args, **kwargs):
        del args, kwargs
        raise ImportError(
            f"This part of TextAttack needs `{package}`, which is not "
            f"installed. Install it with `pip install {package}`."
        )

    # TextAttack calls some of them by their constructors, others by `load`.
    return type(class_name, (), {"__init__": fail, "load": fail})
