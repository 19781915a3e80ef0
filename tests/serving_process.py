"""Serves SavedModels with TensorFlow alone, in a process of its own.

Reads `folder/requests.json`, which has a list of batches for each SavedModel
in the folder, and writes `folder/responses.json`.
"""

import json
import pathlib
import sys

# Importing Keras, or the package that exported, would fail from here on.
sys.modules["keras"] = sys.modules["keras_uegr"] = None

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def serve(model, batch):
    """The outputs for one batch, by both ways to call the model."""
    signature = model.signatures["serving_default"]
    _, specs = signature.structured_input_signature
    if not isinstance(batch, dict):
        batch = dict.fromkeys(specs, batch)
    batch = {
        name: tf.constant(batch[name], specs[name].dtype) for name in specs
    }
    (outputs,) = signature(**batch).values()
    served = model.serve(
        batch if len(batch) > 1 else next(iter(batch.values()))
    )
    np.testing.assert_array_equal(served, outputs)
    return outputs.numpy().tolist()


def describe(model, folder):
    """What is in the graph and in the checkpoint."""
    graph = model.signatures["serving_default"].graph.as_graph_def()
    nodes = [*graph.node]
    for function in graph.library.function:
        nodes.extend(function.node_def)
    checkpoint = tf.train.load_checkpoint(str(folder / "variables/variables"))
    shapes = checkpoint.get_variable_to_shape_map()
    return {
        "operations": sorted({node.op for node in nodes}),
        "nodes": sorted({node.name for node in nodes}),
        "parameters": sum(
            int(np.prod(shape))
            for key, shape in shapes.items()
            if key.endswith("VARIABLE_VALUE")
        ),
    }


def main(folder):
    requests = json.loads((folder / "requests.json").read_text())
    responses = {}
    for name, batches in requests.items():
        if name == "texts":
            # Its tokenizer's operations; it brings Keras with it.
            del sys.modules["keras"]
            import tensorflow_text  # noqa: F401
        model = tf.saved_model.load(str(folder / name))
        responses[name] = describe(model, folder / name)
        responses[name]["outputs"] = [serve(model, batch) for batch in batches]
    (folder / "responses.json").write_text(json.dumps(responses))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
