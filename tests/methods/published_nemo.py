"""NeMo's published procedure, transcribed literally: what the search is held against, in tests and
in the benchmark of its cost.
"""

from itertools import combinations

import torch

from methods._nemo_layers import value_layers


def theirs():
    """What the reference code compares pictures with. Loaded where it is used, because that takes
    more than a second.
    """
    import torchmetrics.functional.image

    return torchmetrics.functional.image


class Published:
    """The reference code's procedure, one prompt and one set at a time.

    `to_the_letter` also lists a neuron twice that two criteria choose, and makes the evaluations
    whose result is thrown away.
    """

    def __init__(self, denoiser, method, state, to_the_letter=False):
        self.denoiser, self.method, self.to_the_letter = denoiser, method, to_the_letter
        self.layers = value_layers(denoiser.pipe.unet)
        self.mean = [state[f"mean.{name}"] for name in self.layers]
        self.std = [state[f"std.{name}"] for name in self.layers]
        self.threshold = float(state["threshold"])
        # set to whether it passed, for the least that any exact search must evaluate
        self.decisions = {}

    def noise(self, count):
        config = self.denoiser.pipe.unet.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.method.seed))

    def unet(self, noise, prompt, timestep):
        embeddings = self.denoiser.encode([prompt]).repeat(len(noise), 1, 1)
        with torch.no_grad():
            return self.denoiser.pipe.unet(
                noise, timestep, encoder_hidden_states=embeddings, return_dict=False
            )[0]

    def noise_difference(self, prompt, blocked):
        def block(indices):
            def hook(module, args, output):
                output[:, :, indices] *= 0.0

            return hook

        handles = [
            layer.register_forward_hook(block(indices))
            for layer, indices in zip(self.layers.values(), blocked)
            if indices
        ]
        noise = self.noise(self.method.seeds)
        first, second = self.denoiser.new_scheduler().timesteps[:2]
        if self.to_the_letter:
            self.unet(noise, prompt, first)
        predicted = self.unet(noise, prompt, second if self.method.timestep == "second" else first)
        for handle in handles:
            handle.remove()
        difference = predicted - noise
        parts = [difference[i, c] for i in range(len(noise)) for c in range(noise.shape[1])]
        if self.method.normalization == "sample":
            parts = list(difference)
        return torch.stack(
            [(part - part.min()) / (part.max() - part.min()) for part in parts]
        ).reshape(difference.shape)

    def alike(self, first, second):
        # what 8 x 8 latents get
        window = {"sigma": 1.5 * 5 / 11, "kernel_size": 5, "data_range": 1.0, "reduction": "none"}
        if self.method.similarity == "ssim":
            return theirs().structural_similarity_index_measure(first, second, **window)
        return theirs().multiscale_structural_similarity_index_measure(
            first, second, betas=(0.99,), **window
        )

    def score(self, prompt, blocked, whole, kept):
        return self.alike(whole[kept], self.noise_difference(prompt, blocked)[kept]).max().item()

    def best_of_each_seed(self, whole):
        best = [0.0] * len(whole)
        for i, j in combinations(range(len(whole)), 2):
            value = self.alike(whole[i : i + 1], whole[j : j + 1]).item()
            best[i], best[j] = max(best[i], value), max(best[j], value)
        return best

    def candidates(self, prompt, theta, k):
        activations = collected_activations(self.denoiser, [prompt], self.noise(1), 901)
        blocked = []
        for active, mean, std in zip(activations, self.mean, self.std):
            z = (active[0] - mean) / std
            z = z.abs() if self.method.outliers == "both" else z
            indices = (z > theta).nonzero().flatten().tolist() + active[0].topk(
                min(k, len(z))
            ).indices.tolist()
            blocked.append(indices if self.to_the_letter else list(dict.fromkeys(indices)))
        return blocked

    def __call__(self, prompt):
        """(kept seeds, initial neurons, refinement's threshold, refined neurons)"""
        whole = self.noise_difference(prompt, [[]] * len(self.layers))
        kept = [i for i, best in enumerate(self.best_of_each_seed(whole)) if best > self.threshold]
        if not kept:
            return [], [], 0.0, []
        theta, k, score, limit = 5.0, 0, 1.0, self.threshold
        while score > self.threshold:
            blocked = self.candidates(prompt, theta, k)
            score = self.score(prompt, blocked, whole, kept)
            self.decisions[neurons_of(blocked)] = score <= self.threshold
            if score > self.threshold:
                theta, k = theta - 0.25, k + 1
            if theta <= 1 or k >= 1280:
                limit = score
                # its score is needed itself, so all its seeds
                self.decisions[neurons_of(blocked)] = True
                break
        initial = [list(indices) for indices in blocked]
        if self.to_the_letter:
            self.noise_difference(prompt, [[]] * len(self.layers))
            self.noise_difference(prompt, blocked)
        order = range(len(blocked))
        order = list(order) if self.method.refine_from == "first" else list(reversed(order))
        for layer in order:
            if blocked[layer]:
                trial = [[] if i == layer else list(indices) for i, indices in enumerate(blocked)]
                blocked = self.tried(prompt, blocked, trial, whole, kept, limit)
        for layer in order:
            for neuron in list(blocked[layer]):
                trial = [list(indices) for indices in blocked]
                trial[layer].remove(neuron)
                blocked = self.tried(prompt, blocked, trial, whole, kept, limit)
        if self.to_the_letter:
            self.noise_difference(prompt, blocked)
        return kept, initial, limit, blocked

    def tried(self, prompt, blocked, trial, whole, kept, limit):
        passed = self.score(prompt, trial, whole, kept) < limit
        self.decisions[neurons_of(trial)] = passed or self.decisions.get(neurons_of(trial), False)
        return trial if passed else blocked


def neurons_of(blocked):
    return frozenset(
        (layer, channel) for layer, indices in enumerate(blocked) for channel in indices
    )


def collected_activations(denoiser, prompts, latents, timestep):
    """What hooks see in UNet calls: mean over tokens of |to_v|, `[prompts, C]` by layer."""
    layers, seen = value_layers(denoiser.pipe.unet), []
    handles = [
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
        for layer in layers.values()
    ]
    for prompt in prompts:
        with torch.no_grad():
            denoiser.pipe.unet(
                latents,
                timestep,
                encoder_hidden_states=denoiser.encode([prompt]).repeat(len(latents), 1, 1),
            )
    for handle in handles:
        handle.remove()
    # every layer once a call, so this order is the order of execution
    assert len(seen) == len(layers) * len(prompts)
    return [
        torch.stack([output[0].abs().mean(0) for output in seen[number :: len(layers)]])
        for number in range(len(layers))
    ]
