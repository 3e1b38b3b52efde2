"""How much is read, unpacked, downloaded or measured because a file says so.

Files of strangers (suites, lists, records, archives, pictures) may ask for anything. What is
beyond these numbers is refused in one line; each lies far above what the works measured here need.
`docs/security.md` repeats them, and a test compares.
"""

from __future__ import annotations

MIB = 2**20

PICTURE_PIXELS = 64_000_000  # of one picture; more is refused before it is decoded
PICTURE_BYTES = 1024 * MIB  # of one picture file
LINKED_PICTURE_BYTES = 64 * MIB  # of a picture behind a link
LIST_BYTES = 1024 * MIB  # of a list of prompts
SUITE_BYTES = 16 * MIB  # of a suite file
SUITES_DEEP = 16  # suites that extend one another
TABLES_DEEP = 32  # tables and lists inside one another, in TOML and in parameters
TABLE_BYTES = 16 * MIB  # of a table of settings, labels or a calibration in JSON
NETWORK_SETTING = 1_000_000  # width, depth, size or another number that shapes a network
RECORD_BYTES = 64 * MIB  # of a run record
RECORD_PICTURES = 1_000  # thumbnails, or exhibits, of a run record
SHARD_BYTES = 2048 * MIB  # of a shard of a store, once it is read
SHARD_IMAGES = 100_000  # of a shard of a store
DOWNLOAD_BYTES = 128 * 1024 * MIB  # of one file that is fetched
ARCHIVE_FILES = 2_000_000  # members of an archive
ARCHIVE_RATIO = 200  # times the size of the archive, or of an .npz file, that it may unpack to
SILENT_SECONDS = 86_400  # that a server may be silent, at most
IMAGES_PER_PROMPT = 10_000  # of a role or an attack
CHUNKS = 8  # of a prompt, of 75 tokens each
ROUNDS = 1_000  # of a timing
GENERATIONS = 1_000  # of a run, or trainings of each kind in an experiment
EXPERIMENT_PICTURES = 100_000  # of an experiment, or views of one in a round
