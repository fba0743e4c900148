"""getopt_long as the C library has it, in order, over this program's eleven options."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class UsageError(Exception):
    """The command line breaks the rules; the text is getopt_long's, without the program's name."""


@final
class Option(NamedTuple):
    """One option: its long name ('' for a stray argument), its argument ('': none), and the words it was."""

    name: str
    argument: str
    words: str


def parse(
    argv: Sequence[str], takes_argument: Mapping[str, bool], short: Mapping[str, str]
) -> Iterator[Option]:
    """Yield the options of ``argv`` (without the program's name) from left to right.

    ``takes_argument`` has every long name, ``short`` maps letters to long names. Long names may be
    shortened. ``--`` ends the parsing: what follows is never looked at, as in the real daemon.
    Raises UsageError at the first word that is no option.
    """
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if word == "--":
            return
        if word == "-" or not word.startswith("-"):
            yield Option("", word, word)
        elif word.startswith("--"):
            given, equals, argument = word[2:].partition("=")
            name = _complete(given, word, takes_argument)
            if not takes_argument[name]:
                if equals:
                    raise UsageError(f"option '--{name}' doesn't allow an argument")
                yield Option(name, "", word)
            elif equals:
                yield Option(name, argument, word)
            elif index == len(argv):
                raise UsageError(f"option '--{name}' requires an argument")
            else:
                yield Option(name, argv[index], f"{word} {argv[index]}")
                index += 1
        else:
            for position, letter in enumerate(word[1:], 2):
                if letter not in short:
                    raise UsageError(f"invalid option -- '{letter}'")
                name = short[letter]
                if not takes_argument[name]:
                    yield Option(name, "", word)
                    continue
                if word[position:]:
                    yield Option(name, word[position:], word)
                elif index == len(argv):
                    raise UsageError(f"option requires an argument -- '{letter}'")
                else:
                    yield Option(name, argv[index], f"{word} {argv[index]}")
                    index += 1
                break


def _complete(given: str, word: str, names: Mapping[str, bool]) -> str:
    if given in names:
        return given
    possible = [name for name in names if name.startswith(given)]
    if len(possible) == 1:
        return possible[0]
    if not possible:
        raise UsageError(f"unrecognized option '{word}'")
    listing = " ".join(f"'--{name}'" for name in possible)
    raise UsageError(f"option '{word}' is ambiguous; possibilities: {listing}")
