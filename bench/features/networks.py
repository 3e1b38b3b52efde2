"""Networks that turn pictures into features, with the preprocessing of the works that use them,
loaded from the file formats that their authors publish.

Each is a `bench.features.extractor.Extractor`: its fingerprint names the weights and the
preprocessing, so that features can be cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator

from bench.base.digests import digest_of, path_digest
from bench.base.errors import UnknownName, UserError, one_line
from bench.features.open_clip_files import check_folder, check_name
from bench.features.weights import load_network, run_mark

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Profile:
    """How one work prepares pictures for its copy descriptor, in pixels.

    Both sides are resized to `square`; or the shorter side to `short`, and a square of `crop` is
    cut from the centre; or neither, where all are None. `normalisation` holds means and deviations
    of the three channels in [0, 1]. `references` reduces the similarities to several training
    pictures of a prompt to one.
    """

    square: int | None
    short: int | None
    crop: int | None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    references: Literal["max", "mean", "lower_median"]


_CROPPED = Profile(None, 256, 224, HALF, "max")
# As the code of each work has it. A profile belongs to a checkpoint, which the suite names.
PROFILES = {
    "nemo": Profile(320, None, None, IMAGENET, "lower_median"),
    "han": Profile(320, None, None, IMAGENET, "max"),
    "membench": Profile(288, None, None, IMAGENET, "max"),
    "wen": _CROPPED,
    "jeon": _CROPPED,
    "dcr": _CROPPED,
    "concept_prune": Profile(None, 256, 224, HALF, "mean"),
    # neither resized nor cut: its descriptor was trained on pictures as they are generated
    "testbed": Profile(None, None, None, IMAGENET, "max"),
}


def _known_profile(name: str) -> str:
    if name not in PROFILES:
        raise UnknownName("SSCD profile", name, PROFILES)
    return name


# A parameter of a metric or an attack that names a profile; another name is refused.
ProfileName = Annotated[str, AfterValidator(_known_profile)]


def unit_pixels(picture: np.ndarray) -> torch.Tensor:
    """uint8 `[H, W, 3]` to float32 `[3, H, W]` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255.0


