"""How much of what a guest says is taken: every limit of a message in one place (docs/trust.md says what is beyond).

The size of a line is a setting (`virtio.max_frame_bytes`), and so is what a guest may send in a time (`limits`). Pure.
"""

from __future__ import annotations

# Of a whole message. A line of 4 MiB full of sockets as real agents report them has 250,000 commas; with more of them a
# frame says next to nothing and costs time.
VALUES = 250_000
# Backslashes, where some begin \u escapes. Encoders of agents write text as it is; a path of Windows has a few.
ESCAPES = 100_000
# A frame that is no JSON is put right up to this size, and set aside beyond.
READABLE_BYTES = 256 * 1024
# What is refused is kept for the operator; a guest cannot make that long.
REFUSALS = 1_000
# List entries that are put right, one by one; the next ones are refused.
MENDED = 1_000
# What a message says outside its lists of entries, bytes of each part.
PART_BYTES = 256 * 1024

# List entries, of both dialects' places together. The first are kept.
PROCESSES = 5_000
SOCKETS = 20_000
SERVICES = 2_000
APPLICATIONS = 2_000
# Rows that one machine may have of each inventory: what it no longer names is kept for a while.
INVENTORY = 10_000
CORES = 4_096
DISKS = 1_000
INTERFACES = 1_000
ADDRESSES = 64
DEPENDENCIES = 256
# Of any list within an entry, where a wrong value is looked for.
ITEMS = 4_096

# Characters of a text.
STATE_CHARS = 40
PROTOCOL_CHARS = 16
FORMAT_CHARS = 16
NAME_CHARS = 255
PATH_CHARS = 4_096
COMMAND_LINE_CHARS = 4_096
# A path that is a key: an index row has room for 2,704 bytes, and a character may take 4.
KEY_PATH_CHARS = 640
# Of the command lines of a message that may hold a secret: searching costs up to a third of a microsecond a character.
SEARCHED_CHARS = 128 * 1024

# Of an event: characters of its message and of each text in its detail, members of each object and list in it, and
# how deep they lie.
EVENT_CHARS = 1_000
EVENT_MEMBERS = 50
EVENT_DEPTH = 4
# Texts in the whole message, names of members included: each member costs half a microsecond.
EVENT_TEXTS = 20_000
# Bytes.
EVENT_BYTES = 8 * 1024
ICON_BYTES = 64 * 1024
# Of one JSON column, as text: past it the list in it is cut.
JSON_BYTES = 256 * 1024
