"""Noise in texts, as typing makes it: TextAttack's transformations, at random.

Each word is changed with probability `rate`, on its own, once.
"""

import numpy as np

from keras_uegr.evaluation import attack_checks, random_state
from keras_uegr.evaluation.textattack_import import import_textattack
from keras_uegr.string_data import excerpt

# Kind of noise: the class in TextAttack that makes it.
_TRANSFORMATIONS = {
    "letter_swap": "WordSwapNeighboringCharacterSwap",
    "letter_deletion": "WordSwapRandomCharacterDeletion",
    "keyboard_typo": "WordSwapQWERTY",
    "word_drop": "WordDeletion",
}


def add_noise(texts, kind, rate=0.1, seed=0):
    """Texts with typing errors.

    Args:
        texts: List of strings, without TextAttack's own `<SPLIT>`. Of pairs,
            the list of each part on its own.
        kind: `"letter_swap"` (of neighbours in a word), `"letter_deletion"`,
            `"keyboard_typo"` (a key beside the right one) or `"word_drop"`.
        rate: Float in `[0, 1]`, the probability of each word to be changed.
            Left as they are: the last word that a text has, a single letter
            but for `"word_drop"`, equal letters, which can't be swapped, and
            what has no letter that a key is beside. Defaults to `0.1`.
        seed: Integer, at least 0. Each text's noise depends on it and on the
            text's place in the list. Defaults to `0`.

    Returns:
        List of strings, one for each of `texts`.

    Raises:
        ImportError: If TextAttack is missing.
        ValueError: If `kind`, `rate` or `texts` is not as above.

    Example:

    >>> noisy = keras_uegr.evaluation.add_noise(
    ...     ["a delight"], "letter_swap", rate=1.0
    ... )
    >>> len(noisy[0]) == len("a delight")
    True
    """
    if kind not in _TRANSFORMATIONS:
        raise ValueError(
            f"`kind` must be one of {sorted(_TRANSFORMATIONS)}. "
            f"Received: kind={kind}"
        )
    if not 0 <= rate <= 1:
        raise ValueError(
            f"`rate` must be a number from 0 to 1. Received: rate={rate}"
        )
    is_structure = isinstance(texts, (str, dict))
    if is_structure or getattr(texts, "ndim", 1) != 1:
        raise ValueError(
            "`texts` must be a list of strings: wrap a single text in a list. "
            f"Received: texts={texts}"
        )
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                "`texts` must be a list of strings. Of pairs, add noise to the "
                "list of each part on its own. "
                f"Received: texts with {excerpt(text)}"
            )
    attack_checks.check_can_be_changed(texts)
    seed = attack_checks.get_seed(seed)
    swaps = import_textattack("transformations")
    transformation = getattr(swaps, _TRANSFORMATIONS[kind])
    one, every = transformation(), transformation()
    every.random_one = False
    noisy = []
    for index, text in enumerate(texts):
        with random_state.seeded(seed, index):
            noisy.append(_change(text, one, every, rate))
    return noisy


def _change(text, one, every, rate):
    attacked = import_textattack("shared").AttackedText(text)
    chosen = np.flatnonzero(np.random.random(len(attacked.words)) < rate)
    # From the end, for a word that is dropped moves those behind it.
    for index in chosen[::-1].tolist():
        changed = one(attacked, indices_to_modify=[index])
        if not changed:
            # It drew what changes nothing, such as the letters "oo" to swap.
            changed = every(attacked, indices_to_modify=[index])
            np.random.shuffle(changed)
        if changed:
            attacked = changed[0]
    return attacked.text
