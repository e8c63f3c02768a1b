"""Every limit of a guest's message in one place; docs/trust.md says what happens beyond each. Pure.

The size of a line (`virtio.max_frame_bytes`) and the rate of each guest (`limits`) are settings.
"""

from __future__ import annotations

# Commas in a message. A line of 4 MiB that is full of sockets, as real agents report them, has 250,000; a frame with
# more contains little information and takes long to decode.
VALUES = 250_000
# Backslashes, where some begin \u escapes. Agents' encoders write text without escapes; a Windows path has a few.
ESCAPES = 100_000
# Messages in one line that are separated, the first ones.
MESSAGES = 8
# Bytes that are searched for the ends of messages in a line that is not one message: a byte is searched more than once
# where messages may begin within a broken one. With it the most expensive lines of 4 MiB that we know of take 40 ms at
# the gate, and 256 KiB of broken text full of NaN takes 65 ms (`./dev bench hostile`).
SEARCHED_BYTES = 12 * 1024 * 1024
# The same for each byte of the line, beyond a least number: else a short line takes as long as the longest.
SEARCHED_PER_BYTE = 16
SEARCHED_LEAST_BYTES = 64 * 1024
# A frame that is not JSON is repaired up to this size, and quarantined beyond.
READABLE_BYTES = 256 * 1024
# Refused list entries, which are recorded for the operator. With more, the frame is quarantined.
REFUSALS = 1_000
# List entries that are repaired; further ones are refused.
REPAIRED = 1_000
# Bytes of each part of a message outside its lists.
PART_BYTES = 256 * 1024

# List entries, those of both dialects together. The first ones are used.
PROCESSES = 5_000
SOCKETS = 20_000
SERVICES = 2_000
APPLICATIONS = 2_000
# Rows of one machine in each inventory: entries that it no longer reports remain for a while.
INVENTORY = 10_000
# Rows of VmPort of one machine that guestd makes for the ports that it listens on. Servers have a hundred.
PORTS = 1_000
# Changes of one machine's services that become history within 24 hours. A start of Windows makes some hundred.
HISTORY_PER_DAY = 1_000
CORES = 4_096
DISKS = 1_000
INTERFACES = 1_000
ADDRESSES = 64
DEPENDENCIES = 256
# Items of a list within an entry, when the entry is repaired.
ITEMS = 4_096

# Figures beyond what any machine has: a larger one is wrong, and would outweigh a fleet in every sum. The store's
# aggregates hold any number of such figures (tests/integration/schema/test_extremes.py).
# CPU of a process, percent of one core.
PROCESS_PERCENT = 100 * CORES
# An EiB, in KiB; a PiB, if the agent reports bytes.
MEMORY_KB = 2**50
# Bytes that a process has read or written, size of a file; what a JSON column holds.
AMOUNT = 10**18
# Three centuries.
UPTIME_SECONDS = 10**10
# Either side of 0.
CELSIUS = 1_000

# Characters of a text.
STATE_CHARS = 40
PROTOCOL_CHARS = 16
FORMAT_CHARS = 16
NAME_CHARS = 255
PATH_CHARS = 4_096
COMMAND_LINE_CHARS = 4_096
# A path that is a key: an index row holds 2,704 bytes, and a character may take 4.
KEY_PATH_CHARS = 640
# Characters of a message's command lines that are searched for secrets, at up to a third of a microsecond each.
SEARCHED_CHARS = 128 * 1024

# Of an event: characters of its message and of each text in its detail, members of each object and list in it, and
# how deep they may be nested.
EVENT_CHARS = 1_000
EVENT_MEMBERS = 50
EVENT_DEPTH = 4
# Texts in the whole message, names of members included: each member takes half a microsecond.
EVENT_TEXTS = 20_000
# Bytes.
EVENT_BYTES = 8 * 1024
ICON_BYTES = 64 * 1024
# Of a JSON column, as text: beyond it the list in it is cut.
JSON_BYTES = 256 * 1024