@dataclass(frozen=True)
class CopyDescriptor:
    """A copy descriptor (SSCD, Pizzi et al. 2022, say) as a file of weights, with a profile's
    preprocessing: pictures, uint8 `[H, W, 3]`, to unit vectors, float32 `[n, d]`.

    Raises `UserError` when a descriptor is not finite.
    """

    weights: Path
    profile: str
    device: Any
    batch_size: int = 64

    @cached_property
    def digest(self) -> str:
        return path_digest(self.weights)

    @property
    def fingerprint(self) -> str:
        profile = digest_of(asdict(PROFILES[self.profile]))[:6]
        return f"sscd-{self.profile}-{profile}-{self.digest[:12]}{run_mark(self.digest)}"

    @cached_property
    def network(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return load_network(self.weights, self.device)

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        parts = []
        for batch in self._batches(pictures):
            with torch.no_grad():
                descriptors = self.network(batch.to(self.device)).float()
            if not descriptors.abs().amax(1).gt(0).all():
                # Its similarity to everything would be 0: the best score of all.
                raise UserError(
                    f"descriptor {self.weights.name} gives nothing but zeros for a picture; fetch"
                    " or build it again"
                )
            parts.append(torch.nn.functional.normalize(descriptors, dim=1).cpu().numpy())
        features = np.concatenate(parts)
        if not np.isfinite(features).all():
            raise UserError(f"descriptor {self.weights.name} gives NaN or infinity for a picture")
        return features

    def _batches(self, pictures: list[np.ndarray]) -> Iterator[torch.Tensor]:
        """Prepared pictures in their order, `[n, 3, H, W]`: as many together as are of one size and
        fit a batch. A profile that keeps sizes leaves training pictures of unlike ones.
        """
        waiting: list[torch.Tensor] = []
        for picture in pictures:
            prepared = preprocess(picture, PROFILES[self.profile])
            full = len(waiting) == self.batch_size
            if waiting and (full or prepared.shape != waiting[0].shape):
                yield torch.stack(waiting)
                waiting = []
            waiting.append(prepared)
        if waiting:
            yield torch.stack(waiting)


def preprocess(picture: np.ndarray, profile: Profile) -> torch.Tensor:
    """One picture, uint8 `[H, W, 3]`, to the network's input, float32 `[3, h, w]`.

    Bilinear with antialiasing on 8-bit pixels, as torchvision does on PIL images.
    """
    image = Image.fromarray(picture)
    if profile.square is not None:
        image = image.resize((profile.square, profile.square), Image.Resampling.BILINEAR)
    elif profile.short is not None:
        # torchvision's rule: the shorter side is exactly that, the other one rounded down
        shorter = min(image.size)
        sides = [profile.short * side // shorter for side in image.size]
        image = image.resize(sides, Image.Resampling.BILINEAR)
    if profile.crop is not None:
        left, top = (
            round((image.width - profile.crop) / 2),
            round((image.height - profile.crop) / 2),
        )
        image = image.crop((left, top, left + profile.crop, top + profile.crop))
    mean, std = (torch.tensor(values)[:, None, None] for values in profile.normalisation)
    return (unit_pixels(np.asarray(image)) - mean) / std


@dataclass(frozen=True)
class OpenClip:
    """A model of open_clip: from a `folder`, or from the `name` of an architecture and a checkpoint
    (`weights`).

    Raises `UserError` when open_clip cannot load it.
    """

    name: str
    folder: Path | None
    weights: Path | None
    device: Any
    batch_size: int = 64

    @cached_property
    def digest(self) -> str:
        return path_digest(self.folder or self.weights or Path(self.name))

    @property
    def fingerprint(self) -> str:
        return f"clip-{digest_of([self.name if self.weights else None, self.digest])[:12]}"

    @property
    def identifier(self) -> str:
        return f"local-dir:{self.folder}" if self.folder else self.name

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        import open_clip

        if self.folder:
            check_folder(self.folder)
        else:
            check_name(self.name)
        try:
            pretrained = str(self.weights) if self.weights else None
            # weights are drawn at random before the checkpoint replaces them
            with torch.random.fork_rng(devices=[]):
                model, _, preprocess = open_clip.create_model_and_transforms(
                    self.identifier, pretrained=pretrained, device=self.device, weights_only=True
                )
        except Exception as error:  # open_clip and safetensors each raise their own
            raise UserError(
                f"open_clip cannot load {self.identifier} ({one_line(error)[:100]}); fetch or build"
                " it again"
            ) from error
        return model.eval(), preprocess

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Unit image embeddings, float32 `[n, d]`."""
        model, preprocess = self.loaded
        parts = []
        for start in range(0, len(pictures), self.batch_size):
            batch = torch.stack(
                [
                    preprocess(Image.fromarray(picture))
                    for picture in pictures[start : start + self.batch_size]
                ]
            )
            with torch.no_grad():
                parts.append(
                    model.encode_image(batch.to(self.device), normalize=True).float().cpu().numpy()
                )
        return np.concatenate(parts)

    def texts(self, prompts: list[str]) -> tuple[np.ndarray, int]:
        """Unit text embeddings, float32 `[n, d]`, and how many different texts were cut to the
        model's length. Each different text is encoded once.
        """
        model, _ = self.loaded
        unique = list(dict.fromkeys(prompts))
        parts = []
        with torch.no_grad():
            for start in range(0, len(unique), self.batch_size):
                tokens = self._tokens(unique[start : start + self.batch_size]).to(self.device)
                parts.append(model.encode_text(tokens, normalize=True).float().cpu().numpy())
        embedded = np.concatenate(parts)
        return embedded[[unique.index(prompt) for prompt in prompts]], sum(
            _is_cut(self.tokenizer, prompt) for prompt in unique
        )

    @cached_property
    def tokenizer(self) -> Any:
        import open_clip

        try:
            return open_clip.get_tokenizer(self.identifier)
        except Exception as error:  # transformers raises its own, and asserts
            raise self._damaged_tokenizer(error) from error

    def _tokens(self, texts: list[str]) -> torch.Tensor:
        """Token ids `[n, length]`, all of which the model has."""
        model, _ = self.loaded
        try:
            tokens = self.tokenizer(texts)
        except (ValueError, TypeError, KeyError, IndexError, AssertionError) as error:
            raise self._damaged_tokenizer(error) from error
        known = getattr(model, "token_embedding", None)
        if known is not None and int(tokens.max()) >= known.num_embeddings:
            why = f"it gives token {int(tokens.max())} of {known.num_embeddings}"
            raise self._damaged_tokenizer(IndexError(why))
        return tokens

    def _damaged_tokenizer(self, error: Exception) -> UserError:
        return UserError(
            f"the tokenizer of {self.identifier} is damaged or another model's"
            f" ({one_line(error)[:100]}); fetch or build it again"
        )


def _is_cut(tokenizer: Any, prompt: str) -> bool:
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(prompt)) + 2 > tokenizer.context_length
    return len(tokenizer.tokenizer(prompt).input_ids) > tokenizer.context_length


@dataclass(frozen=True)
class CleanFeatures:
    """Features as clean-fid's mode `clean` has them (Parmar et al. 2022): each channel is resized
    to `size` by Pillow's bicubic filter in floats, without rounding; then come the `.layers` of a
    network, on (x - 128) / 128.

    Raises `UserError` for a network without `.layers`.
    """

    weights: Path
    size: int
    device: Any
    batch_size: int = 32

    @cached_property
    def digest(self) -> str:
        return path_digest(self.weights)

    @property
    def fingerprint(self) -> str:
        return f"clean-{self.size}-{self.digest[:12]}{run_mark(self.digest)}"

    @cached_property
    def layers(self) -> Callable[[torch.Tensor], torch.Tensor]:
        network = load_network(self.weights, self.device)
        if not hasattr(network, "layers"):
            raise UserError(
                f"{self.weights} has no `.layers`; it is no feature network of clean-fid's form"
            )
        return network.layers  # type: ignore[no-any-return]

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 `[H, W, 3]` pictures to float32 `[n, d]`."""
        from cleanfid.resize import make_resizer

        resize = make_resizer("PIL", False, "bicubic", (self.size, self.size))
        parts = []
        for start in range(0, len(pictures), self.batch_size):
            batch = np.stack(
                [resize(picture) for picture in pictures[start : start + self.batch_size]]
            ).transpose(0, 3, 1, 2)
            with torch.no_grad():
                features = self.layers((torch.from_numpy(batch).to(self.device) - 128) / 128)
            parts.append(features.reshape(len(batch), -1).float().cpu().numpy())
        found = np.concatenate(parts)
        if not np.isfinite(found).all() or not np.abs(found).max(1).all():
            raise UserError(
                f"feature network {self.weights.name} gives NaN, infinity or nothing but zeros for"
                " a picture; fetch or build it again"
            )
        return found
