"""TextAttack's attacks by name, so that they need no download where possible.

Where an attack here departs from TextAttack's recipe of that name:

* the list of stop words is fixed (`text_resources.STOP_WORDS`);
* PWWS reads a local WordNet, and asks for synonyms in a fixed order;
* HotFlip flips whole words that are one token of the model. TextAttack's takes
  the index of a word for that of its token, which is wrong as soon as there is
  a start token. Its two constraints that need downloads (cosine similarity of
  counter-fitted vectors, part of speech) are left out.
"""

import warnings

from keras_uegr.evaluation import text_resources
from keras_uegr.evaluation.textattack_import import import_textattack

_COUNTER_FITTED = "counter-fitted word vectors, which TextAttack downloads"
_MASKED_LANGUAGE_MODEL = "a masked language model from the Hugging Face hub"
_SENTENCE_ENCODER = "the Universal Sentence Encoder from TensorFlow Hub"

# Name: the class in TextAttack, and what it needs beside TextAttack.
RECIPES = {
    "a2t": (
        "A2TYoo2021",
        f"{_COUNTER_FITTED}, and the package `sentence-transformers` with one "
        "of its models",
    ),
    "bae": (
        "BAEGarg2019",
        f"{_MASKED_LANGUAGE_MODEL} and {_SENTENCE_ENCODER}",
    ),
    "bert_attack": (
        "BERTAttackLi2020",
        f"{_MASKED_LANGUAGE_MODEL} and {_SENTENCE_ENCODER}",
    ),
    "checklist": ("CheckList2020", "a tagger of names, by `flair`"),
    "clare": (
        "CLARE2020",
        f"{_MASKED_LANGUAGE_MODEL} and {_SENTENCE_ENCODER}",
    ),
    "deepwordbug": ("DeepWordBugGao2018", None),
    "faster_genetic": (
        "FasterGeneticAlgorithmJia2019",
        f"{_COUNTER_FITTED}, and a language model",
    ),
    "genetic": (
        "GeneticAlgorithmAlzantot2018",
        f"{_COUNTER_FITTED}, and a language model",
    ),
    "hotflip": ("HotFlipEbrahimi2017", None),
    "iga": ("IGAWang2019", _COUNTER_FITTED),
    "input_reduction": ("InputReductionFeng2018", None),
    "kuleshov": ("Kuleshov2017", f"{_COUNTER_FITTED}, and GPT-2"),
    "pruthi": ("Pruthi2019", None),
    "pso": ("PSOZang2020", "HowNet, which OpenHowNet downloads"),
    "pwws": ("PWWSRen2019", None),
    "textbugger": (
        "TextBuggerLi2018",
        f"{_COUNTER_FITTED}, and {_SENTENCE_ENCODER}",
    ),
    "textfooler": (
        "TextFoolerJin2019",
        f"{_COUNTER_FITTED}, {_SENTENCE_ENCODER} and NLTK's tagger",
    ),
}


def build_attack(name, wrapper, wordnet_folder=None):
    """A `textattack.Attack` on a model.

    Args:
        name: String, one of `RECIPES`.
        wrapper: A `TextAttackModelWrapper`.
        wordnet_folder: Optional path, for `"pwws"`.

    Returns:
        A `textattack.Attack`.

    Raises:
        FileNotFoundError: If a resource that the attack needs is missing.
        ValueError: If there is no attack of that name.
    """
    if name not in RECIPES:
        raise ValueError(
            f"`attack` must be one of {sorted(RECIPES)}. "
            f"Received: attack={name}"
        )
    with warnings.catch_warnings():
        # TextAttack logs, by a deprecated method, that it can't tell whether
        # a model that it doesn't know is a classifier.
        warnings.filterwarnings("ignore", "The 'warn' method is deprecated")
        return _build(name, wrapper, wordnet_folder)


def _build(name, wrapper, wordnet_folder):
    class_name, needs = RECIPES[name]
    recipes = import_textattack("attack_recipes")
    if name == "pwws":
        return _pwws(wrapper, text_resources.open_wordnet(wordnet_folder))
    if name == "hotflip":
        return _hotflip(wrapper)
    try:
        with text_resources.own_stop_words():
            return getattr(recipes, class_name).build(wrapper)
    except Exception as error:
        if needs is None:
            raise
        raise missing_resource(name, error) from error


def missing_resource(name, error):
    """The error that tells what an attack lacks."""
    return FileNotFoundError(
        f'`attack="{name}"` needs {needed(name)}, which could not be had '
        "here. Run it once with internet access, so that it is in the cache, "
        'or choose another attack, such as "deepwordbug". '
        f"Received: {type(error).__name__}: {error}"
    )


def needed(name):
    """What an attack needs beside TextAttack, or `None`."""
    return RECIPES[name][1]


def _pwws(wrapper, wordnet):
    textattack = import_textattack()
    swaps = import_textattack("transformations")
    search_methods = import_textattack("search_methods")

    class LocalSynonyms(swaps.WordSwap):
        def _get_replacement_words(self, word):
            lemmas = {
                lemma
                for synset in wordnet.synsets(word)
                for lemma in synset.lemma_names()
            }
            one_word = textattack.shared.utils.is_one_word
            return sorted(
                lemma
                for lemma in lemmas
                if lemma != word and "_" not in lemma and one_word(lemma)
            )

    return textattack.Attack(
        textattack.goal_functions.UntargetedClassification(wrapper),
        _word_constraints(),
        LocalSynonyms(),
        search_methods.GreedyWordSwapWIR("weighted-saliency"),
    )


def _hotflip(wrapper):
    from keras_uegr.evaluation.gradient_flips import gradient_flips

    textattack = import_textattack()
    overlap = import_textattack("constraints.overlap")
    search_methods = import_textattack("search_methods")
    return textattack.Attack(
        textattack.goal_functions.UntargetedClassification(wrapper),
        [*_word_constraints(), overlap.MaxWordsPerturbed(max_num_words=2)],
        gradient_flips(wrapper),
        search_methods.BeamSearch(beam_width=10),
    )


def _word_constraints():
    constraints = import_textattack("constraints.pre_transformation")
    return [
        constraints.RepeatModification(),
        constraints.StopwordModification(text_resources.STOP_WORDS),
    ]
