"""Word flips chosen by the gradient, as in HotFlip.

    score(i, w) = (E[w] - E[x_i]) . dL/de_i        first-order rise of the loss

Ebrahimi et al., 2018 (https://arxiv.org/abs/1712.06751), equation 1, for words.
"""

import numpy as np
from keras_hub.tokenizers import WordPieceTokenizer

from keras_uegr.evaluation.textattack_import import import_textattack


def gradient_flips(wrapper, top_n=10):
    """A TextAttack transformation that flips one word.

    Only words that are one token are flipped, to such words.

    Args:
        wrapper: A `TextAttackModelWrapper`.
        top_n: Positive integer, the number of flips that are proposed.
            Defaults to `10`.

    Returns:
        A `textattack.transformations.WordSwap`.

    Raises:
        ValueError: If the tokenizer is not one of WordPiece. Others spell the
            space before a word, and a piece inside of one like a word.
    """
    if not isinstance(wrapper.tokenizer, WordPieceTokenizer):
        raise ValueError(
            'The attack "hotflip" needs a model with a WordPiece tokenizer, '
            "such as BERT's. "
            f"Received: tokenizer={type(wrapper.tokenizer).__name__}"
        )
    swaps = import_textattack("transformations")
    table = wrapper.embeddings
    words = _whole_words(wrapper.tokenizer)

    class GradientFlips(swaps.WordSwap):
        is_black_box = False

        def _get_transformations(self, current_text, indices_to_modify):
            found = wrapper.get_grad(current_text.tokenizer_input)
            positions = word_positions(
                current_text.words_per_input, found["ids"], wrapper.tokenizer
            )
            candidates = []
            for index in sorted(indices_to_modify):
                if index not in positions:
                    continue
                position = positions[index]
                difference = table - table[found["ids"][position]]
                rises = difference @ found["gradient"][position]
                candidates.extend(
                    (-rises[token_id], index, word)
                    for token_id, word in words.items()
                    if word != current_text.words[index].lower()
                )
            return [
                current_text.replace_word_at_index(index, word)
                for _, index, word in sorted(candidates)[:top_n]
            ]

    return GradientFlips()


def word_positions(parts, ids, tokenizer):
    """The position of each word that is one token.

    Args:
        parts: List of lists of strings, the words of each part of a text in
            their order.
        ids: Array of the token ids of that text, special ones included.
        tokenizer: A `keras_hub.tokenizers.Tokenizer`.

    Returns:
        A dictionary from indices of words, counted through all parts, to
        positions in `ids`.
    """
    ids = np.asarray(ids).tolist()
    separator = getattr(tokenizer, "sep_token_id", None)
    ends = [at for at, token_id in enumerate(ids) if token_id == separator]
    # A word that was cut off in one part may be in the next one.
    spans = list(zip([0, *ends], ends, strict=False))
    if len(spans) < len(parts):
        spans = [(0, len(ids))] * len(parts)
    positions, start, index = {}, 0, 0
    for words, (begin, end) in zip(parts, spans, strict=False):
        start = max(start, begin)
        for word in words:
            pieces = _pieces(tokenizer, word)
            for at in range(start, end - len(pieces) + 1):
                if pieces and ids[at : at + len(pieces)] == pieces:
                    if len(pieces) == 1:
                        positions[index] = at
                    start = at + len(pieces)
                    break
            index += 1
    return positions


def _pieces(tokenizer, word):
    pieces = np.asarray(tokenizer(word)).tolist()
    padding = getattr(tokenizer, "pad_token_id", None)
    return [piece for piece in pieces if piece != padding]


def _whole_words(tokenizer):
    """The words of the vocabulary, by token id."""
    special = set(getattr(tokenizer, "special_tokens", ()))
    words = {}
    for token_id in range(tokenizer.vocabulary_size()):
        token = tokenizer.id_to_token(token_id)
        if token not in special and token.isalpha() and token.islower():
            words[token_id] = token
    return words
