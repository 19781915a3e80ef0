"""Fine-tunes one pretrained language model twice: plain `fit`, and UEGR.

    python examples/quickstart.py            # some minutes on two cores
    python examples/quickstart.py --quick    # that all of it runs

MiniLM-L6 learns to tell favourable from unfavourable sentences of movie
reviews. Both runs start from the same weights, bit for bit, and see the same
batches in the same order. Then both models answer the same test sentences: as
they were written, with letters swapped, and under a projected-gradient attack
that moves the embeddings to where the model errs most.

One table and one figure compare the two, the cost of a training step included.
Last, the UEGR model is exported as a SavedModel, and a process that knows only
TensorFlow serves it.

The backend is the one that Keras uses: set `KERAS_BACKEND` to `tensorflow`,
`jax` or `torch`. One seed gives one result, and one seed is no evidence: the
README's table is of one, RESULTS.md has more.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import rich

import comparison
import keras_uegr
import minilm
import movie_reviews
from keras_uegr import exporting

BATCH_SIZE = 32
LEARNING_RATE = 2e-4
# How far the attack moves a sentence's embedding, as a share of the embedding's
# own norm.
RADIUS = 0.02
# How far the probabilities of the SavedModel may be from the model's.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long the quickstart takes.

    Args:
        train_size: integer. Training sentences.
        test_size: integer. Test sentences.
        passes: integer. How often each training sentence is seen.
        attack_steps: integer. Gradient steps of the attack.
        radii: tuple of floats. Of the attack.
        remark: string. What to know about such a run.
    """

    train_size: int = 1280
    test_size: int = 320
    passes: int = 2
    attack_steps: int = 3
    radii: tuple[float, ...] = (RADIUS, 2.5 * RADIUS)
    remark: str = ""


QUICK = Settings(
    train_size=160,
    test_size=64,
    passes=1,
    attack_steps=2,
    radii=(RADIUS,),
    remark="\nToo short a training to tell the two apart",
)


class StepTimer(keras.callbacks.Callback):
    """Collects the seconds of each training step.

    Reading `logs` waits for the step to end, on backends that compute in the
    background too.
    """

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])
        self.seconds.append(time.perf_counter() - self.started)

    def median(self):
        """Seconds of the median step, without the first ones that compile.

        Of one or two steps all count, for there are no others.
        """
        return float(np.median(self.seconds[2:] or self.seconds))


def main(arguments=None):
    """Run the comparison and return the result of each model."""
    options = parse_arguments(arguments)
    settings = QUICK if options.quick else Settings()
    options.output.mkdir(parents=True, exist_ok=True)
    # Before the training rather than after it.
    exporting.check_destination(options.output / "serving")
    train, _, test = movie_reviews.load(
        settings.train_size, 0, settings.test_size, options.seed
    )
    texts, labels = in_training_order(train, settings.passes, options.seed)

    plain, plain_cost = train_plain(texts, labels, options.seed)
    unified, unified_cost = train_unified(texts, labels, options.seed)
    results = [
        measure("plain fit", plain, test, settings, plain_cost),
        measure("UEGR", unified, test, settings, unified_cost),
    ]

    present(results, settings, options.output / "robustness.png")
    difference = export_and_serve(unified, test.texts, options.output)
    rich.print(
        f"SavedModel: {options.output / 'serving'}\n"
        "Served by TensorFlow alone, its probabilities differ by at most "
        f"{difference:.1e}."
    )
    return results


