"""Refuse, in words, a Python that cannot make the project's environment.

Called by the Makefile before `python -m venv`. Whatever Python is on the path reads this file, so
its syntax is what every version since 2.7 accepts.
"""

import sys

OLDEST = (3, 10)


def complaint(name):
    """What is wrong with this Python and what to do, or None; `name` is how make called it."""
    found = "{0} is Python {1}.{2}.{3} ({4})".format(
        name, *(list(sys.version_info[:3]) + [sys.executable])
    )
    if tuple(sys.version_info[:2]) < OLDEST:
        return (
            "{0}; tinygrad_ish needs Python {1}.{2} or newer.\n"
            "Install one, or name one that is there: make PYTHON=/path/to/python3".format(
                found, *OLDEST
            )
        )
    for module in ("venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError:
            return (
                "{0}; it lacks the module '{1}', which makes virtual environments.\n"
                "On Debian and Ubuntu: sudo apt install python3-venv. Then run the same command "
                "again.".format(found, module)
            )
    return None


if __name__ == "__main__":
    sys.exit(complaint(sys.argv[1] if len(sys.argv) > 1 else "python"))
