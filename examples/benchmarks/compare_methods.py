"""The published methods and UEGR in one table.

    python examples/benchmarks/compare_methods.py --quick     # a first look
    python examples/benchmarks/compare_methods.py \
        --methods finetune fgm rdrop uegr --seeds 0 1 2 3 4   # hours

Every method is a recipe of `keras_uegr.recipes` on MiniLM-L6. For one seed, all
start from the same weights, see the same examples in the same order, and train
as many epochs. `finetune, equal cost` trains as many steps as UEGR's time buys.
Each finished run is kept in a file of the output folder: start a command again
that was stopped, and it goes on from there.

Choose settings on the validation split, which is the default, and look at
`--split test` once, at the end. Writes a Markdown table, JSON, and two figures.
"""

import pathlib
import sys

# The loaders of weights and sentences are the quickstart's.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from keras_uegr import recipes
from method_comparison import command_line, methods

LONGER = f"finetune{methods.EQUAL_COST}"
NAMES = [*recipes.RECIPES, LONGER]
QUICK_NAMES = ["finetune", "uegr", LONGER]


def main(arguments=None):
    """Run the comparison and return its results by `Cell`."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=NAMES,
        help="all by default, with --quick three",
    )
    parser.add_argument(
        "--split",
        choices=["validation", "test"],
        default="validation",
        help="what is measured on (default: %(default)s)",
    )
    options = command_line.parse(parser, arguments)
    names = options.methods or (QUICK_NAMES if options.quick else NAMES)
    output = command_line.output_of(options, "comparison")
    return command_line.run(
        options, chosen(names), "uegr", options.split, output
    )


def chosen(names):
    """Return the methods by name, what others need first.

    The cost that is to be equalled is known once its two methods ran.
    """
    if LONGER in names:
        others = [name for name in names if name != LONGER]
        names = dict.fromkeys(["finetune", "uegr", *others, LONGER])
    return {
        name: {"recipe": name.removesuffix(methods.EQUAL_COST)}
        for name in names
    }


if __name__ == "__main__":
    main()
