"""`bench check`: everything that is shipped keeps its contracts, and every contract is broken by
something it should catch.
"""

import textwrap

import pytest

from bench.checks.check import check
from bench.registry import registry

HEAD = """
import copy, random, urllib.request
from contextlib import contextmanager
from typing import ClassVar
import numpy as np
import torch
from pydantic import Field
from bench import Attack, Method, Metric, PerImage, PerSet
"""


@pytest.fixture
def outcome(tmp_path, tiny_folder):
    def checked(code, kind="method"):
        file = tmp_path / "mine.py"
        file.write_text(HEAD + textwrap.dedent(code))
        return {
            result.contract: result
            for result in check(registry.find(kind, str(file)), {}, tiny_folder)
        }

    return checked


def broken(results):
    return {name: result.note for name, result in results.items() if result.verdict == "broken"}


LEAVES_METHOD = "leaves weights, hooks and attention processors as they were, bit for bit"
LEAVES_ATTACK = "leaves the model and stored images as they were"
# Parameters under which a method acts on a model with random weights.
ACTING = {
    "wen": {"target": 0.5, "iterations": 2},
    "nemo": {"threshold": 0.05, "seeds": 3, "theta_step": 1.0},
    "random_neurons": {"threshold": 0.05, "seeds": 3, "theta_step": 1.0},
    "wanda": {"sparsity": 0.1},
    "sail": {"threshold": 0.1, "steps": 2, "attempts": 2},
    "prss": {"l_ss": 1e-3, "l_pr": 1e-3, "full": 0.1},
}


@pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind in registry.KINDS for name in registry.entries(kind)]
)
def test_everything_that_is_shipped_keeps_its_contracts(kind, name, tiny_folder):
    results = {
        result.contract: result
        for result in check(registry.find(kind, name), ACTING.get(name, {}), tiny_folder)
    }
    assert not broken(results)
    if kind == "method":
        assert results["neutral parameters equal `none`, bit for bit"].verdict == "kept"
        assert (results["does something"].verdict == "kept") == (name != "none")


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_templates_keep_them_too(kind, tiny_folder):
    template = registry.find(kind, f"{registry.KINDS[kind].replace('.', '/')}/_template.py")
    assert len(template.path.read_text().splitlines()) < 60
    assert not broken({result.contract: result for result in check(template, {}, tiny_folder)})


ALWAYS_HALF = '''
class Mine(Method):
    """Does something."""

    strength: float = Field(0.5, description="how much")
'''

