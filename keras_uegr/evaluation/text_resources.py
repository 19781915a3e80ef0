"""What attacks on texts need beside a model: stop words and WordNet."""

import contextlib
import io
import os
import pathlib
import warnings

# Where Debian's package `wordnet-base` and macOS' Homebrew put the files.
_WORDNET_FOLDERS = ("/usr/share/wordnet", "/opt/homebrew/share/wordnet/dict")

# TextAttack takes NLTK's list, which has to be downloaded and has changed
# between versions. One list for everyone makes results comparable.
STOP_WORDS = frozenset(
    """
    i me my myself we our ours ourselves you your yours yourself yourselves he
    him his himself she her hers herself it its itself they them their theirs
    themselves what which who whom this that these those am is are was were be
    been being have has had having do does did doing a an the and but if or
    because as until while of at by for with about against between into through
    during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few
    more most other some such no nor not only own same so than too very s t can
    will just don should now d ll m o re ve y ain aren couldn didn doesn hadn
    hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
    """.split()  # noqa: SIM905
)

# Debian's package has all of WordNet but this table of lexnames(5WN).
_LEXICOGRAPHER_FILES = """
    adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact
    noun.attribute noun.body noun.cognition noun.communication noun.event
    noun.feeling noun.food noun.group noun.location noun.motive noun.object
    noun.person noun.phenomenon noun.plant noun.possession noun.process
    noun.quantity noun.relation noun.shape noun.state noun.substance noun.time
    verb.body verb.change verb.cognition verb.communication verb.competition
    verb.consumption verb.contact verb.creation verb.emotion verb.motion
    verb.perception verb.possession verb.social verb.stative verb.weather
    adj.ppl
""".split()  # noqa: SIM905


@contextlib.contextmanager
def own_stop_words():
    """English stop words for what TextAttack builds meanwhile."""
    from nltk.corpus import stopwords

    def words(language):
        if language == "english":
            return sorted(STOP_WORDS)
        del stopwords.words
        return stopwords.words(language)

    # On NLTK's own object, which is the same one wherever it is imported.
    stopwords.words = words
    try:
        yield
    finally:
        vars(stopwords).pop("words", None)


def open_wordnet(folder=None):
    """An NLTK reader of a local WordNet.

    Args:
        folder: Optional path of the folder with WordNet's files, such as
            `data.noun`. Defaults to `None`: that of the environment variable
            `WNSEARCHDIR`, NLTK's own corpus or else, where Debian's package
            `wordnet-base` puts it.

    Returns:
        An `nltk.corpus.reader.WordNetCorpusReader`.

    Raises:
        FileNotFoundError: If there is no WordNet.
    """
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader

    class LocalWordNet(WordNetCorpusReader):
        def open(self, file):
            if file != "lexnames":
                # The base class would keep the largest files open for good.
                content = pathlib.Path(folder, file).read_bytes()
                return nltk.data.SeekableUnicodeStreamReader(
                    io.BytesIO(content), self.encoding(file)
                )
            lines = [
                f"{i:02d}\t{x}\t0" for i, x in enumerate(_LEXICOGRAPHER_FILES)
            ]
            return io.StringIO("\n".join(lines))

        def map_wn(self, version="wordnet"):
            # For other languages only; it would need `index.sense`.
            del version

    folder = str(_find_wordnet(folder))
    if folder not in nltk.data.path:
        # NLTK opens files in the folders of this list alone.
        nltk.data.path.append(folder)
    with warnings.catch_warnings():
        # English alone is what is asked for.
        warnings.filterwarnings("ignore", "The multilingual functions")
        return LocalWordNet(folder, None)


def _find_wordnet(folder):
    if folder is None:
        import nltk

        # The variable is WordNet's own, see wn(1).
        chosen = os.environ.get("WNSEARCHDIR")
        candidates = [
            *map(pathlib.Path, [chosen] if chosen else []),
            *(pathlib.Path(x, "corpora", "wordnet") for x in nltk.data.path),
            *map(pathlib.Path, _WORDNET_FOLDERS),
        ]
    else:
        candidates = [pathlib.Path(folder)]
    for candidate in candidates:
        if (candidate / "data.noun").is_file():
            return candidate
    raise FileNotFoundError(
        '`attack="pwws"` needs WordNet. Install it with `apt install '
        "wordnet-base` or `python -m nltk.downloader wordnet`, or set "
        "`wordnet_folder`, or the environment variable `WNSEARCHDIR`, to the "
        "folder that holds `data.noun`. "
        f"Received: wordnet_folder={folder}"
    )
