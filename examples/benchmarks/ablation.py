"""What each part of UEGR brings: its settings, changed one at a time.

    python examples/benchmarks/ablation.py --quick --parts sub_models

The runner is that of `compare_methods.py`, and its options hold here too. All
is measured on the validation split, for this is where settings are chosen.
"""

import pathlib
import sys

# The loaders of weights and sentences are the quickstart's.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from method_comparison import command_line

REFERENCE = "uegr"
# For each part, what changes against the reference.
PARTS = {
    "sub_models": [{"sub_models": count} for count in (0, 1, 3, 4)],
    "dropout_range": [
        {"low": low, "high": high}
        for low, high in ((0.0, 0.1), (0.1, 0.1), (0.1, 0.5))
    ],
    "dropout_policy": [
        {"dropout": policy}
        for policy in ("uniform", "scheduled", "divergence", "none")
    ],
    "perturbation": [
        {"perturbation": "none"},
        {"perturbation": "projected_gradient"},
    ],
    "epsilon": [{"epsilon": size} for size in (0.03, 0.1, 0.2)],
    "norm": [{"norm": "linf"}],
    "token_share": [{"token_share": share} for share in (0.05, 0.2, 1.0)],
    "special_tokens": [{"perturb_special_tokens": False}],
    "clean_weight": [{"clean_weight": x} for x in (0.0, 0.5)],
    "adversarial_weight": [{"adversarial_weight": x} for x in (0.0, 0.5, 2.0)],
    "consistency_weight": [{"consistency_weight": x} for x in (0.0, 1.0, 20.0)],
    "include_clean": [{"include_clean": True}],
    "density": [{"density": share} for share in (0.1, 0.6, 1.0)],
    "saliency": [{"saliency": name} for name in ("gradient", "fisher")],
    "scope": [{"scope": "global"}],
    "warm_up": [{"warmup_share": share} for share in (0.0, 0.3, 0.6)],
}


def main(arguments=None):
    """Run the ablation and return its results by `Cell`."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=[*PARTS],
        help="what to change, all by default",
    )
    options = command_line.parse(parser, arguments)
    return command_line.run(
        options,
        variants(options.parts),
        REFERENCE,
        "validation",
        command_line.output_of(options, "ablation"),
    )


def variants(parts):
    """Return plain `fit`, the reference, and each change, by name."""
    changes = [change for part in parts for change in PARTS[part]]
    return {
        "finetune": {"recipe": "finetune"},
        REFERENCE: {},
        **{name_of(change): change for change in changes},
    }


def name_of(change):
    """Return how a change is called in the table."""
    return ", ".join(f"{name}={value}" for name, value in change.items())


if __name__ == "__main__":
    main()
