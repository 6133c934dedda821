# SPDX-License-Identifier: Apache-2.0
"""Small tasks for the search of learning rates, made from words: their validation records hold other words.

Those of OWN_TASKS are for trainings with defaults, and their test records have other sentences, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

Record = dict[str, str]


def _words(text: str) -> list[str]:
    return text.split()


_TOPICS = {
    "sport": _words("goal referee marathon tennis stadium coach sprint rugby medal swimmer striker hockey"),
    "food": _words("soup bakery pepper recipe butter oven garlic cheese noodle chef onion dessert"),
    "money": _words("loan shares bank tax profit invoice budget currency dividend mortgage insurer wage"),
    "weather": _words("storm rain frost sunshine blizzard thunder drought breeze hail fog snowfall heatwave"),
    "music": _words("guitar choir violin melody drummer opera piano concert trumpet singer orchestra ballad"),
}
_FRAMES = (
    "everyone in the office talked about the {} on Monday",
    "the {} was the main story of the morning paper",
    "my sister wrote a long letter about the {}",
    "nobody had expected such a {} this year",
    "the report begins with a picture of the {}",
)
_NAMES = _words("Anna Ben Clara David Emma Frank Grace Henry Iris Jack Karen Liam Maria Noah Olga Peter Rosa Simon")
_CITIES = _words("Oslo Paris Rome Berlin Madrid Vienna Dublin Prague London Athens Lisbon Boston Cairo Delhi Tokyo")
_ITEMS = _words("lamps chairs books clocks shirts bottles pencils mirrors baskets candles blankets spoons")
_GOOD = _words("wonderful excellent delightful pleasant brilliant superb lovely great charming perfect")
_BAD = _words("terrible awful boring dreadful poor horrible disappointing bad unpleasant weak")
_THINGS = _words("film hotel meal book concert journey service play garden game lecture museum")


@dataclass(frozen=True, slots=True)
class LearningTask:
    """A task with as many different records as are asked for."""

    name: str
    """The name on the command line."""
    template: str
    """The prompt; the last field is the answer."""
    records: Callable[[random.Random, bool], Iterator[Record]]
    """Yields records for ever; the flag is whether they are for validation."""
    searched: bool = True
    """Whether its results chose the rates; False for the task that confirms them."""

    def make(self, number: int, *, validation: bool) -> list[Record]:
        """Return records, the same in every call."""
        return list(islice(self.records(random.Random(int(validation)), validation), number))


def _part(words: list[str], validation: bool) -> list[str]:
    """Return the words for training, or the last third for validation."""
    first = len(words) - len(words) // 3
    return words[first:] if validation else words[:first]


def _topics(draw: random.Random, validation: bool) -> Iterator[Record]:
    while True:
        topic = draw.choice(list(_TOPICS))
        yield {"text": draw.choice(_FRAMES).format(draw.choice(_part(_TOPICS[topic], validation))), "topic": topic}


def _orders(draw: random.Random, validation: bool) -> Iterator[Record]:
    while True:
        city, name = draw.choice(_part(_CITIES, validation)), draw.choice(_part(_NAMES, validation))
        item = draw.choice(_part(_ITEMS, validation))
        yield {"text": f"{name} from {city} bought {draw.randint(2, 99)} {item}", "city": city}


def _numbers(draw: random.Random, validation: bool) -> Iterator[Record]:
    while True:
        first, second = draw.sample(range(10, 100), 2)
        if (first * second) % 3 == (0 if validation else 1):  # no pair is in both parts
            yield {"first": str(first), "second": str(second), "larger": str(max(first, second))}


def _reviews(draw: random.Random, validation: bool) -> Iterator[Record]:
    while True:
        is_good, is_denied = draw.random() < 0.5, draw.random() < 0.4
        word = draw.choice(_part(_GOOD if is_good else _BAD, validation))
        middle = draw.choice(("not", "never", "hardly")) if is_denied else draw.choice(("really", "simply", "quite"))
        thing = draw.choice(_part(_THINGS, validation))
        yield {
            "text": f"the {thing} was {middle} {word}",
            "verdict": "positive" if is_good != is_denied else "negative",
        }


TASKS = (
    LearningTask("topics", "text: {text} topic: {topic}", _topics),
    LearningTask("orders", "order: {text} city: {city}", _orders),
    LearningTask("numbers", "first: {first} second: {second} larger: {larger}", _numbers),
    LearningTask("reviews", "review: {text} verdict: {verdict}", _reviews, searched=False),
)
"""Classification, extraction, a comparison of numbers, and two classes with negation."""

_DEPARTMENTS = {
    "billing": _words(
        "invoice refund receipt fee discount voucher surcharge deposit instalment overpayment tax price tariff payment"
    ),
    "delivery": _words(
        "courier parcel shipment van postman depot package route driver doorstep letterbox carton pallet truck customs"
    ),
    "repair": _words("crack hinge screw motor battery handle leak scratch display charger fuse bolt cable rust spring"),
    "account": _words(
        "password login username profile verification email registration avatar nickname login-code membership "
        "homepage sign-in security-question subscription"
    ),
}
_REQUESTS = (
    "I have a question about the {}",
    "please look at the {} again",
    "something is wrong with the {}",
    "who can help me with the {}?",
    "nobody answers my call about the {}",
    "can you explain the {} to me?",
    "my husband is angry about the {}",
    "it is the third time that I write about the {}",
    "since Friday the {} has been a problem",
    "your letter did not mention the {}",
    "I am still waiting for news of the {}",
    "the {} is not what you promised",
)
_VERDICTS = (
    "the {thing} was {word}",
    "what a {word} {thing}",
    "I found the {thing} {word}",
    "{word}, that is my view of the {thing}",
    "we had a {word} {thing} in March",
    "to me the {thing} seemed {word}",
    "my friends called the {thing} {word}",
    "a {thing} as {word} as this is rare",
    "the {thing} in one word: {word}",
)
_ANIMALS = _words("heron goat parrot turtle rabbit falcon otter donkey hamster peacock lizard beaver")
_FACTS = (
    ("{name} from {city} keeps a {animal}", "where does {name} live?", "city"),
    ("{name} has a {animal} and lives in {city}", "which animal does {name} have?", "animal"),
    ("the {animal} in {city} belongs to {name}", "whose is the {animal}?", "name"),
    ("in {city}, {name} looks after a {animal}", "in which city is {name}?", "city"),
    ("{name} takes the {animal} for a walk through {city}", "which pet walks with {name} in {city}?", "animal"),
    ("{city} knows {name} because of a {animal}", "who has the {animal} in {city}?", "name"),
)


def _distinct(
    records: Callable[[random.Random, bool], Iterator[Record]],
) -> Callable[[random.Random, bool], Iterator[Record]]:
    """Return the same records without repetitions."""

    def found(draw: random.Random, validation: bool) -> Iterator[Record]:
        seen = set()
        for record in records(draw, validation):
            if (text := str(record)) not in seen:
                seen.add(text)
                yield record

    return found


def _departments(draw: random.Random, validation: bool) -> Iterator[Record]:
    while True:
        name = draw.choice(list(_DEPARTMENTS))
        words, sentences = _part(_DEPARTMENTS[name], validation), _part(list(_REQUESTS), validation)
        yield {"text": draw.choice(sentences).format(draw.choice(words)), "department": name}


def _sentiment(draw: random.Random, validation: bool) -> Iterator[Record]:
    while True:
        name, words = draw.choice((("positive", _GOOD), ("negative", _BAD)))
        word, thing = draw.choice(_part(words, validation)), draw.choice(_part(_THINGS, validation))
        yield {"text": draw.choice(_part(list(_VERDICTS), validation)).format(thing=thing, word=word), "mood": name}


def _facts(draw: random.Random, validation: bool) -> Iterator[Record]:
    facts = _FACTS[4:] if validation else _FACTS[:4]
    while True:
        parts = zip(("name", "city", "animal"), (_NAMES, _CITIES, _ANIMALS), strict=True)
        made = {part: draw.choice(_part(words, validation)) for part, words in parts}
        fact, question, answer = draw.choice(facts)
        yield {"fact": fact.format(**made), "question": question.format(**made), "answer": made[answer]}


OWN_TASKS = (
    LearningTask("departments", "text: {text} department: {department}", _distinct(_departments)),
    LearningTask("sentiment", "text: {text} mood: {mood}", _distinct(_sentiment)),
    LearningTask("facts", "fact: {fact} question: {question} answer: {answer}", _distinct(_facts)),
)
"""Four classes, two classes, and short answers that stand in the text."""
