"""What `huggingface_hub` knows of the Hugging Face hub: where a file of it lies, there and in its
cache on this machine, and who the user is.

The bytes come through `bench.assets.download`, as from any other server: pinned by sha256, under
the command's own limits, and ending at once after Ctrl-C, which `hf_hub_download` cannot.
"""

from __future__ import annotations

from pathlib import Path


def hub_url(repository: str, revision: str, file: str) -> str:
    """The address of a file; the environment variable HF_ENDPOINT may name another hub."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file, revision=revision)


def in_hub_cache(repository: str, revision: str, file: str) -> Path | None:
    """The same file where the hub's own tools have put it on this machine, if they have."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found).resolve() if isinstance(found, str) else None


def is_hub(url: str) -> bool:
    """Whether an address is one of the hub."""
    from huggingface_hub import constants

    return url.startswith(f"{constants.ENDPOINT}/")


def hub_token(url: str) -> str | None:
    """The user's access token (`hf auth login`, or the environment variable HF_TOKEN), for an
    address of the hub; None for any other address, and where the user is not logged in.
    """
    if not is_hub(url):
        return None
    from huggingface_hub import get_token

    try:
        return get_token()
    except Exception:  # an exchange of tokens that failed; the hub's answer says what is missing
        return None
