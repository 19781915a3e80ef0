"""What a UEGR training step costs, next to a plain one.

    KERAS_BACKEND=jax python examples/benchmarks/step_cost.py

MiniLM-L6 (22.7 million parameters), AdamW, batches of 32 sentences of 48
tokens. All variants take turns in one process, so that whatever else the
machine does falls on all of them; a ratio is the median of the ratios within a
round. Each variant's first step, which compiles, and its peak memory are
measured in a process of its own.

Prints a table, and writes every single measurement as JSON.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import keras
import keras_hub
import numpy as np
import rich
import rich.table

import keras_uegr

# The loaders of weights and sentences are the quickstart's.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import minilm
import movie_reviews

BATCH_SIZE = 32
SEQUENCE_LENGTH = 48
DENSITY = 0.8
LEARNING_RATE = 1e-5
WARM_UP = 2
# Number of sub-models, `K`; a variant without them is a plain step.
VARIANTS = {"plain": 0, "UEGR, K=1": 1, "UEGR, K=2": 2, "UEGR, K=4": 4}


def main():
    """Measure, print, write."""
    options = parse_arguments()
    if options.cold_start:
        print(json.dumps(measure_cold_start(options.cold_start)))
        return
    # First: a process inherits its parent's peak memory, small at this point.
    cold_starts = {name: cold_start_of(name) for name in VARIANTS}
    report = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "keras_hub": keras_hub.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "batch_size": BATCH_SIZE,
        "sequence_length": SEQUENCE_LENGTH,
        "repeats": options.repeats,
        "steps": measure_steps(options.repeats),
        "optimizers": measure_optimizers(options.repeats),
    }
    for name, variant in report["steps"].items():
        variant.update(cold_starts[name])
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"step_cost-{report['backend']}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    rich.print(step_table(report), optimizer_table(report))
    rich.print(f"All measurements: {path}")


def parse_arguments():
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=9,
        help="rounds that are measured (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default="benchmark-output",
        help="folder for the measurements (default: %(default)s)",
    )
    parser.add_argument("--cold-start", help=argparse.SUPPRESS)
    return parser.parse_args()


def batch_of_tokens():
    """Return one batch of real sentences as tokens, and its labels."""
    sentences, _, _ = movie_reviews.load(BATCH_SIZE, 0, 0)
    preprocessor = minilm.preprocessor(SEQUENCE_LENGTH)
    tokens = {
        name: keras.ops.convert_to_numpy(values)
        for name, values in preprocessor(sentences.texts).items()
    }
    return tokens, sentences.labels


def build(sub_models):
    """Return a compiled model: plain without sub-models, else UEGR."""
    model = minilm.classifier(num_classes=2, sequence_length=SEQUENCE_LENGTH)
    model.preprocessor = None
    optimizer = keras.optimizers.AdamW(LEARNING_RATE)
    if sub_models:
        model = keras_uegr.UEGRModel(
            model,
            sub_models=sub_models,
            # A single sub-model has nothing to agree with.
            consistency_weight=1.0 if sub_models > 1 else 0.0,
        )
        optimizer = keras_uegr.SaliencyMaskedOptimizer(
            optimizer, density=DENSITY
        )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def seconds_of(function):
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def step_of(model, tokens, labels):
    """Return a function that trains one step and waits until it is done.

    `train_on_batch` returns numbers, so the step is over on every backend.
    """
    return lambda: model.train_on_batch(tokens, labels)


def take_turns(functions, repeats):
    """Return the seconds of each function's calls, one call each in turn.

    Args:
        functions: dict of callables by name.
        repeats: integer. Rounds that count, after some that do not.
    """
    seconds = {name: [] for name in functions}
    for turn in range(WARM_UP + repeats):
        for name, function in functions.items():
            elapsed = seconds_of(function)
            if turn >= WARM_UP:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(seconds, reference):
    """Return the median over the rounds of the ratio within a round."""
    return float(np.median(np.divide(seconds, reference)))


def measure_steps(repeats):
    """Return for each variant its seconds, and their ratio to a plain step."""
    tokens, labels = batch_of_tokens()
    models = {name: build(count) for name, count in VARIANTS.items()}
    seconds = take_turns(
        {
            name: step_of(model, tokens, labels)
            for name, model in models.items()
        },
        repeats,
    )
    return {
        name: {
            "sub_models": count,
            "compiled_by_xla": bool(models[name].jit_compile),
            "seconds": seconds[name],
            "median_seconds": float(np.median(seconds[name])),
            "ratio": median_ratio(seconds[name], seconds["plain"]),
            "ratio_over_passes": median_ratio(seconds[name], seconds["plain"])
            / (1 + count),
        }
        for name, count in VARIANTS.items()
    }


def measure_optimizers(repeats):
    """Return the seconds of both optimizers' steps, and their ratio."""
    adamw = keras.optimizers.AdamW(LEARNING_RATE)
    masked = keras_uegr.SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(LEARNING_RATE), density=DENSITY
    )
    seconds = take_turns(
        {"AdamW": update_of(adamw), "masked AdamW": update_of(masked)},
        repeats,
    )
    ratio = median_ratio(seconds["masked AdamW"], seconds["AdamW"])
    return {
        "seconds": seconds,
        "median_seconds": {
            name: float(np.median(values)) for name, values in seconds.items()
        },
        "ratio": ratio,
    }


