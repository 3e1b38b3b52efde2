from bench.suite.narrowed import NarrowedSuite


def test_only_the_chosen_roles_have_other_prompts_and_the_fingerprint_says_so(tiny_suite):
    fit = tiny_suite.prompts("fit")
    narrowed = NarrowedSuite.of(tiny_suite, tiny_suite.settings, {"fit": fit[:1]})
    assert narrowed.prompts("fit") == fit[:1]
    assert narrowed.prompts("memorized") == tiny_suite.prompts("memorized")
    whole = NarrowedSuite.of(tiny_suite, tiny_suite.settings, {"fit": fit})
    prints = {suite.fingerprint for suite in (tiny_suite, narrowed, whole)}
    assert len(prints) == 3
    assert narrowed.generation == tiny_suite.generation
    assert narrowed.image_seed("a", 1) == tiny_suite.image_seed("a", 1)