def parse_arguments(arguments=None):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="too short to learn anything"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the weights and of the sentences (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default="quickstart-output",
        help="folder for the figure and the SavedModel (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def in_training_order(sentences, passes, seed):
    """Return texts and labels of several shuffled passes, one after another.

    The order is drawn here, once, so that both models get the same batches.
    """
    generator = np.random.default_rng(seed)
    order = np.concatenate(
        [generator.permutation(len(sentences)) for _ in range(passes)]
    )
    return [sentences.texts[index] for index in order], sentences.labels[order]


def pretrained(seed):
    """Return the start of both runs: same weights, new head included."""
    keras.utils.set_random_seed(seed)
    return minilm.classifier(num_classes=2)


def adamw(examples):
    """Return AdamW, its learning rate falling to 0 at the last example."""
    return keras.optimizers.AdamW(
        keras.optimizers.schedules.PolynomialDecay(
            LEARNING_RATE, -(-examples // BATCH_SIZE), end_learning_rate=0.0
        )
    )


def compile_for_sentiment(model, optimizer):
    """Compile with the loss and the metric that both models have."""
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def fit(model, texts, labels):
    """Train on the texts in the order given; return history and timer."""
    timer = StepTimer()
    history = model.fit(
        texts,
        labels,
        batch_size=BATCH_SIZE,
        shuffle=False,
        callbacks=[timer],
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return history.history, timer


def train_plain(texts, labels, seed):
    """Return the model that plain `fit` makes, and its cost."""
    rich.print("[bold]Plain fit")
    classifier = pretrained(seed)
    compile_for_sentiment(classifier, adamw(len(texts)))
    _, timer = fit(classifier, texts, labels)
    # The wrapper adds what the attack needs: predictions stay the same.
    model = keras_uegr.UEGRModel(classifier)
    compile_for_sentiment(model, "sgd")
    return model, {"seconds_per_step": timer.median(), "updated_share": 1.0}


def train_unified(texts, labels, seed):
    """Return the model that UEGR makes, and its cost."""
    rich.print("[bold]UEGR")
    model = keras_uegr.UEGRModel(
        pretrained(seed),
        perturbation=keras_uegr.FastGradient(epsilon=0.06),
        dropout=keras_uegr.AdaptiveDropout(low=0.05, high=0.3),
        sub_models=2,
        token_share=0.15,
        adversarial_weight=1.0,
        consistency_weight=5.0,
    )
    compile_for_sentiment(
        model,
        keras_uegr.SaliencyMaskedOptimizer(adamw(len(texts)), density=0.8),
    )
    history, timer = fit(model, texts, labels)
    return model, {
        "seconds_per_step": timer.median(),
        "updated_share": history["updated_fraction"][-1],
    }


def measure(name, model, test, settings, cost):
    """Return the `comparison.Result` of a fine-tuned model."""
    report = keras_uegr.evaluation.robustness_report(
        model,
        test.texts,
        test.labels,
        epsilons=settings.radii,
        steps=settings.attack_steps,
        variants={"letters swapped": movie_reviews.swap_letters(test.texts)},
        batch_size=BATCH_SIZE,
        name=name,
    )
    return comparison.Result(report, **cost)


def present(results, settings, figure):
    """Print the table and save the figure."""
    rich.print(
        comparison.build_table(
            results,
            title=f"MiniLM-L6 on movie reviews, {keras.backend.backend()}",
            caption=f"{settings.train_size} training and {settings.test_size} "
            f"test sentences, one seed; ± 95 % interval{settings.remark}",
        )
    )
    plain, unified = (result.report for result in results)
    plain.figure(unified).savefig(figure, dpi=160)
    rich.print(f"Figure: {figure}")


def export_and_serve(model, texts, output):
    """Export a model, serve it in a new process, compare the probabilities.

    Returns:
        The largest difference between the two, a float.

    Raises:
        RuntimeError: If it is larger than `TOLERANCE`.
    """
    serving = output / "serving"
    keras_uegr.export_saved_model(model, str(serving))
    tokens = {
        name: keras.ops.convert_to_numpy(values).astype("int32")
        for name, values in model.preprocessor(texts[:8]).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        inputs, logits = f"{folder}/tokens.npz", f"{folder}/logits.npy"
        np.savez(inputs, **tokens)
        script = pathlib.Path(__file__).with_name("serve.py")
        subprocess.run(
            [sys.executable, script, serving, inputs, logits],
            # TensorFlow loads Keras by itself where it finds it, and crashes
            # where Keras then loads PyTorch.
            env={**os.environ, "KERAS_BACKEND": "tensorflow"},
            check=True,
        )
        served = np.load(logits)
    expected = probabilities(model.predict(tokens, verbose=0))
    difference = float(np.abs(probabilities(served) - expected).max())
    # NaN is no number that is small enough either.
    if not difference <= TOLERANCE:
        raise RuntimeError(
            "The served probabilities must be those of the model, up to "
            f"{TOLERANCE}. Received: a difference of {difference}"
        )
    return difference


def probabilities(logits):
    """Return the softmax of logits as a NumPy array."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


if __name__ == "__main__":
    main()