BREAKERS = {
    "declares itself": ("class Mine(Method):\n    x: int = 3\n", "docstring"),
    "parameters survive": (
        '''
        class Mine(Method):
            """Forgets what it was given."""

            x: float = Field(0.1, description="how much")

            def model_dump(self, **options):
                return {"x": self.x + 1}
        ''',
        "come back as",
    ),
    "says where it acts": (
        'class Mine(Method):\n    """Somewhere."""\n    where: ClassVar = "somewhere"\n',
        "choose one of",
    ),
    "fit is repeatable": (
        '''
        class Mine(Method):
            """Fits at random."""

            def fit(self, denoiser, data):
                seed = random.SystemRandom().getrandbits(40)
                return {"direction": torch.randn(4, generator=torch.Generator().manual_seed(seed))}
        ''',
        "direction differs by",
    ),
    "leaves weights, hooks": (
        '''
        class Mine(Method):
            """Scales weights back by arithmetic, which rounds."""

            where: ClassVar = "weights"

            @contextmanager
            def attach(self, pipe, state):
                weight = pipe.unet.conv_in.weight
                try:
                    weight.mul_(1.1)
                    yield
                finally:
                    weight.div_(1.1)
        ''',
        "unet.conv_in.weight differs",
    ),
    "and also after an exception": (
        '''
        class Mine(Method):
            """Leaves its hook when something goes wrong."""

            @contextmanager
            def attach(self, pipe, state):
                hook = pipe.unet.mid_block.register_forward_hook(lambda *given: given[-1])
                yield
                hook.remove()
        ''',
        "forward hooks of unet.mid_block",
    ),
    "same seeds, same pixels": (
        '''
        class Mine(Method):
            """Counts how often it was asked."""

            calls: ClassVar = []

            def adjust(self, denoiser, request, state):
                self.calls.append(1)
                return request.replace(latents=request.latents * (1 + 0.1 * len(self.calls)))
        ''',
        "the same seeds gave latents that differ",
    ),
    "a batch equals its images": (
        '''
        class Mine(Method):
            """Centres the noise of a batch."""

            def adjust(self, denoiser, request, state):
                return request.replace(latents=request.latents - request.latents.mean(0))
        ''',
        "when it is sampled alone",
    ),
    "leaves global random state": (
        '''
        class Mine(Method):
            """Draws from the global generator."""

            def adjust(self, denoiser, request, state):
                np.random.rand(3)
                return request
        ''',
        "NumPy",
    ),
    "neutral parameters equal": (
        '''
        class Mine(Method):
            """Is never neutral."""

            neutral: ClassVar = {"strength": 0}
            strength: float = Field(0.5, description="how much")

            def guide(self, step, state):
                return step.guided(step.guidance_scale * (0.999 - self.strength))
        ''',
        "differ from those of `none`",
    ),
    "every evaluation": (
        '''
        class Mine(Method):
            """Goes round the counter."""

            def adjust(self, denoiser, request, state):
                denoiser.pipe.unet.forward(request.latents, 1, request.embeddings)
                return request
        ''',
        "were counted",
    ),
    "keeps the request": (
        '''
        class Mine(Method):
            """Edits in place."""

            def adjust(self, denoiser, request, state):
                request.latents.mul_(0.5)
                return request
        ''',
        "latents differs by",
    ),
    "predictions handed on": (
        '''
        class Mine(Method):
            """Hands on the predictions of other embeddings."""

            def adjust(self, denoiser, request, state):
                with torch.no_grad():
                    first = denoiser.branches(*denoiser.start(request.latents), request)
                return request.replace(embeddings=request.embeddings * 3, first=first)
        ''',
        "differ by",
    ),
    "takes any prompt": (
        '''
        class Mine(Method):
            """Wants words."""

            def adjust(self, denoiser, request, state):
                assert all(request.prompts), "a prompt is empty"
                return request
        ''',
        "a prompt is empty",
    ),
    "takes Stable Diffusion XL": (
        '''
        class Mine(Method):
            """Says that it works on XL, and forgets the pooled text."""

            families: ClassVar = ("sd", "sdxl")

            def adjust(self, denoiser, request, state):
                scaled, timestep = denoiser.start(request.latents)
                with torch.no_grad():
                    predicted = denoiser.epsilon(scaled, timestep, request.embeddings)
                return request.replace(latents=request.latents - 0.1 * predicted)
        ''',
        "pooled text",
    ),
    "says where": (
        '''
        class Mine(Method):
            """Names a family that nobody knows."""

            families: ClassVar = ("sd", "flux")
        ''',
        "families names 'flux'",
    ),
    "needs no network": (
        '''
        class Mine(Method):
            """Asks somebody, and hides that it could not."""

            def adjust(self, denoiser, request, state):
                try:
                    urllib.request.urlopen("http://example.org/weights", timeout=1)
                except OSError:
                    pass
                return request
        ''',
        "example.org",
    ),
}


@pytest.mark.parametrize("contract", BREAKERS)
def test_each_contract_of_a_method_catches_its_breaker(outcome, contract):
    code, says = BREAKERS[contract]
    notes = broken(outcome(code))
    name = next((name for name in notes if name.startswith(contract)), None)
    assert name, f"{contract} is not among {notes}"
    assert says in notes[name] and "\n" not in notes[name]
    assert contract in ("takes any prompt",) or ";" in notes[name], "the note says what to change"


def test_a_method_that_replaces_attention_processors_for_good_is_caught(outcome):
    notes = broken(
        outcome(
            '''
            class Mine(Method):
                """Leaves its attention."""

                @contextmanager
                def attach(self, pipe, state):
                    from diffusers.models.attention_processor import AttnProcessor
                    pipe.unet.set_attn_processor(AttnProcessor())
                    yield
            '''
        )
    )
    assert any("attention processor" in note for note in notes.values())


def test_state_that_leaks_from_batch_to_batch_is_caught(outcome):
    code = '''
    class Mine(Method):
        """Learns a direction from its first batch."""

        memory: ClassVar = {}

        @contextmanager
        def attach(self, pipe, state):
            self.memory.clear()
            yield

        def adjust(self, denoiser, request, state):
            direction = self.memory.setdefault("direction", request.latents[:1])
            return request.replace(latents=request.latents + direction)
    '''
    assert any(name.startswith("a batch equals") for name in broken(outcome(code)))


