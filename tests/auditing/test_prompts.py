"""What a model is asked."""

from bench.auditing.prompts import SCENES, askings, novel_scenes, trigger_of
from bench.captioned.folder import Captioned


def entry(name, caption="", repeats=1, words=""):
    return Captioned(name, (caption,) if caption else (), bytes, repeats, words)


def test_the_trigger_is_given_or_named_by_folders_or_in_every_caption():
    captions = [entry("a", "a photo of zwx on a chair"), entry("b", "zwx, red"), entry("c", "Zwx!")]
    assert trigger_of("sks", captions) == "sks"
    assert trigger_of("", captions) == "zwx"
    assert trigger_of("", captions[:2]) == ""  # of two captions everything may be in both
    named = [entry("a", "my dog", words="my dog"), entry("b", "blue", words="my dog")]
    assert trigger_of("", named) == "my dog"
    assert trigger_of("", named[1:]) == ""  # the folder's words were never shown to the model
    assert (
        trigger_of("", [entry("a", "red car"), entry("b", "red car"), entry("c", "red car")]) == ""
    )


def test_pictures_that_share_a_caption_share_its_images():
    asked = askings(
        [entry("a", "x"), entry("b", "y"), entry("c", "x"), entry("d")],
        images=8,
        trigger="t",
        tags={},
        novel=["s1", "s2"],
    )
    assert [(one.kind, one.text, one.images, one.own) for one in asked] == [
        ("caption", "x", 16, (0, 2)),
        ("caption", "y", 8, (1,)),
        ("caption", "", 8, (3,)),
        ("trigger", "t", 32, ()),
        ("novel", "s1", 16, ()),
        ("novel", "s2", 16, ()),
    ]


def test_tags_are_shuffled_but_for_those_that_training_kept_in_place():
    asked = askings(
        [entry("a", "zwx, red, blue, green"), entry("b", "one tag")],
        images=4,
        trigger="",
        tags={"red": 5, "zwx": 9},
        novel=[],
        keep_tokens=1,
    )
    shuffled = [one for one in asked if one.kind == "shuffled"]
    assert len(shuffled) == 1
    parts = shuffled[0].text.split(", ")
    assert parts[0] == "zwx"
    assert sorted(parts[1:]) == ["blue", "green", "red"]
    assert parts[1:] != ["red", "blue", "green"]
    assert shuffled[0].own == (0,)
    assert [one.text for one in asked if one.kind == "tags"] == ["zwx, red"]
    assert [one.text for one in asked if one.kind == "empty"] == [""]


def test_a_quick_audit_asks_captions_trigger_and_novel_scenes():
    asked = askings(
        [entry("a", "zwx, red, blue, green")],
        images=4,
        trigger="zwx",
        tags={"red": 5},
        novel=["n"],
        quick=True,
    )
    assert [one.kind for one in asked] == ["caption", "trigger", "novel"]


def test_novel_scenes_have_the_trigger_or_are_clean_captions():
    assert novel_scenes("zwx", [], ["c"])[0] == SCENES[0].format("zwx")
    assert novel_scenes("zwx", ["mine", "mine"], ["c"]) == ["mine"]
    assert novel_scenes("", [], [str(n) for n in range(80)]) == [str(n) for n in range(0, 80, 10)]
    assert novel_scenes("", [], []) == []
