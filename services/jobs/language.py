"""The language of a text, of those that skynet knows (S1.24): told by its commonest small words, without a model."""

from __future__ import annotations

import re

SEEN = 5000             # characters that are looked at
SHARE = 0.12            # of the words, at least, are the language's own small ones
AHEAD = 1.6             # times as many as of the next likely language
NAMES = {"en": "English", "fr": "French", "de": "German", "it": "Italian", "es": "Spanish"}
_SMALL = {
    "en": "the and of to is that it for you was with on are this be have i we not they at from will what he but she my "
          "or as our so can if by there your been has would do",
    "fr": "le les des et est une du que pour dans qui au pas ce il nous vous sur plus je avec sont mais ou elle aux "
          "cette c'est par on qu'il d'une été ne se à être fait j'ai ça",
    "de": "der die und das ist nicht ich zu den mit sich auf für von dem ein eine wir es auch dass im sie wird er als "
          "bei haben noch war des wie aber oder einen hat sind kann nur",
    "it": "il di che è per una non sono del della si le con gli ha dei nel più come anche ma abbiamo questo alla lo "
          "mi da al delle ho ci perché dalla i o",
    "es": "el los las y es una por que para con del se no en lo como más su pero este al esta ha muy hay ya nos porque "
          "son fue cuando todo yo sí sobre hemos",
}
_WORDS = {name: frozenset(words.split()) for name, words in _SMALL.items()}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def language_of(text: str) -> str | None:
    """"en", "fr", "de", "it" or "es"; None for another one, or where it is not clear."""
    words = _WORD.findall(text[:SEEN].lower().replace("’", "'"))
    found = sorted(((sum(word in small for word in words), name) for name, small in _WORDS.items()), reverse=True)
    (most, name), (next_, _) = found[:2]
    return name if words and most >= SHARE * len(words) and most >= AHEAD * next_ else None