def test_a_scalar_left_behind_is_caught(outcome):
    code = '''
    class Mine(Method):
        """Leaves attention colder."""

        @contextmanager
        def attach(self, pipe, state):
            for name, module in pipe.unet.named_modules():
                if name.endswith("attn2"):
                    module.scale = 0.1
            yield
    '''
    assert any("scale of unet." in note for note in broken(outcome(code)).values())


def test_a_declared_batch_dependence_is_skipped_and_said(outcome):
    code = BREAKERS["a batch equals its images"][0].replace(
        'batch."""', 'batch."""\n\n            def mixes_images(self):\n                return True'
    )
    results = outcome(code)
    assert (
        not broken(results) and results["a batch equals its images one by one"].verdict == "skipped"
    )


METRIC_BREAKERS = {
    "gives the scores": (
        'return {"other": PerSet(1.0, 1, "u", True)}',
        "gave other and names mine",
    ),
    "gives the same numbers": (
        'return {"mine": PerSet(float(np.random.default_rng().random()), 1, "u", True)}',
        "another number",
    ),
    "scores follow": (
        (
            'return {"mine": PerImage(np.arange(len(s)).reshape(len(s.prompts), s.images) * 1.0,'
            ' s.prompts, "u", True)}'
        ),
        "another order",
    ),
    "leaves the model": (
        's.store.shards()[0].open("ab").write(b" "); return {"mine": PerSet(1.0, 1, "u", True)}',
        "changed",
    ),
}


@pytest.mark.parametrize("contract", METRIC_BREAKERS)
def test_each_contract_of_a_metric_catches_its_breaker(outcome, contract):
    body, says = METRIC_BREAKERS[contract]
    code = f'''
class Mine(Metric):
    """Measures."""
    names: ClassVar = ("mine",)
    roles: ClassVar = ("memorized",)

    def measure(self, e):
        s = e.samples("memorized")
        {body}
'''
    notes = broken(outcome(code, "metric"))
    assert any(name.startswith(contract) and says in note for name, note in notes.items()), notes


def test_an_api_attack_cannot_have_the_weights_and_a_weights_attack_must_use_them(outcome):
    code = '''
class Mine(Attack):
    """Wants it all."""
    threat: ClassVar = "{threat}"
    names: ClassVar = ("mine",)

    def run(self, target):
        {body}
        return {{"mine": PerSet(1.0, 1, "u", False)}}
'''
    greedy = broken(outcome(code.format(threat="api", body="target.weights()"), "attack"))
    assert any("asked for the weights" in note for note in greedy.values())
    idle = broken(outcome(code.format(threat="weights", body="pass"), "attack"))
    assert any("never asked for the model" in note for note in idle.values())
    fair = outcome(
        code.format(threat="weights", body="with target.weights() as d: d.rows"), "attack"
    )
    assert not broken(fair)


def test_code_that_ends_python_breaks_the_contracts_that_call_it_and_not_the_check(outcome):
    code = """
    class Mine(Method):
        'Ends Python.'

        def fit(self, denoiser, data, report=None):
            raise SystemExit(0)
    """
    results = outcome(code)
    notes = broken(results)
    assert len(results) > len(notes) > 5
    assert all("it raised SystemExit: 0" in note for note in notes.values())


def test_who_edits_what_a_model_was_fine_tuned_from_is_told(outcome):
    method = '''
    class Mine(Method):
        """Scales the base."""

        needs: ClassVar = ("base",)

        def fit(self, denoiser, data):
            data.base.pipe.unet.conv_in.weight.mul_(1.1)
            return {}
    '''
    notes = broken(outcome(method))
    assert "unet.conv_in.weight differs" in notes[LEAVES_METHOD]
    attack = '''
    class Mine(Attack):
        """Scales the base."""

        threat: ClassVar = "weights"
        needs_base: ClassVar = True
        names: ClassVar = ("mine",)

        def run(self, target):
            with target.weights():
                target.base().pipe.unet.conv_in.weight.mul_(1.1)
            prompts = target.suite.prompts("memorized")
            return {"mine": PerImage(np.zeros((len(prompts), 1)), prompts, "share", False)}
    '''
    notes = broken(outcome(attack, "attack"))
    assert "unet.conv_in.weight differs" in notes[LEAVES_ATTACK]
