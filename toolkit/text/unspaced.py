"""Scripts without spaces between words, and what stands for words in them.

Knows characters. Refuses to know what words are compared for (`bm25`, `duplicates`).
"""

# Chinese, Japanese, Thai, Lao, Khmer and Burmese; and Korean, whose words carry their particles. As
# the content of a character class of the library regex. The prolonged sound mark of katakana
# belongs to no script of its own.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


def pairs(run: str) -> list[str]:
    """The pairs of neighbouring characters of a run in such a script, as in Lucene's analyser for
    Chinese, Japanese and Korean; a single character as it is."""
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]
