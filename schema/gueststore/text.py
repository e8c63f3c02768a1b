"""Escaping of text that anybody may have chosen: a guest, a broker, libvirt, another program of the database. Pure."""


def escape(text: str) -> str:
    """Put text on one line that no terminal acts on: every character that is not printable becomes an escape.

    Not printable are controls, line separators, marks of the writing direction, invisible characters and lone
    surrogates (all of Unicode's C and Z categories but the space).
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
