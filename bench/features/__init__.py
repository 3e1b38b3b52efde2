"""From pictures to vectors: extractors, their networks, and features of folders of real
pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.base.lazy import door

_HOMES = {
    "Extractor": "bench.features.extractor",
    "PROFILES": "bench.features.networks",
    "Profile": "bench.features.networks",
    "ProfileName": "bench.features.networks",
    "CopyDescriptor": "bench.features.networks",
    "OpenClip": "bench.features.networks",
    "CleanFeatures": "bench.features.networks",
    "ObjectRecogniser": "bench.features.recogniser",
    "RealSet": "bench.features.real_pictures",
    "crop_name": "bench.features.real_pictures",
    "feature_blocks": "bench.features.real_pictures",
    "originals": "bench.features.real_pictures",
    "pictures_in": "bench.features.real_pictures",
    "statistics_of": "bench.features.real_pictures",
}
__all__ = list(_HOMES)
__getattr__ = door(__name__, _HOMES)

if TYPE_CHECKING:  # the same names for type checkers and editors
    from bench.features.extractor import Extractor as Extractor
    from bench.features.networks import PROFILES as PROFILES
    from bench.features.networks import CleanFeatures as CleanFeatures
    from bench.features.networks import CopyDescriptor as CopyDescriptor
    from bench.features.networks import OpenClip as OpenClip
    from bench.features.networks import Profile as Profile
    from bench.features.networks import ProfileName as ProfileName
    from bench.features.real_pictures import RealSet as RealSet
    from bench.features.real_pictures import crop_name as crop_name
    from bench.features.real_pictures import feature_blocks as feature_blocks
    from bench.features.real_pictures import originals as originals
    from bench.features.real_pictures import pictures_in as pictures_in
    from bench.features.real_pictures import statistics_of as statistics_of
    from bench.features.recogniser import ObjectRecogniser as ObjectRecogniser
