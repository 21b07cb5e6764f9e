"""The two kinds of failure that a user sees, each as one sentence that says what is wrong and what to do."""


class SarGenError(Exception):
    """A failure of ours or of the machine (command-line exit status 1)."""


class InputError(SarGenError, ValueError):
    """Bad input, found before any work starts (command-line exit status 2)."""