def update_of(optimizer):
    """Return a function that updates MiniLM's variables once, compiled."""
    variables = minilm.backbone().trainable_variables
    optimizer.build(variables)
    gradients = [
        keras.ops.convert_to_tensor(values)
        for values in make_gradients(variables)
    ]
    backends = {
        "tensorflow": update_on_tensorflow,
        "jax": update_on_jax,
        "torch": update_on_torch,
    }
    return backends[keras.backend.backend()](optimizer, variables, gradients)


def make_gradients(variables):
    """Yield random gradients.

    As in training, only the rows of tokens that are in the batch have one in
    an embedding table.
    """
    generator = np.random.default_rng(0)
    for variable in variables:
        values = generator.normal(0.0, 1e-3, variable.shape).astype("float32")
        if "token_embedding" in variable.path:
            rows = generator.permutation(len(values))
            values[rows[BATCH_SIZE * SEQUENCE_LENGTH // 2 :]] = 0.0
        yield values


def update_on_tensorflow(optimizer, variables, gradients):
    """Return the update as TensorFlow's trainer runs it: compiled by XLA."""
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def update():
        optimizer.apply(gradients, variables)
        return variables[-1].value[0]

    return lambda: float(update())


def update_on_jax(optimizer, variables, gradients):
    """Return the update as JAX's trainer runs it: jitted, buffers donated."""
    import jax

    @jax.jit(donate_argnums=0)
    def apply(state, gradients):
        weights, slots = state
        return optimizer.stateless_apply(slots, gradients, weights)

    state = tuple(
        [jax.numpy.copy(variable.value) for variable in group]
        for group in (variables, optimizer.variables)
    )

    def update():
        nonlocal state
        state = jax.block_until_ready(apply(state, gradients))

    return update


def update_on_torch(optimizer, variables, gradients):
    """Return the update as torch's trainer runs it: eager."""
    import torch

    @torch.no_grad()
    def update():
        optimizer.apply(gradients, variables)
        float(variables[-1].value[0])

    return update


def cold_start_of(name):
    """Run `measure_cold_start` in a new process."""
    output = subprocess.run(
        [sys.executable, __file__, "--cold-start", name],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def measure_cold_start(name):
    """Return a variant's seconds to its first step, and its peak memory."""
    tokens, labels = batch_of_tokens()
    step = step_of(build(VARIANTS[name]), tokens, labels)
    first = seconds_of(step)
    for _ in range(WARM_UP):
        step()
    # macOS counts bytes, Linux kibibytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"first_step_seconds": first, "peak_memory_mib": peak}


def step_table(report):
    """Return the table of the variants' steps."""
    table = rich.table.Table(
        "",
        "step, s",
        "over plain",
        "over (1 + K) plain",
        "first step, s",
        "peak memory, MiB",
        title=f"Training step of MiniLM-L6, {report['backend']}",
        caption=f"batch {BATCH_SIZE}, {SEQUENCE_LENGTH} tokens, "
        f"median of {report['repeats']}; {report['machine']}",
    )
    for name, variant in report["steps"].items():
        table.add_row(
            name,
            f"{variant['median_seconds']:.3f}",
            f"{variant['ratio']:.2f}",
            f"{variant['ratio_over_passes']:.2f}",
            f"{variant['first_step_seconds']:.1f}",
            f"{variant['peak_memory_mib']:.0f}",
        )
    return table


def optimizer_table(report):
    """Return the table of the optimizers' steps."""
    optimizers = report["optimizers"]
    table = rich.table.Table(
        "", "step, s", "over AdamW", title="Optimizer step"
    )
    for name, seconds in optimizers["median_seconds"].items():
        ratio = optimizers["ratio"] if name != "AdamW" else 1.0
        table.add_row(name, f"{seconds:.3f}", f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    main()
