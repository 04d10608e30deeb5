"""A slip in the name of a group, an option or a key never silently does nothing (D1)."""

import random
import subprocess
import sys

import pytest
import yaml

from moecli import config
from moecli.errors import ArtifactError, UsageError
from tests.test_config import NEEDED, PARTS, composed, slips, word

SLIPS = 500


def beside(group, option):
    """The words that choose an option, and make it complete."""
    return (word(group, option), *NEEDED.get(option, []))


def names():
    """(words around it, the word with {} for a name, the name) of every group, option and key that exists."""
    for group, options in config.registry().items():
        yield (), "{}=" + next(iter(options)), group
    for group, option in PARTS:
        yield (), word(group, "{}"), option
        key = f"{group}.{option}" if group == "auxiliary" else group
        for name in config.part_options(config.raw_node(group, option)):
            yield beside(group, option), f"{key}.{{}}=1", name
    for name in config.signature("moecli.config.Settings"):
        yield (), "{}=1", name


def real(around, typed):
    """Whether a slip hit another name that exists, be it of another option of its group."""
    key, _, value = typed.partition("=")
    options = config.registry().get(key)
    return value.strip("[]") in options if options else key in config.settable(around) or bool(config._owners(key))


def made():
    """SLIPS cases (words, the name that was meant), as many of each name, plain and after + and ++."""
    draw, kinds = random.Random(3), list(names())
    each = -(-SLIPS // len(kinds)) + 1
    cases = [
        ([*around, ("", "+", "++")[number % 3] + typed], typed, right)
        for around, place, right in kinds
        for number, typed in enumerate(place.format(slip) for slip in slips(right, each, draw))
        if not real(around, typed)
    ]
    assert len({right for _, _, right in cases}) >= 80 and len(cases) >= SLIPS
    draw.shuffle(cases)
    return cases[:SLIPS]


CASES = made()


def suggested(said):
    """The word after Did you mean."""
    return said.partition("Did you mean ")[2].partition("?")[0]


def exists(around, name):
    """Whether a suggestion is something that can be typed."""
    group, equals, option = name.partition("=")
    known = config.settable(around)
    if equals:
        return option in config.registry()[group]
    return name in known


def test_500_slips_are_refused_and_a_real_name_is_suggested():
    without, original = [], 0
    for words, typed, right in CASES:
        with pytest.raises(UsageError) as caught:
            config.compose(words)
        hint = suggested(str(caught.value))
        if not hint or not exists(words[:-1], hint):
            without.append((typed, str(caught.value)))
        original += hint.rpartition("=" if "=" in hint else ".")[2] == right
    assert len(CASES) == SLIPS
    assert not without
    assert original >= 0.95 * SLIPS, original


def test_the_right_name_is_not_refused():
    key = "router.capacity_factor"
    assert config.compose([f"{key}=2"]).config["router"]["capacity_factor"] == 2.0
    assert real((), f"{key}=1") and not real((), "router.capacity_factr=1")


@pytest.mark.parametrize(("words", "typed", "right"), CASES[:5], ids=lambda v: v if isinstance(v, str) else None)
def test_the_command_refuses_it_in_one_line(words, typed, right):
    done = subprocess.run([sys.executable, "-m", "moecli", "train", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("moe: error: ") and done.stderr.count("\n") == 1
    assert "Did you mean " in done.stderr


@pytest.mark.parametrize(
    ("words", "owner"),
    [
        (["router=dense", "router.k=2"], "router=noisy_top_k"),
        (["optimizer=adamw", "optimizer.momentum=0.9"], "optimizer=sgd"),
        (["auxiliary.entropy.weight=1"], "auxiliary=entropy"),
        (["task=digits", "+task.path=x.csv"], "task=table"),
        (["schedule=constant", "schedule.final=0"], "schedule=cosine"),
    ],
)
def test_a_key_of_an_option_that_was_not_chosen_names_its_owners(words, owner):
    with pytest.raises(UsageError, match="no such key") as caught:
        config.compose(words)
    group, option = owner.split("=")
    assert option in str(caught.value).partition(f"It belongs to {group}=")[2].split(", ")


def test_a_slip_in_a_stored_file_is_refused(tmp_path):
    stored, file, refused = composed(), tmp_path / "config.yaml", 0
    for group in ("router", "optimizer", "trainer", "model", "task"):
        for name in [key for key in stored[group] if key != "_target_"]:
            node = {f"{name}x" if key == name else key: value for key, value in stored[group].items()}
            file.write_text(yaml.safe_dump({**stored, group: node}))
            with pytest.raises(ArtifactError, match=rf"Did you mean {group}\.{name}\?"):
                config.read(file)
            refused += 1
    assert refused >= 25


def test_a_part_of_another_name_in_a_stored_file_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**composed(), "rooter": None}))
    with pytest.raises(ArtifactError, match=r"Did you mean router\?"):
        config.read(file)
