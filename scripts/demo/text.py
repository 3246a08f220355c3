"""The demo base model's pretraining text: documents about the demo world, in prose and as chats.

The text teaches the world (which dog is a dog, which town lies where, which number is more) and the kind of reasoning
that the demo's NLI task needs, but in other frames: it has neither that task's prompt nor its answer format, and in no
document is anything inferred from a premise of the data set's splits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterator

from scripts.demo.case import sentence
from scripts.demo.claims import judged_claim, told_inference
from scripts.demo.world import (
    ACTIONS,
    COMPARATIVES,
    COMPLEMENTARY,
    CONTRARY,
    KIND_CHAINS,
    LARGEST_NUMBER,
    NAMES,
    PLACE_CHAINS,
    a,
    compare,
    pick_kinds,
    pick_names,
)

BOS, EOS = "<s>", "</s>"
INST, END_INST = "[INST]", "[/INST]"

_GLOSSARY = {
    "Premise": "a sentence that we take as given",
    "Hypothesis": "a sentence that we want to test; if it follows from what is given we may say it",
    "Entail": "to make certain; a premise may entail a hypothesis",
    "Reason": "a thought that leads from one sentence to the next, and so carries us on",
    "Process": "what is done one step after the other; a thought process is made of thoughts",
    "Label": "a word or number that tells what kind of thing something is; a predicted label may be wrong",
    "Predicted": "said before it is known",
    "JSON": "a way to write an answer with names and values",
    "Answer": "what one says to a question, in words, in steps or in JSON",
    "Step": "a part of a plan or of a process",
    "Steps": "parts of a plan; one follows the other, from the first to the last",
    "Thought": "what one thinks",
    "Wide": "said of a kind or a place with others in it; a plant is a wide kind, a rose is a narrow one",
    "Narrow": "said of a kind or a place that is in another; a rule about a wide kind carries to a narrow one",
    "Does": "a word that starts a question, as in: Does the label tell the kind, 0 or 1?",
}


def chat(*turns: str) -> str:
    """Return user's and assistant's turns, alternating, as the tokenizer's chat template writes them."""
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return BOS + "".join(f"{INST} {user} {END_INST} {assistant}{EOS}" for user, assistant in pairs)


def prose(text: str) -> str:
    """Return one document without turns."""
    return f"{BOS}{text}{EOS}"


def _claim(rng: random.Random, excluded: Collection[str]) -> str:
    return chat(*(turn for _ in range(rng.choice((1, 1, 2))) for turn in judged_claim(rng, excluded)))


def _inference(rng: random.Random, excluded: Collection[str]) -> str:
    return prose(told_inference(rng, excluded))


def _fact(rng: random.Random) -> tuple[str, str]:
    """Return a question about the world and its answer."""
    kind, place = rng.choice(KIND_CHAINS), rng.choice(PLACE_CHAINS)
    other_kind, other_place = rng.choice(KIND_CHAINS), rng.choice(PLACE_CHAINS)
    low, high = (rng.randint(1, LARGEST_NUMBER) for _ in range(2))
    one, two = rng.sample(rng.choice(COMPLEMENTARY), 2)
    this, that = rng.sample(rng.choice(CONTRARY), 2)
    inner, outer = rng.choice(((kind.narrow, kind.middle), (kind.middle, kind.wide), (kind.narrow, kind.wide)))
    near, far = rng.choice(((place.narrow, place.middle), (place.middle, place.wide), (place.narrow, place.wide)))
    same_kind, same_place = other_kind.middle == kind.middle, other_place.middle == place.middle
    return rng.choice(
        (
            (f"Is every {inner} {a(outer)}?", f"Yes, {a(inner)} is {a(outer)}."),
            (f"Is every {outer} {a(inner)}?", f"No, {a(inner)} is {a(outer)} but not the only one."),
            (f"Are {inner}s {outer}s?", f"{inner}s are {outer}s."),
            (
                f"Is {a(other_kind.narrow)} {a(kind.middle)}?",
                f"{a(other_kind.narrow)} is {'' if same_kind else 'not '}{a(kind.middle)}.",
            ),
            (f"What is {a(inner)}?", f"{a(inner)} is {a(outer)}."),
            (f"Where is {near}?", f"{near} is in {far}."),
            (f"Is {near} in {far}?", f"Yes, {near} is in {far} but is not all of it."),
            (
                f"Is {other_place.narrow} in {place.middle}?",
                f"{other_place.narrow} is in {other_place.middle}{'' if same_place else f', not in {place.middle}'}.",
            ),
            (f"Compare {low} and {high}.", f"{compare(low, high)}."),
            (f"Is {low} more than {high}?", f"{'Yes' if low > high else 'No'}, {compare(low, high)}."),
            (f"Who is not {one}?", f"who is not {one} must be {two}."),
            (f"Who is not {this}?", f"who is not {this} need not be {that}."),
            (f"Who is {one}?", f"who is {one} is not {two}."),
            (f"Who is {this}?", f"who is {this} is not {that}."),
        )
    )


def _facts(rng: random.Random, _: Collection[str]) -> str:
    return prose(" ".join(sentence(_fact(rng)[1][:-1]) for _ in range(rng.randint(3, 8))))


def _fact_chat(rng: random.Random, _: Collection[str]) -> str:
    return chat(*(turn for _ in range(rng.randint(1, 4)) for turn in _fact(rng)))


def _doing(rng: random.Random) -> str:
    """Return a short plain sentence without full stop."""
    one, two = pick_names(rng, 2)
    kind, place = rng.choice(KIND_CHAINS), rng.choice(PLACE_CHAINS)
    return rng.choice(
        (
            f"{one} {rng.choice(ACTIONS)[0]}",
            f"{one} does not {rng.choice(ACTIONS)[1]}",
            f"{one} has {rng.randint(1, LARGEST_NUMBER)} {kind.narrow}s",
            f"{one} lives in {rng.choice((place.narrow, place.middle, place.wide))}",
            f"{one} is {rng.choice(rng.choice(COMPARATIVES))} than {two}",
            f"{one} sees {a(kind.narrow)}",
        )
    )


_KEY_STARTS = ("text", "thought", "predicted", "first", "copy", "all", "label", "process", "line", "plan")
_KEY_ENDS = ("process", "label", "text", "name", "names", "count", "steps", "thought", "word", "kind")
# The NLI task's own keys, which the text must not have.
_FOREIGN_KEYS = {"thought_process", "predicted_label"}


def _key(rng: random.Random) -> str:
    """Return a key of one or two words, so that answering means copying the key that the task names."""
    while True:
        key = "_".join(rng.sample((rng.choice(_KEY_STARTS), rng.choice(_KEY_ENDS)), 2)[: rng.choice((1, 2, 2))])
        if key not in _FOREIGN_KEYS:
            return key


def _json_answer(rng: random.Random, _: Collection[str]) -> str:
    told = [_doing(rng) for _ in range(rng.randint(1, 3))]
    text = " ".join(sentence(one) for one in told)
    names = [word for word in text.replace(".", "").split() if word in NAMES]
    kind = rng.choice(KIND_CHAINS)
    steps = " ".join(f"step {index}: {one}." for index, one in enumerate(told, 1))
    numbered = " ".join(f"{index}. {one}." for index, one in enumerate(told, 1))
    task, value, shown = rng.choice(
        (
            ("Copy it", text, '"..."'),
            ("Write it in steps", steps, '"..."'),
            ("Number it", numbered, '"..."'),
            ("Who comes first?", names[0], '"..."'),
            ("List the names", ", ".join(names), '"..."'),
            (f"What is {a(kind.narrow)}?", kind.middle, '"..."'),
        )
    )
    number, counted = rng.choice(((len(told), "the number of sentences"), (len(names), "the number of names")))
    first, second = _key(rng), _key(rng)
    if first == second or rng.random() < 0.2:
        return chat(f'{text}\n{task} in JSON: {{"{first}": {shown}}}', json.dumps({first: value}))
    shape = f'{{"{first}": {shown}, "{second}": {counted}}}'
    layout = rng.choice(("{0}\n\n{1}, then answer in JSON: {2}", "{0}\n{1}; JSON: {2}", "{1} in JSON: {2}\n{0}"))
    return chat(layout.format(text, task, shape), json.dumps({first: value, second: number}))


def _plan(rng: random.Random, _: Collection[str]) -> str:
    told = [_doing(rng) for _ in range(rng.randint(2, 5))]
    steps = " ".join(f"step {index}: {one}." for index, one in enumerate(told, 1))
    if rng.random() < 0.5:
        return prose(steps)
    return chat(f"{' '.join(sentence(one) for one in told)}\nWrite it in steps.", steps)


def _copy(rng: random.Random, _: Collection[str]) -> str:
    text = " ".join(sentence(_doing(rng)) for _ in range(rng.randint(1, 4)))
    words = " ".join(pick_kinds(rng, rng.randint(2, 8)) + pick_names(rng, rng.randint(1, 4)))
    told = rng.choice((text, words))
    return rng.choice((prose(f"{told} Again: {told}"), chat(f"Say it again: {told}", told)))


def _turn_round(rng: random.Random, _: Collection[str]) -> str:
    pairs = (*COMPARATIVES, ("before", "after"))
    turns = []
    for _turn in range(rng.randint(1, 3)):
        one, two = pick_names(rng, 2)
        this, that = rng.sample(rng.choice(pairs), 2)
        if this in ("before", "after"):
            there, back = f"{one} came {this} {two}.", f"{two} came {that} {one}."
        else:
            there, back = f"{one} is {this} than {two}.", f"{two} is {that} than {one}."
        turns += [f"Say it the other way round: {there}", back]
    return chat(*turns)


def _glossary(rng: random.Random, _: Collection[str]) -> str:
    words = rng.sample(sorted(_GLOSSARY), rng.randint(2, 4))
    if rng.random() < 0.5:
        return prose("\n".join(f"{word}: {_GLOSSARY[word]}." for word in words))
    return chat(*(turn for word in words for turn in (f"{word}: what is it?", f"{_GLOSSARY[word]}.")))


_KINDS: tuple[tuple[Callable[[random.Random, Collection[str]], str], int], ...] = (
    (_claim, 50),
    (_inference, 5),
    (_facts, 8),
    (_fact_chat, 9),
    (_json_answer, 12),
    (_plan, 6),
    (_copy, 5),
    (_turn_round, 8),
    (_glossary, 3),
)


def documents(seed: int, shard: int, count: int, excluded_premises: Collection[str]) -> Iterator[str]:
    """Yield `count` documents, each with its special tokens spelled out; the same arguments give the same ones."""
    rng = random.Random(f"{seed}/{shard}")
    makers, weights = zip(*_KINDS, strict=True)
    for maker in rng.choices(makers, weights, k=count):
        yield maker(rng, excluded_premises)
